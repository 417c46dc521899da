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
    "evaluate",
    "finetune",
    "load",
    "register_augmentation",
    "register_backbone",
    "register_method",
    "resume",
    "train",
]

if TYPE_CHECKING:
    from opendino import evaluate as evaluate
    from opendino.core.contracts import Callback as Callback
    from opendino.loading import load as load
    from opendino.start import continue_run as continue_run
    from opendino.start import finetune as finetune
    from opendino.start import register_augmentation as register_augmentation
    from opendino.start import register_backbone as register_backbone
    from opendino.start import register_method as register_method
    from opendino.start import resume as resume
    from opendino.start import settings as Config  # noqa: N812
    from opendino.start import train as train

_PLACES = {
    "Callback": ("opendino.core.contracts", "Callback"),
    "Config": ("opendino.start", "settings"),  # those of the command line; `config.Config` alone has DINO v1's
    "continue_run": ("opendino.start", "continue_run"),
    "finetune": ("opendino.start", "finetune"),
    "load": ("opendino.loading", "load"),
    "register_augmentation": ("opendino.start", "register_augmentation"),
    "register_backbone": ("opendino.start", "register_backbone"),
    "register_method": ("opendino.start", "register_method"),
    "resume": ("opendino.start", "resume"),
    "train": ("opendino.start", "train"),
}
"""Public name → module, and name in it."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("opendino")
    if name not in __all__:
        raise AttributeError(f"module 'opendino' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    if name not in _PLACES:
        return importlib.import_module(f"opendino.{name}")
    module, inner = _PLACES[name]
    value = getattr(importlib.import_module(module), inner)
    globals()[name] = value  # the next access does not call __getattr__
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
