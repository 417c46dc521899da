"""opendino: train a vision model on a folder of unlabeled images.

Self-distillation with no labels (DINO, Caron et al. 2021) and related methods in one framework. The names below are
imported on first use, so `import opendino` is fast and does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Callback",
    "Config",
    "continue_run",
    "load",
    "register_augmentation",
    "register_backbone",
    "register_method",
    "resume",
    "train",
]

if TYPE_CHECKING:
    from opendino.config import Config as Config
    from opendino.core.contracts import Callback as Callback
    from opendino.models.load import load as load
    from opendino.start import continue_run as continue_run
    from opendino.start import register_augmentation as register_augmentation
    from opendino.start import register_backbone as register_backbone
    from opendino.start import register_method as register_method
    from opendino.start import resume as resume
    from opendino.start import train as train

_MODULES = {
    "Callback": "opendino.core.contracts",
    "Config": "opendino.config",
    "continue_run": "opendino.start",
    "load": "opendino.models.load",
    "register_augmentation": "opendino.start",
    "register_backbone": "opendino.start",
    "register_method": "opendino.start",
    "resume": "opendino.start",
    "train": "opendino.start",
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
