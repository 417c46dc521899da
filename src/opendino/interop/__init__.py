"""Weights from elsewhere and for elsewhere. The folder is the registry: one layout of files a module.

A module that can read has
    `recognizes(checkpoint) -> bool`: by keys, shapes and config.json alone; at most one module says yes;
    `read(checkpoint) -> Imported`: every key accounted for, or a `UserError` that says which are not.
A module that can write has
    `Config`: its flags, a frozen dataclass;
    `write(model, out, config) -> float`: the largest difference from the foreign library's own result on random images.
Importing a module of this folder imports no optional library. Files are read by `checkpoint_files.read`, which
never runs anything that a file asks for.
"""

from __future__ import annotations
