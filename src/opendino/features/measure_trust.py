"""How often measures without labels ordered runs as k-NN accuracy does, as `benchmarks/measures.py` found."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FOUND = Path(__file__).with_name("measure_trust.json")
"""Written by `python benchmarks/measures.py --keep`."""


def of(measure: str) -> str:
    """How far a measure can be trusted: "as k-NN in 93% of 15 runs, 92% of 25 pairs of runs"; empty if unknown."""
    known = _found()["right"].get(measure)
    if not known:
        return ""
    runs, pairs = (f"{known[kind]['right']:.0f}% of {known[kind]['pairs']}" for kind in ("start and end", "two runs"))
    return f"as k-NN in {runs} runs, {pairs} pairs of runs"


def source() -> str:
    """What these figures are of, one sentence."""
    found = _found()
    return (
        f"'as k-NN': in {found['runs']} runs of {found['sets']} sets of images, healthy and not, of those whose k-NN "
        "accuracies differ, the measure tells the better end from the start, and the better of two runs"
    )


@cache
def _found() -> dict[str, Any]:
    return json.loads(FOUND.read_text(encoding="utf-8"))
