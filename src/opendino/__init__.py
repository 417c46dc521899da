"""opendino: train a vision model on a folder of unlabeled images.

Self-distillation with no labels (DINO, Caron et al. 2021) and related methods in one framework. The names below are
imported on first use, so `import opendino` is fast and does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Config", "load", "resume", "train"]

if TYPE_CHECKING:
    from opendino.config import Config as Config
    from opendino.models.load import load as load
    from opendino.training import resume as resume
    from opendino.training import train as train

_MODULES = {
    "Config": "opendino.config",
    "load": "opendino.models.load",
    "resume": "opendino.training",
    "train": "opendino.training",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("opendino")
    if name not in _MODULES:
        raise AttributeError(f"module 'opendino' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access does not call __getattr__
    return value
