"""DINO: self-distillation with no labels (Caron et al. 2021, arXiv:2104.14294).

A student learns to predict, from any view of an image, the teacher's output for the two global views. The teacher is
an exponential moving average (EMA) of the student. Two mechanisms prevent collapse: centering (subtract a running mean,
so that no prototype dominates; alone it leads to a uniform output) and sharpening (a low teacher temperature; alone it
leads to one dominant prototype). tests/story/test_golden.py compares training with recorded numbers of DINO v1.

For: long runs on photographs, attention maps; the most tested here. In runs of minutes swav and lejepa learn faster
Teacher is: a moving average of the student, momentum 0.996 → 1
Student sees: all views
Teacher sees: the global views
Objective: cross-entropy of the two softmax outputs over prototypes, every pair of different views
Against collapse: centering and sharpening of the teacher's output
Learns from: images without labels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from msgspec import Meta
from torch import Tensor, nn

from opendino.core import auto_values
from opendino.core import duration as span
from opendino.core.contracts import Backbone, Method, MethodConfig
from opendino.core.errors import UsageError
from opendino.core.ranges import Duration, Fraction, Temperature, Width
from opendino.core.schedule_formulas import ramp, warmup_cosine
from opendino.core.types import Clock, Facts, StepOutput, Views, ViewSpec
from opendino.losses import cross_entropy, output_statistics, sinkhorn_knopp, to_float32
from opendino.models.ema_teacher import center_, copy_from, ema_
from opendino.models.heads import ProjectionHead
from opendino.views.settings import GlobalView, LocalViews, View, changed, global_and_local

Prototypes = Annotated[int, Meta(ge=2, le=2**24)]


@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings of DINO. Defaults are the paper's for ViT-S/16; the views are `VIEWS`."""

    student_views: Literal["all", "local"] = "all"
    """Views that the student sees. all: every view (paper, original code); local: only local ones (Kirch's article)."""
    out_dim: Prototypes | Literal["auto"] = 65536
    """Number of prototypes K (output dimension of the head). auto: from the number of images."""
    hidden_dim: Width | Literal["auto"] = 2048
    """Hidden width of the head MLP."""
    bottleneck_dim: Width | Literal["auto"] = 256
    """Width of the head's bottleneck, before the prototype layer."""
    head_layers: Annotated[int, Meta(ge=1, le=64)] = 3
    """Number of linear layers in the head MLP."""
    head_batch_norm: bool | Literal["auto"] = False
    """Use batch norm in the head MLP."""
    norm_last_layer: bool = True
    """Fix the norms of the prototypes at 1. False can improve small ViTs, but is less stable."""
    freeze_last_layer: Duration = "1ep"
    """Freeze the prototypes for this time at the start (at most 10% of the run); longer if the loss does not fall."""

    centering: Literal["mean", "sinkhorn", "none", "auto"] = "mean"
    """Keeps the teacher from using few prototypes. mean: subtract a running mean (paper, original code). sinkhorn: give
    each prototype an equal share of every micro-batch (SwAV, DINOv2); learns faster in short runs. none: to study
    collapse."""
    center_momentum: Fraction = 0.9
    """EMA momentum of the running mean, with --method.centering mean."""
    sharpening: bool = True
    """Use a low teacher temperature. False sets it to the student's, only to study collapse."""
    student_temp: Temperature = 0.1
    """Softmax temperature of the student."""
    teacher_temp: Temperature | Literal["auto"] = 0.07
    """Softmax temperature of the teacher after the warm-up; lower it if training is unstable."""
    teacher_temp_start: Temperature = 0.04
    """Softmax temperature of the teacher at the start."""
    teacher_temp_warmup: Duration = "30ep"
    """Teacher temperature warm-up, at most 30% of the run; updated per epoch if given in epochs, else per step."""
    momentum: Fraction | Literal["auto"] = 0.996
    """EMA momentum of the teacher at the start; a cosine schedule to momentum_end. auto: from the length of the run."""
    momentum_end: Fraction | Literal["auto"] = 1.0
    """EMA momentum of the teacher at the end of the run."""

    cures: ClassVar[Mapping[str, str]] = {
        "uniform": "First --method.centering sinkhorn --method.teacher-temp 0.02, which make targets sharp; if they "
        "are set already, a third of --optim.lr. Keep --method.sharpening True",
        "one-hot": "Keep --method.centering mean or sinkhorn, lower --method.center-momentum towards 0.9, or raise "
        "--method.teacher-temp-start",
        "constant": "Keep --method.centering mean or sinkhorn and --method.sharpening True, or lower --optim.lr",
    }

    def resolved(self, facts: Facts) -> tuple[ResolvedConfig, list[str]]:
        """Replace every "auto" by a value and limit durations to their fraction of the run.

        Returns:
            The new Config, and the reasons for each change, one line each.
        """
        found: dict[str, tuple[Any, str]] = {}
        values, why = (_SMALL_NETWORK, "as in the demo") if facts.convolutional else (_USUAL, "as in DINO v1")
        for name, value in values.items():
            if getattr(self, name) == "auto":
                found[name] = value, why
        if self.out_dim == "auto" and "out_dim" not in found:
            # Unused prototypes slow down the start of training on small data sets; thresholds as in lightly-train.
            thresholds = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))
            num = next((k for limit, k in thresholds if facts.num_images < limit), 65536)
            found["out_dim"] = num, f"{facts.num_images:,} images"
        if self.momentum == "auto" and "momentum" not in found:
            found["momentum"] = auto_values.momentum(facts)
        found |= auto_values.capped(self, {"freeze_last_layer": 0.1, "teacher_temp_warmup": 0.3}, facts)
        return auto_values.with_auto_values(ResolvedConfig, self, found)


