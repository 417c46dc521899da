"""BYOL: predict the teacher's projection of the other view (Grill et al. 2020, arXiv:2006.07733).

The paper's "online" and "target" networks are our student and teacher. No prototypes, no negatives, no labels.

For: comparison with published runs; it needs large batches and long runs, and single crops
Teacher is: a moving average of the student, momentum 0.996 → 1
Student sees: both views; it has a predictor, the teacher does not
Teacher sees: both views
Objective: 2 - 2 cos(prediction of one view, projection of the other), summed over both directions
Against collapse: a predictor only on the student, stop-gradient, and the moving average
Learns from: images without labels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from opendino.core import auto_values
from opendino.core.contracts import Backbone, Method, MethodConfig
from opendino.core.ranges import Fraction, Width
from opendino.core.schedule_formulas import warmup_cosine
from opendino.core.types import Clock, Facts, StepOutput, ViewGroup, Views, ViewSpec
from opendino.losses import feature_std, to_float32
from opendino.models.ema_teacher import copy_from, ema_
from opendino.models.heads import MLPHead
from opendino.views.settings import GlobalView, View, changed


@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings of BYOL. Defaults are the paper's, which used ResNet-50 and LARS (`--optim.name lars`)."""

    hidden_dim: Width = 4096
    """Hidden width of the projector and predictor MLPs."""
    projection_dim: Width = 256
    """Output width of the projector and predictor MLPs."""
    predictor: bool = True
    """Predictor MLP on the student. False only to study collapse (see `opendino experiment collapse`)."""
    momentum: Fraction | Literal["auto"] = "auto"
    """EMA momentum of the teacher at the start; a cosine schedule to momentum_end. auto: from the length of the run."""
    momentum_end: Fraction = 1.0
    """EMA momentum of the teacher at the end of the run."""

    cures: ClassVar[Mapping[str, str]] = {
        "dead": "Keep --method.predictor True, raise --method.momentum so that the teacher moves slowly (0.99, then "
        "0.996), raise --batch, or lower --optim.lr",
    }

    def resolved(self, facts: Facts) -> tuple[ResolvedConfig, list[str]]:
        """Replace every "auto" by a value; also returns the reasons, one line each."""
        found = {}
        if self.momentum == "auto":
            found["momentum"] = auto_values.momentum(facts)
        return auto_values.with_auto_values(ResolvedConfig, self, found)


@dataclass(frozen=True)
class ResolvedConfig(Config):
    """Settings of BYOL without "auto"."""

    momentum: Fraction = 0.996


VIEWS = changed(
    {"global": GlobalView(), "second": View()},
    {"all.crop.scale": (0.08, 1.0), "global.blur.p": 1.0, "second.blur.p": 0.1, "second.solarize.p": 0.2},
)
"""The paper's two views (appendix B)."""


def views(config: Config, settings: Mapping[str, Any]) -> ViewSpec:
    """Two views of the same size with different augmentations."""
    first, second = settings["global"], settings["second"]
    assert first.size != "auto"
    return ViewSpec((ViewGroup("global", first.size, (first, second)),))


def build(config: ResolvedConfig, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """Build the student (backbone, projector, predictor) and a teacher of the same weights without a predictor."""
    return _BYOL(config, make_backbone)


class _BYOL(Method):
    def __init__(
        self, config: ResolvedConfig, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]
    ) -> None:
        super().__init__()
        self.config = config

        def network(role: Literal["student", "teacher"]) -> nn.ModuleDict:
            backbone = make_backbone(role)
            head = MLPHead(backbone.embed_dim, config.hidden_dim, config.projection_dim)
            return nn.ModuleDict({"backbone": backbone, "head": head})

        self.student, self.teacher = network("student"), network("teacher")
        if config.predictor:
            self.student["predictor"] = MLPHead(config.projection_dim, config.hidden_dim, config.projection_dim)
        copy_from(self.teacher, self.student)

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        # One forward pass per view, so that batch norm computes statistics per view, as in the paper's code.
        images = list(views.crops["global"].unbind())  # two of [B, C, H, W]
        with torch.no_grad():
            embeddings = self.teacher["backbone"](images)
            targets = [self.teacher["head"](embedding) for embedding in embeddings]
        predictions = [self.student["head"](embedding) for embedding in self.student["backbone"](images)]
        if self.config.predictor:
            predictions = [self.student["predictor"](projection) for projection in predictions]
        loss = regression(predictions[0], targets[1]) + regression(predictions[1], targets[0])
        metrics = {
            "loss": loss.detach(),
            "feature_spread": feature_std(embeddings[0]),
            "projection_spread": feature_std(targets[0]),
        }
        return StepOutput(loss, metrics, {"momentum": self.ema_momentum(clock)})

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        """EMA update of the teacher."""
        ema_(self.teacher, self.student, self.ema_momentum(clock), ok)

    def ema_momentum(self, clock: Clock) -> float:
        """Current EMA momentum of the teacher: 1 - (1 - τ) · (cos(π k / K) + 1) / 2 with end value 1 (section 3.3)."""
        return warmup_cosine(clock.step, self.config.momentum, self.config.momentum_end, clock.total_steps)


def regression(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of L2-normalized vectors, ‖p̂ - t̂‖² = 2 - 2 cos(p, t), mean over images (eq. 2).

    Args:
        prediction: `[B D]`, from the student.
        target: `[B D]`, from the teacher, without gradient.

    Returns:
        Scalar in [0, 4].
    """
    return (2 - 2 * cosine_similarity(to_float32(prediction), to_float32(target), dim=-1)).mean()
