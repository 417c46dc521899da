"""Evaluations from Python: `opendino.evaluate.knn("runs/mine", k=[20])` is `opendino eval knn runs/mine --k 20`.

The names are those of `opendino list evals`, also of plug-ins; the settings are the flags.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from opendino.core import registry
from opendino.core.errors import UsageError, nearest
from opendino.core.ranges import hints
from opendino.core.types import Report
from opendino.data.sources import python
from opendino.engine.run_result import Result
from opendino.loading import ImageModel

_IMAGES = ("train", "val", "data", "distractors")
"""Settings that name images."""


def __getattr__(name: str) -> Callable[..., Report]:
    if name.startswith("__") or name not in __dir__():
        raise AttributeError(f"There is no evaluation {name!r}; there are {', '.join(__dir__())}")

    def evaluate(model: Any, **settings: Any) -> Report:
        module = registry.load(registry.EVALS, name)
        known = [setting for setting in hints(module.Config) if setting != "model"]
        if unknown := next((setting for setting in settings if setting not in known), None):
            raise UsageError(f"{name} has no setting {unknown!r}", nearest(unknown, known))
        given = {key: _value(key, value) for key, value in settings.items()}
        return module.evaluate(module.Config(model=_name(model), **given))

    evaluate.__name__ = evaluate.__qualname__ = name
    evaluate.__doc__ = f"""{registry.summary(registry.EVALS, name)}

    Args:
        model: A run folder, the result of a run, a loaded model, or any other MODEL of the command line.
        **settings: The flags of `opendino eval {name.replace("_", "-")} --help`; images also as for `opendino.train`.
    """
    return evaluate


def __dir__() -> list[str]:
    return registry.names(registry.EVALS)


def _value(setting: str, value: Any) -> Any:
    """Value of a flag: of a path its text, of images given in Python their name."""
    if isinstance(value, Path):
        return str(value)
    return python.register(value) if setting in _IMAGES and not isinstance(value, str | None) else value


def _name(model: Any) -> str:
    """MODEL of the command line: of a result its run, of a loaded model its name."""
    if isinstance(model, Result):
        return model.run
    return model.name if isinstance(model, ImageModel) else str(model)