@dataclass(frozen=True)
class ResolvedConfig(Config):
    """Settings of DINO without "auto"."""

    out_dim: Prototypes = 65536
    hidden_dim: Width = 2048
    bottleneck_dim: Width = 256
    head_batch_norm: bool = False
    centering: Literal["mean", "sinkhorn", "none"] = "mean"
    teacher_temp: Temperature = 0.07
    momentum: Fraction = 0.996
    momentum_end: Fraction = 1.0


_USUAL: dict[str, Any] = {
    "hidden_dim": 2048, "bottleneck_dim": 256, "head_batch_norm": False, "centering": "mean", "teacher_temp": 0.04,
    "momentum_end": 1.0,
}  # fmt: skip
"""Values of "auto": the defaults of DINO v1."""
_SMALL_NETWORK: dict[str, Any] = {
    "hidden_dim": 256, "bottleneck_dim": 64, "out_dim": 256, "head_batch_norm": True, "centering": "sinkhorn",
    "teacher_temp": 0.02, "momentum": 0.95, "momentum_end": 0.99,
}  # fmt: skip
"""Values of "auto" with which the small convolutional network learns in some hundred steps (docs/log.md)."""

VIEWS = changed(
    {"global": GlobalView(), "second": View(), "local": LocalViews()},
    {
        "global.size": 224, "local.size": 96, "local.number": 10, "local.crop.scale": (0.05, 0.25),
        "global.blur.p": 1.0, "second.blur.p": 0.1, "local.blur.p": 0.5, "second.solarize.p": 0.2,
    },
)  # fmt: skip
"""The paper's views: two global and ten local crops, with the augmentations of BYOL."""


def views(config: Config, settings: Mapping[str, Any]) -> ViewSpec:
    """Two global views and `local.number` local ones.

    Raises:
        UsageError: The student has no views.
    """
    if config.student_views == "local" and settings["local"].number == 0:
        raise UsageError(
            "--method.student-views local with --views.local.number 0 leaves the student without views",
            "Use --views.local.number 1 or more, or --method.student-views all",
        )
    return global_and_local(settings)


