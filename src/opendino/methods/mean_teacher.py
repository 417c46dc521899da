"""Mean teacher: a few labels, many images, and agreement between them (Tarvainen & Valpola 2017, arXiv:1703.01780).

The student learns to classify the labeled images, and on all images to agree with the teacher, which sees another
view. A third network, the baseline, learns from the labeled images alone: so a run tells whether the others helped.

Teacher is: a moving average of the student, momentum 0.99, after the ramp-up 0.999
Student sees: one view of labeled and unlabeled images
Teacher sees: another view of the same images
Objective: cross-entropy on the labels, plus squared distance of the two class distributions, ramped up
Against collapse: the labels
Learns from: images, some of them with labels
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from opendino.core import auto_values, duration
from opendino.core.contracts import Backbone, Method
from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, CountOrZero, Duration, Fraction, FractionAboveZero, NotNegative, PixelSize
from opendino.core.types import Augment, Clock, Facts, StepOutput, ViewGroup, Views, ViewSpec
from opendino.losses import entropy, feature_std, to_float32
from opendino.models.teacher import copy_from, ema_


@dataclass(frozen=True)
class Config(Checked):
    """Settings of mean teacher. Labels: folder names or a CSV, see `--labels`."""

    size_px: PixelSize | Literal["auto"] = "auto"
    """Side of both views."""
    augment: Augment = field(default_factory=lambda: Augment(scale=(0.4, 1.0)))
    """How each of the two views is drawn. One way for both: batch norm's statistics must suit either network."""
    labeled_frac: FractionAboveZero = 0.125
    """Share of every batch that is images with a label; they come round more often than the others."""
    consistency: NotNegative = 10.0
    """Weight of the agreement (the paper's 100 for ten classes, whose code divides the distance by their number)."""
    consistency_rampup: Duration = "20%"
    """The weight rises over this time as exp(-5 (1 - t)²)."""
    momentum: Fraction = 0.99
    """EMA momentum of the teacher during the ramp-up; at first 1 - 1/(step + 1), a plain mean of all weights so far."""
    momentum_end: Fraction | Literal["auto"] = "auto"
    """EMA momentum after the ramp-up, 0.999 in the paper."""
    baseline: bool = True
    """Also train the same network on the labeled images alone, to compare with."""
    num_classes: CountOrZero | Literal["auto"] = "auto"

    def resolved(self, facts: Facts) -> tuple[Config, list[str]]:
        """Every "auto" as a number, with the reasons, one line each."""
        found: dict[str, tuple[float, str]] = {}
        if self.size_px == "auto":
            found["size_px"] = auto_values.size_px(facts)
        if self.momentum_end == "auto":
            value = min(0.999, max(self.momentum, 1 - 20 / facts.total_steps))
            found["momentum_end"] = round(value, 4), f"a twentieth of {facts.total_steps:,} steps is remembered"
        if self.num_classes == "auto":
            found["num_classes"] = facts.num_classes, "the classes that the data names"
        return auto_values.with_auto_values(self, found)


def views(config: Config) -> ViewSpec:
    """Two views drawn alike: the student's, then the teacher's."""
    assert config.size_px != "auto"
    group = ViewGroup("global", config.size_px, (config.augment, config.augment))
    return ViewSpec((group,), labeled_frac=config.labeled_frac)


def build(config: Config, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """A student that classifies, a teacher equal to it, and the baseline.

    Raises:
        UsageError: The data names fewer than two classes.
    """
    assert config.num_classes != "auto"
    if config.num_classes < 2:
        raise UsageError(
            f"mean teacher learns from labels, and the data names {config.num_classes} classes",
            "Sort some images into folders by class (the rest into one called 'unlabeled'), or give --labels FILE.csv",
        )
    return _MeanTeacher(config, make_backbone, config.num_classes)


class _MeanTeacher(Method):
    def __init__(
        self, config: Config, make_backbone: Callable[[Literal["student", "teacher"]], Backbone], num_classes: int
    ) -> None:
        super().__init__()
        assert config.momentum_end != "auto"
        self.config, self.momentum_end = config, config.momentum_end

        def network(role: Literal["student", "teacher"]) -> nn.ModuleDict:
            backbone = make_backbone(role)
            return nn.ModuleDict({"backbone": backbone, "classifier": nn.Linear(backbone.embed_dim, num_classes)})

        self.student, self.teacher = network("student"), network("teacher")
        copy_from(self.teacher, self.student)
        if config.baseline:
            self.student["baseline"] = copy.deepcopy(self.student)

    def networks(self) -> dict[str, nn.ModuleDict]:
        """Teacher, student and the baseline."""
        baseline = {"baseline": cast(nn.ModuleDict, self.student["baseline"])} if self.config.baseline else {}
        return super().networks() | baseline

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        seen, other = views.crops["global"]
        num_labeled = views.num_labeled
        labels = views.labels[:num_labeled]
        with torch.no_grad():
            embedding = self.teacher["backbone"]([other])[0]
            target = to_float32(self.teacher["classifier"](embedding)).softmax(-1)
        logits = to_float32(self.student["classifier"](self.student["backbone"]([seen])[0]))
        classification = cross_entropy(logits[:num_labeled], labels)
        distance = consistency(logits, target)
        weight = self.config.consistency * self.rampup(clock)
        loss = classification + weight * distance
        metrics = {
            "classification": classification.detach(),
            "consistency": distance.detach(),
            "class_entropy": entropy(target).mean(),
            "feature_spread": feature_std(embedding),
        }
        if self.config.baseline:
            alone = cast(nn.ModuleDict, self.student["baseline"])
            own = cross_entropy(to_float32(alone["classifier"](alone["backbone"]([seen[:num_labeled]])[0])), labels)
            metrics["baseline"] = own.detach()
            loss = loss + own  # of other parameters: neither gradient feels the other
        numbers = {"consistency_weight": weight, "momentum": self.ema(clock)}
        return StepOutput(loss, {"loss": loss.detach()} | metrics, numbers)

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        """Move the teacher towards the student."""
        ema_(self.teacher, self.student, self.ema(clock), ok)

    def rampup(self, clock: Clock) -> float:
        """Share of the consistency weight at this time, exp(-5) … 1."""
        return math.exp(-5 * (1 - min(1.0, clock.step / self._rampup_steps(clock))) ** 2)

    def ema(self, clock: Clock) -> float:
        """The teacher's momentum at this time."""
        late = clock.step >= self._rampup_steps(clock)
        return min(1 - 1 / (clock.step + 1), self.momentum_end if late else self.config.momentum)

    def _rampup_steps(self, clock: Clock) -> int:
        rampup = self.config.consistency_rampup
        return max(1, duration.steps(rampup, total_steps=clock.total_steps, steps_per_epoch=clock.steps_per_epoch))


def consistency(logits: Tensor, target: Tensor) -> Tensor:
    """Squared distance Σ_c (softmax(logits)_c - target_c)² of class distributions, mean over images.

    Args:
        logits: `[B C]`, of the student.
        target: `[B C]`, the teacher's probabilities, without gradient.
    """
    return (logits.softmax(-1) - target).square().sum(-1).mean()
