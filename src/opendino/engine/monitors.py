"""Is the run well? Names a collapse, and its cure.

Three ways to fail, told apart by numbers every step leaves behind (Caron et al. 2021, section 5.3 and figure 7):
    uniform   the teacher says the same of every prototype: its entropy sits at ln K, the KL to the student at 0
    one-hot   the teacher gives every image to the same prototype: the entropy of its mean output sits near 0
    dead      the features of different images are the same, whatever the head makes of them
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

PATIENCE = 50
"""Steps in a row that must look collapsed; a tenth of the run where that is shorter, but never fewer than ten."""

_UNIFORM_FRAC = 0.995
_ONE_HOT_FRAC = 0.05
_DEAD_SPREAD = 0.01


@dataclass(frozen=True)
class Verdict:
    """A named failure.

    Attributes:
        name: "uniform", "one-hot" or "dead".
        evidence: The numbers, one line.
        cure: What to change, one line.
    """

    name: str
    evidence: str
    cure: str


class Monitor:
    """Watches a run's rows. A verdict stands as long as the last `PATIENCE` rows agree."""

    def __init__(self, total_steps: int) -> None:
        self._names: deque[str | None] = deque(maxlen=max(10, min(PATIENCE, total_steps // 10)))

    def watch(self, row: Mapping[str, float]) -> Verdict | None:
        """The verdict after one more step's numbers, see `diagnose`."""
        verdict = diagnose(row)
        self._names.append(verdict.name if verdict else None)
        agreed = len(self._names) == self._names.maxlen and len(set(self._names)) == 1
        return verdict if agreed else None


def diagnose(row: Mapping[str, float]) -> Verdict | None:
    """What one step's numbers look like; None for healthy.

    Args:
        row: `entropy_frac`, the teacher's entropy over ln K; `marginal_frac`, the entropy of its mean output over
            ln K; `feature_spread`, the standard deviation of L2-normalised features, 0 (all equal) to about 1.
    """
    spread, entropy, marginal = (row.get(name) for name in ("feature_spread", "entropy_frac", "marginal_frac"))
    if marginal is not None and marginal < _ONE_HOT_FRAC:
        return Verdict(
            "one-hot",
            f"the teacher's mean output has {marginal:.1%} of the entropy it could have",
            "One prototype wins for every image: keep centring on, lower center_momentum towards 0.9, "
            "or raise teacher_temp_start",
        )
    if entropy is not None and entropy > _UNIFORM_FRAC:
        return Verdict(
            "uniform",
            f"the teacher's entropy is {entropy:.1%} of ln K",
            "The teacher says nothing: keep sharpening on, lower teacher_temp (0.04, then 0.02) or the learning rate",
        )
    if spread is not None and spread < _DEAD_SPREAD:
        return Verdict(
            "dead",
            f"features of different images differ by a standard deviation of {spread:.4f}",
            "Lower the learning rate, lengthen its warm-up, or clip gradients harder (clip = 0.3)",
        )
    return None