def build(config: ResolvedConfig, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """Build a student and a teacher of the same weights."""
    return _DINO(config, make_backbone)


class _DINO(Method):
    center: Tensor

    def __init__(
        self, config: ResolvedConfig, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]
    ) -> None:
        super().__init__()
        self.config = config

        def network(role: Literal["student", "teacher"]) -> nn.ModuleDict:
            backbone = make_backbone(role)
            head = ProjectionHead(
                backbone.embed_dim, config.out_dim, config.hidden_dim, config.bottleneck_dim, config.head_layers,
                batch_norm=config.head_batch_norm, norm_last_layer=config.norm_last_layer,
            )  # fmt: skip
            return nn.ModuleDict({"backbone": backbone, "head": head})

        self.student, self.teacher = network("student"), network("teacher")
        copy_from(self.teacher, self.student)
        self.register_buffer("center", torch.zeros(1, config.out_dim))
        self._teacher_means: list[Tensor] = []  # [1, K] per micro-batch of the current step

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        crops = {name: group.flatten(0, 1) for name, group in views.crops.items()}  # [V * B, C, H, W]
        batch, num_global = len(views.indices), len(views.crops["global"])

        with torch.no_grad():
            embedding = self.teacher["backbone"]([crops["global"]])[0]
            teacher = to_float32(self.teacher["head"](embedding)).unflatten(0, (num_global, batch))  # [V_t, B, K]
            targets = self.targets(teacher, self.temperature(clock))
            self._teacher_means.append(teacher.mean((0, 1))[None])

        seen = [crop for name, crop in crops.items() if name == "local" or self.config.student_views == "all"]
        head = cast(ProjectionHead, self.student["head"])
        rows = head.bottleneck(torch.cat(self.student["backbone"](seen))).unflatten(0, (-1, batch))  # [V_s, B, D]
        same_views = self.config.student_views == "all"
        loss = cross_entropy(rows, head.last_layer.weight, targets, self.config.student_temp, same_views=same_views)

        metrics = {"loss": loss.detach()} | output_statistics(targets, loss, embedding)
        return StepOutput(
            loss, metrics, {"teacher_temp": self.temperature(clock), "momentum": self.ema_momentum(clock)}
        )

    def before_step(self, clock: Clock) -> None:
        """Freeze the prototypes at the start."""
        if clock.step < clock.in_steps(self.config.freeze_last_layer):
            cast(ProjectionHead, self.student["head"]).drop_prototype_gradients()

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        """EMA updates of the teacher and of the center."""
        ema_(self.teacher, self.student, self.ema_momentum(clock), ok)
        center_(self.center, self._teacher_means, self.config.center_momentum, ok)
        self._teacher_means.clear()

    def targets(self, logits: Tensor, temperature: float) -> Tensor:
        """The teacher's probabilities `[V_t B K]` of logits of that shape, centered and sharpened."""
        if self.config.centering == "sinkhorn":  # over all global views together, as in DINOv2
            return sinkhorn_knopp(logits.flatten(0, 1), temperature).unflatten(0, logits.shape[:2])
        center = self.center if self.config.centering == "mean" else 0.0
        return torch.softmax((logits - center) / temperature, dim=-1)

    def ema_momentum(self, clock: Clock) -> float:
        """Current EMA momentum of the teacher."""
        return warmup_cosine(clock.step, self.config.momentum, self.config.momentum_end, clock.total_steps)

    def temperature(self, clock: Clock) -> float:
        """Current teacher temperature τ_t."""
        config = self.config
        if not config.sharpening:
            return config.student_temp
        if span.in_epochs(config.teacher_temp_warmup):
            position, length = clock.epoch, round(span.parse(config.teacher_temp_warmup)[0])
        else:
            position, length = clock.step, clock.in_steps(config.teacher_temp_warmup)
        return ramp(position, config.teacher_temp_start, config.teacher_temp, length)
