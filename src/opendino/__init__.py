"""opendino: a folder of unlabeled images in, a vision model out.

Self-distillation with no labels (DINO, Caron et al. 2021) and its family on one frame. The names below are
imported on first use, so that `import opendino` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Config", "load", "resume", "train"]

if TYPE_CHECKING:
    from opendino.config import Config as Config
    from opendino.models.load import load as load
    from opendino.training import resume as resume
    from opendino.training import train as train

_HOMES = {
    "Config": "opendino.config",
    "load": "opendino.models.load",
    "resume": "opendino.training",
    "train": "opendino.training",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("opendino")
    if name not in _HOMES:
        raise AttributeError(f"module 'opendino' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    # The function must win over the submodule of the same name, which this import binds to `opendino.training`.
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
