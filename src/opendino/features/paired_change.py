"""Is one model better than another on the same images? The mean difference, image by image, and its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Change:
    """Scores of two models on the same images, in percent.

    Attributes:
        before, after: Mean scores.
        standard_error: Of the mean difference, over the images.
        num_images: Number of images.
    """

    before: float
    after: float
    standard_error: float
    num_images: int

    @property
    def direction(self) -> int:
        """1 better, -1 worse, 0 within two standard errors."""
        difference = self.after - self.before
        return 0 if abs(difference) <= 2 * self.standard_error else int(math.copysign(1, difference))

    @property
    def verdict(self) -> str:
        """In words: "better", "no better" or "worse"."""
        return {1: "better", 0: "no better", -1: "worse"}[self.direction]

    @property
    def summary(self) -> str:
        """The verdict as the beginning of a sentence; "than" follows."""
        return {1: "Better", 0: "Not shown to be better", -1: "Worse"}[self.direction]

    @property
    def difference(self) -> str:
        """The difference in points, its standard error, and the number of images."""
        points = f"{self.after - self.before:+.1f} ± {self.standard_error:.1f} points"
        return f"difference {points} on {self.num_images:,} held-out images"

    @property
    def against(self) -> str:
        """The difference in points, its standard error, and what it shows."""
        verdict = {1: "better", -1: "worse", 0: "may be chance, less than two standard errors"}[self.direction]
        return f"{self.after - self.before:+.1f} ± {self.standard_error:.1f} points: {verdict}"

    def __str__(self) -> str:
        return (
            f"{self.after:.1f} % after, {self.before:.1f} % before, difference {self.after - self.before:+.1f} ± "
            f"{self.standard_error:.1f} on {self.num_images:,} held-out"
        )


def change(before: Tensor, after: Tensor, whole: bool = True) -> Change:
    """Compare the scores of two models on the same images, image by image.

    Args:
        before, after: float `[N]` in 0 … 1.
        whole: Whether a score is mostly 0 or 1: an answer that is right or wrong.
    """
    num = len(before)
    spread = float((after - before).std()) if num > 1 else math.inf
    # If no answer changes, the spread is zero; as if one did, so that few images do not seem to prove equality.
    error = max(spread, whole / math.sqrt(num)) / math.sqrt(num)
    return Change(100 * float(before.mean()), 100 * float(after.mean()), 100 * error, num)
