"""Import weights of other libraries and export models for them. `formats/` is the registry: one file format per module.

A module that can read has
    `recognizes(checkpoint) -> bool`: decides by keys, shapes and config.json; at most one module returns True;
    `read(checkpoint) -> Imported`: uses every key or raises a `UserError` with the unknown and missing keys.
A module that can write has
    `Config`: its flags, a frozen dataclass;
    `write(model, out, config) -> float`: returns the largest difference of outputs on random images.
Importing these modules imports no optional library. Files are read by `checkpoint_files.read`, which never executes
code from a file.
"""

from __future__ import annotations
