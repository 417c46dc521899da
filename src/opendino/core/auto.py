"""The rules behind "auto" that several methods share: a value, and why, in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from opendino.core.types import Facts

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    C = TypeVar("C", bound=DataclassInstance)


def size_px(facts: Facts) -> tuple[int, str]:
    """Side of the large views: that of the images, in steps of two patches."""
    most = 224 if facts.device != "cpu" else 96  # on a CPU a network of 224 px learns an image a second
    step = 2 * facts.patch_px
    value = max(step, min(most, facts.short_side_px) // step * step)
    return value, f"images of about {facts.short_side_px} px on a {facts.device} device"


def momentum(facts: Facts) -> tuple[float, str]:
    """A teacher that remembers an eighth of the run, at most as the original's: 1 / (1 - m) steps.

    Of the momenta tried on small sets the best rises with the length, 0.95 at 240 steps and 0.99 at 720; 0.9 is bad at
    any (docs/log.md, `opendino lab defaults`).
    """
    value = min(0.996, max(0.95, 1 - 8 / facts.total_steps))
    return round(value, 4), f"{facts.total_steps:,} steps"


def applied(config: C, found: dict[str, tuple[Any, str]]) -> tuple[C, list[str]]:
    """A Config with values put in, and a line for each with its reason: name → (value, why)."""
    values = {name: value for name, (value, _) in found.items()}
    return replace(config, **values), [f"{name} = {value}: {why}" for name, (value, why) in found.items()]
