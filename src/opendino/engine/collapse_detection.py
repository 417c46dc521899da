"""Detects collapses from a run's metrics and says how to fix them; `engine/verdict.py` says what a run came to.

Four kinds, distinguished by metrics of every step (Caron et al. 2021, arXiv:2104.14294, section 5.3 and figure 7):
    uniform   the teacher's output is uniform over the prototypes: its entropy stays at ln K, the KL to the student at 0
    one-hot   the teacher assigns every image to the same prototype: the entropy of its mean output stays near 0
    constant  the teacher's output is the same for every image: its mean output has no more entropy than single ones
    dead      different images get the same features, or the same projections in the loss
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = "uniform", "one-hot", "constant", "dead"
"""The kinds of collapse that steps show; `engine/verdict.py` also finds "rank 1", by evaluations."""
CURE = "Lower --optim.lr, lengthen --optim.lr-warmup, or clip gradients harder (--optim.clip 0.3)"
"""What to change, for a kind of which the method says nothing (`MethodConfig.cures`)."""
PATIENCE = 50
"""Number of steps whose median must look collapsed; a tenth of the run if that is less, but at least ten."""

_UNIFORM_FRAC = 0.99
_ONE_HOT_FRAC = 0.05
_CONSTANT_FRAC = 0.002
_DEAD_STD = {"feature_spread": 0.01, "projection_spread": 0.05}
_OF_PATCHES = "patch_"
_SIGNS = ("entropy_frac", "marginal_frac", *_DEAD_STD)
SIGNS = (*_SIGNS, *(_OF_PATCHES + name for name in _SIGNS))
"""The metrics of a step that `diagnose` uses."""


@dataclass(frozen=True)
class Collapse:
    """A collapse of a run.

    Attributes:
        name: One of `KINDS`; from `engine/verdict.py` also "rank 1".
        evidence: The metrics it is based on, one line.
        cure: What to change, one line that names flags.
    """

    name: str
    evidence: str
    cure: str


class Monitor:
    """Diagnoses the medians of the last `patience` steps.

    Medians, because an unstable run jumps: the prototype that wins for every image may change from step to step.

    Args:
        total_steps: Length of the run; see `PATIENCE`.
        cures: Of the method, see `MethodConfig.cures`.
    """

    def __init__(self, total_steps: int, cures: Mapping[str, str] = {}) -> None:
        self._cures = cures
        self.patience = max(10, min(PATIENCE, total_steps // 10))
        self._rows: deque[dict[str, float]] = deque(maxlen=self.patience)

    def watch(self, row: Mapping[str, Any]) -> Collapse | None:
        """Add a step's metrics and return the current collapse, see `diagnose`; ignores missing and null metrics."""
        known = {name: value for name in SIGNS if (value := row.get(name)) is not None}
        self._rows.append({name: value for name, value in known.items() if math.isfinite(value)})
        if len(self._rows) < self.patience:
            return None
        columns = {name: [each[name] for each in self._rows if name in each] for name in SIGNS}
        return diagnose({name: statistics.median(values) for name, values in columns.items() if values}, self._cures)


def diagnose(row: Mapping[str, float], cures: Mapping[str, str] = {}) -> Collapse | None:
    """Diagnose a collapse from the metrics of one step; None for healthy.

    Args:
        row: Any of `entropy_frac`, mean entropy of the teacher's outputs divided by ln K, 0 to 1; `marginal_frac`,
            entropy of its mean output divided by ln K, 0 to 1; `feature_spread` and `projection_spread`, standard
            deviation of L2-normalized features and projections over the images, 0 (all equal) to about 1. And the same
            of patches, with the prefix "patch_".
        cures: Of the method, see `MethodConfig.cures`.
    """
    of_patches = {name.removeprefix(_OF_PATCHES): x for name, x in row.items() if name.startswith(_OF_PATCHES)}
    for values, prefix in ((row, ""), (of_patches, "of the patches, ")):
        if found := _diagnose(values):
            name, evidence = found
            return Collapse(name, prefix + evidence, cures.get(name, CURE))
    return None


def _diagnose(row: Mapping[str, float]) -> tuple[str, str] | None:
    """Kind and evidence."""
    entropy, marginal = row.get("entropy_frac"), row.get("marginal_frac")
    if marginal is not None and marginal < _ONE_HOT_FRAC:
        return (
            "one-hot",
            f"one prototype wins for every image: the mean output's entropy is {marginal:.1%} of its maximum, ln K",
        )
    if entropy is not None and entropy > _UNIFORM_FRAC:
        return (
            "uniform",
            f"each image has the same share of every prototype: entropy {entropy:.1%} of its maximum, ln K",
        )
    for what, least in _DEAD_STD.items():
        spread = row.get(what)
        if spread is not None and spread < least:
            of = what.partition("_")[0]
            return "dead", f"the standard deviation of {of}s over different images is only {spread:.4f}"
    # marginal - entropy is the mutual information of image and prototype, divided by ln K.
    if entropy is not None and marginal is not None and marginal - entropy < _CONSTANT_FRAC:
        known = max(0.0, marginal - entropy)
        return "constant", f"the output is the same for every image: it carries {known:.2%} of ln K of information"
    return None
