"""Mean teacher: semi-supervised classification with consistency (Tarvainen & Valpola 2017, arXiv:1703.01780).

The student learns to classify the labeled images and, on all images, to agree with the teacher, which sees another
view. A third network, the baseline, learns only from the labeled images and shows whether the unlabeled images helped.

For: a classifier, if a tenth of the images or more have labels
Teacher is: a moving average of the student, momentum 0.99, and 0.999 after the ramp-up
Student sees: one view of labeled and unlabeled images
Teacher sees: another view of the same images
Objective: cross-entropy on the labels, plus squared distance of the two class distributions with a ramp-up
Against collapse: the labels
Learns from: images, some of them with labels
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from opendino.core import auto_values, duration
from opendino.core.contracts import Backbone, Method, MethodConfig
from opendino.core.errors import UsageError
from opendino.core.ranges import CountOrZero, Duration, Fraction, FractionAboveZero, NotNegative
from opendino.core.types import Clock, Facts, StepOutput, ViewGroup, Views, ViewSpec
from opendino.losses import entropy, feature_std, to_float32
from opendino.models.ema_teacher import copy_from, ema_
from opendino.views.settings import GlobalView, changed


@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings of mean teacher. Labels are folder names or a CSV file, see `--labels`."""

    labeled_frac: FractionAboveZero = 0.125
    """Fraction of labeled images per batch, in (0, 1]; labeled images repeat more often if the data has fewer."""
    consistency: NotNegative = 10.0
    """Weight of the consistency loss; 10 equals the paper's 100 for 10 classes, as its code divides by their number."""
    consistency_rampup: Duration = "20%"
    """Ramp-up time of the consistency weight, exp(-5 (1 - t)²); longer if training is unstable at the start. 0, as in a
    continued run: from the first step the teacher is an average with momentum_end."""
    momentum: Fraction = 0.99
    """EMA momentum of the teacher during the ramp-up; in the first steps 1 - 1/(step + 1), a plain average."""
    momentum_end: Fraction | Literal["auto"] = "auto"
    """EMA momentum of the teacher after the ramp-up. auto: 0.999 as in the paper, less for short runs."""
    baseline: bool = True
    """Also train a network only on the labeled images, to compare with; False is faster."""
    num_classes: CountOrZero | Literal["auto"] = "auto"
    """Number of classes. auto: the classes of the data."""

    cures: ClassVar[Mapping[str, str]] = {
        "dead": "Lower --method.consistency, lengthen --method.consistency-rampup, or lower --optim.lr",
    }

    def resolved(self, facts: Facts) -> tuple[ResolvedConfig, list[str]]:
        """Replace every "auto" by a value; also returns the reasons, one line each."""
        found: dict[str, tuple[float, str]] = {}
        if self.momentum_end == "auto":
            value = min(0.999, max(self.momentum, 1 - 20 / facts.total_steps))
            found["momentum_end"] = round(value, 4), f"averages over 1/20 of {facts.total_steps:,} steps"
        if self.num_classes == "auto":
            found["num_classes"] = facts.num_classes, "the classes of the data"
        return auto_values.with_auto_values(ResolvedConfig, self, found)


@dataclass(frozen=True)
class ResolvedConfig(Config):
    """Settings of mean teacher without "auto"."""

    momentum_end: Fraction = 0.999
    num_classes: CountOrZero = 0


VIEWS = changed({"global": GlobalView()}, {"global.crop.scale": (0.4, 1.0)})
"""Both views, the same for both, so that batch norm statistics fit both networks."""


def views(config: Config, settings: Mapping[str, Any]) -> ViewSpec:
    """Two views with the same augmentation: the student's, then the teacher's."""
    view = settings["global"]
    assert view.size != "auto"
    return ViewSpec((ViewGroup("global", view.size, (view, view)),), labeled_frac=config.labeled_frac)


def build(config: ResolvedConfig, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """Build a student with a classifier, a teacher of the same weights, and the baseline.

    Raises:
        UsageError: The data has fewer than two classes.
    """
    if config.num_classes < 2:
        raise UsageError(
            f"mean_teacher needs labels of at least 2 classes, but the data has {config.num_classes} classes",
            "Sort labeled images into one folder per class and the rest into 'unlabeled', or use --labels FILE.csv",
        )
    return _MeanTeacher(config, make_backbone)


class _MeanTeacher(Method):
    def __init__(
        self, config: ResolvedConfig, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]
    ) -> None:
        super().__init__()
        self.config = config

        def network(role: Literal["student", "teacher"]) -> nn.ModuleDict:
            backbone = make_backbone(role)
            return nn.ModuleDict(
                {"backbone": backbone, "classifier": nn.Linear(backbone.embed_dim, config.num_classes)}
            )

        self.student, self.teacher = network("student"), network("teacher")
        copy_from(self.teacher, self.student)
        if config.baseline:
            self.student["baseline"] = copy.deepcopy(self.student)

    def networks(self) -> dict[str, nn.ModuleDict]:
        """Teacher, student and, if enabled, the baseline."""
        baseline = {"baseline": cast(nn.ModuleDict, self.student["baseline"])} if self.config.baseline else {}
        return super().networks() | baseline

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        student_view, teacher_view = views.crops["global"]  # each [B, C, H, W]
        num_labeled = views.num_labeled
        labels = views.labels[:num_labeled]
        with torch.no_grad():
            embedding = self.teacher["backbone"]([teacher_view])[0]
            target = to_float32(self.teacher["classifier"](embedding)).softmax(-1)
        logits = to_float32(self.student["classifier"](self.student["backbone"]([student_view])[0]))
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
            network = cast(nn.ModuleDict, self.student["baseline"])
            embedding = network["backbone"]([student_view[:num_labeled]])[0]
            baseline_loss = cross_entropy(to_float32(network["classifier"](embedding)), labels)
            metrics["baseline"] = baseline_loss.detach()
            loss = loss + baseline_loss  # no shared parameters, so the gradients are independent
        numbers = {"consistency_weight": weight, "momentum": self.ema_momentum(clock)}
        return StepOutput(loss, {"loss": loss.detach()} | metrics, numbers)

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        """EMA update of the teacher."""
        ema_(self.teacher, self.student, self.ema_momentum(clock), ok)

    def rampup(self, clock: Clock) -> float:
        """Current factor of the consistency weight, exp(-5) … 1."""
        if self._settled:
            return 1.0
        return math.exp(-5 * (1 - min(1.0, clock.step / self._rampup_steps(clock))) ** 2)

    def ema_momentum(self, clock: Clock) -> float:
        """Current EMA momentum of the teacher."""
        if self._settled:
            return self.config.momentum_end
        after_rampup = clock.step >= self._rampup_steps(clock)
        return min(1 - 1 / (clock.step + 1), self.config.momentum_end if after_rampup else self.config.momentum)

    def _rampup_steps(self, clock: Clock) -> int:
        return max(1, clock.in_steps(self.config.consistency_rampup))

    @property
    def _settled(self) -> bool:
        """Whether there is no ramp-up: the teacher is an average already."""
        return duration.parse(self.config.consistency_rampup)[0] == 0


def consistency(logits: Tensor, target: Tensor) -> Tensor:
    """Squared distance Σ_c (softmax(logits)_c - target_c)² of class distributions, mean over images.

    Args:
        logits: `[B C]`, from the student.
        target: `[B C]`, the teacher's probabilities, without gradient.

    Returns:
        Scalar in [0, 2].
    """
    return (logits.softmax(-1) - target).square().sum(-1).mean()
