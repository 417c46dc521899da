"""Durations as users write them, in optimizer steps: "100ep" (epochs), "5%" (of the run), "20k", "1500" (steps)."""

from __future__ import annotations

import re

from opendino.core.errors import UsageError

_PATTERN = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ep|%|k|m|)", re.ASCII)


def parse(span: str) -> tuple[float, str]:
    """Split a duration into its number and unit: "ep" epochs, "%" of the run, "" steps ("k", "m" multiply).

    Raises:
        UsageError: The text is not a duration.
    """
    match = _PATTERN.fullmatch(str(span).strip().lower())
    if match is None:
        raise UsageError(
            f"'{span}' is not a duration", "Write epochs as 10ep, a share of the run as 5%, steps as 1500 or 20k"
        )
    number, unit = float(match["number"]), match["unit"]
    if unit in ("k", "m"):
        return number * {"k": 1e3, "m": 1e6}[unit], ""
    return number, unit


def steps(span: str, *, total_steps: int, steps_per_epoch: int) -> int:
    """Convert a duration to optimizer steps, rounded to the nearest integer."""
    number, unit = parse(span)
    scale = {"ep": float(steps_per_epoch), "%": total_steps / 100, "": 1.0}[unit]
    return round(number * scale)


def in_epochs(span: str) -> bool:
    """Whether the duration is in epochs; then its schedule changes once per epoch, as in DINO v1."""
    return parse(span)[1] == "ep"


def capped(span: str, share: float, *, total_steps: int, steps_per_epoch: int) -> str:
    """Limit a duration to the fraction `share` of the run, so that a short run is not all warm-up."""
    limit = int(share * total_steps)
    return span if steps(span, total_steps=total_steps, steps_per_epoch=steps_per_epoch) <= limit else str(limit)
