"""iBOT: DINO on the image and on masked patches (Zhou et al. 2022, arXiv:2111.07832), with KoLeo as in DINOv2.

In addition to DINO's objective, blocks of patches of the global views are hidden from the student, which predicts the
teacher's output for each of them. Patches have their own center. KoLeo (DINOv2, arXiv:2304.07193) spreads the features
of the images of a batch. Two numbers that the paper draws are fixed here, see `views.patch_masks`: of the two global
views of an image one has a mask, and each mask has the same number of patches.
Collapse: "uniform", "one-hot", "constant" or "dead" as in `dino`, of images or of patches; the evidence says of which.

For: vision transformers, and features of patches (segmentation, matching, tracking); a sixth slower than dino
Teacher is: a moving average of the student, momentum 0.996 → 1
Student sees: all views; in one global view of each image some patches are masked
Teacher sees: the global views, without masks
Objective: dino's cross-entropy, plus the same of each masked patch with the teacher's patch in the same place
Against collapse: centering and sharpening of the teacher's output, for images and patches apart; KoLeo
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
from opendino.core.contracts import Backbone, Method, MethodConfig
from opendino.core.ranges import Duration, Fraction, NotNegative, Temperature, Width
from opendino.core.schedule_formulas import ramp, warmup_cosine
from opendino.core.types import BlockMasks, Clock, Facts, Features, StepOutput, Views, ViewSpec
from opendino.losses import cross_entropy, koleo, output_statistics, to_float32
from opendino.models.ema_teacher import center_, copy_from, ema_
from opendino.models.heads import ProjectionHead
from opendino.views.settings import GlobalView, LocalViews, View, changed, global_and_local

_Prototypes = Annotated[int, Meta(ge=2, le=2**24)]


@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings of iBOT. Defaults are the paper's for ViT-S/16, and DINOv2's for KoLeo; the views are `VIEWS`."""

    mask_frac: Annotated[float, Meta(gt=0, lt=1)] = 0.3
    """Fraction of the patches that a mask covers; the paper draws it from 0.1 to 0.5."""
    patch_weight: NotNegative = 0.5
    """Weight of the patch loss, a mean over masked patches. 0.5 is the paper's 1: half of its views have no mask."""
    koleo_weight: NotNegative = 0.1
    """Weight of KoLeo, for each global view; 0 turns it off, as in iBOT. 0.1: DINOv2."""
    shared_head: bool = True
    """Use one head for images and patches (iBOT); False: one each (DINOv2, for large networks and data sets)."""
    out_dim: _Prototypes = 8192
    """Number of prototypes K (output dimension of the head); DINOv2: 65536."""
    patch_out_dim: _Prototypes = 8192
    """Number of prototypes of the patches, if shared_head is False."""
    hidden_dim: Width = 2048
    """Hidden width of the head MLP."""
    bottleneck_dim: Width = 256
    """Width of the head's bottleneck, before the prototype layer."""
    head_layers: Annotated[int, Meta(ge=1, le=64)] = 3
    """Number of linear layers in the head MLP."""
    norm_last_layer: bool = True
    """Fix the norms of the prototypes at 1. False can improve small ViTs, but is less stable."""
    freeze_last_layer: Duration = "1ep"
    """Freeze the prototypes for this time at the start (at most 10% of the run); longer if the loss does not fall."""

    center_momentum: Fraction = 0.9
    """EMA momentum of the centers of images and patches."""
    student_temp: Temperature = 0.1
    """Softmax temperature of the student."""
    teacher_temp: Temperature = 0.07
    """Softmax temperature of the teacher after the warm-up; lower it if training is unstable."""
    teacher_temp_start: Temperature = 0.04
    """Softmax temperature of the teacher at the start."""
    teacher_temp_warmup: Duration = "30ep"
    """Teacher temperature warm-up, at most 30% of the run."""
    momentum: Fraction | Literal["auto"] = 0.996
    """EMA momentum of the teacher at the start; a cosine schedule to momentum_end. auto: from the length of the run."""
    momentum_end: Fraction = 1.0
    """EMA momentum of the teacher at the end of the run."""

    cures: ClassVar[Mapping[str, str]] = {
        "uniform": "Halve --method.teacher-temp; if that does not help, a third of --optim.lr",
        "one-hot": "Lower --method.center-momentum towards 0.9, or raise --method.teacher-temp-start",
        "constant": "Lower --method.center-momentum towards 0.9, or lower --optim.lr",
    }

    def resolved(self, facts: Facts) -> tuple[ResolvedConfig, list[str]]:
        """Replace every "auto" by a value and limit durations to their share of the run; also returns the reasons."""
        found: dict[str, tuple[Any, str]] = {}
        if self.momentum == "auto":
            found["momentum"] = auto_values.momentum(facts)
        found |= auto_values.capped(self, {"freeze_last_layer": 0.1, "teacher_temp_warmup": 0.3}, facts)
        return auto_values.with_auto_values(ResolvedConfig, self, found)


@dataclass(frozen=True)
class ResolvedConfig(Config):
    """Settings of iBOT without "auto"."""

    momentum: Fraction = 0.996


VIEWS = changed(
    {"global": GlobalView(), "second": View(), "local": LocalViews()},
    {
        "global.size": 224, "local.size": 96, "local.number": 10,
        "global.crop.scale": (0.25, 1.0), "second.crop.scale": (0.25, 1.0), "local.crop.scale": (0.05, 0.25),
        "global.blur.p": 1.0, "second.blur.p": 0.1, "local.blur.p": 0.5, "second.solarize.p": 0.2,
    },
)  # fmt: skip
"""The views of `dino`; the paper's for ViT-S/16 too."""


def views(config: Config, settings: Mapping[str, Any]) -> ViewSpec:
    """Two global views, one of them with a mask, and `local.number` local ones."""
    return global_and_local(settings, BlockMasks(num_views=1, frac=config.mask_frac))


def build(config: ResolvedConfig, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """Build a student and a teacher of the same weights.

    Raises:
        UserError: The network has no patches that can be masked.
    """
    return _IBOT(config, make_backbone)


class _IBOT(Method):
    center: Tensor
    patch_center: Tensor

    def __init__(
        self, config: ResolvedConfig, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]
    ) -> None:
        super().__init__()
        self.config = config
        self.patch_head = "head" if config.shared_head else "patch_head"

        def head(in_dim: int, out_dim: int) -> ProjectionHead:
            return ProjectionHead(
                in_dim, out_dim, config.hidden_dim, config.bottleneck_dim, config.head_layers,
                norm_last_layer=config.norm_last_layer,
            )  # fmt: skip

        def network(role: Literal["student", "teacher"]) -> nn.ModuleDict:
            backbone = make_backbone(role)
            backbone.learn_mask_token()
            made = nn.ModuleDict({"backbone": backbone, "head": head(backbone.embed_dim, config.out_dim)})
            if not config.shared_head:
                made["patch_head"] = head(backbone.embed_dim, config.patch_out_dim)
            return made

        self.student, self.teacher = network("student"), network("teacher")
        copy_from(self.teacher, self.student)
        self.register_buffer("center", torch.zeros(1, config.out_dim))
        patch_out_dim = config.out_dim if config.shared_head else config.patch_out_dim
        self.register_buffer("patch_center", torch.zeros(1, patch_out_dim))
        self._teacher_means: list[tuple[Tensor, Tensor]] = []  # [1, K] of images and patches per micro-batch

    def head_bytes(self, spec: ViewSpec) -> float:
        """Bytes for the masked patches of an image: what the student's head keeps, and the logits of both networks."""
        group = next(group for group in spec.groups if group.masks)
        assert group.masks is not None
        rows, config = group.masks.num_views * group.masks.count(spec.grid(group)), self.config
        kept = cast(Backbone, self.student["backbone"]).embed_dim + 2 * config.hidden_dim * (config.head_layers - 1)
        # Teacher: logits and targets. Student: logits, their gradient, and a copy of the targets.
        return 4.0 * rows * (kept + 3 * config.bottleneck_dim + 5 * self.patch_center.shape[1])

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        crops = {name: group.flatten(0, 1) for name, group in views.crops.items()}  # [V * B, C, H, W]
        config, masks, batch = self.config, views.masks["global"], len(views.indices)
        shape = len(views.crops["global"]), batch  # V_g, B

        with torch.no_grad():
            seen: Features = self.teacher["backbone"]([crops["global"]], tokens=True)[0]
            logits = to_float32(self.teacher["head"](seen.cls)).unflatten(0, shape)  # [V_g, B, K]
            hidden = _select(seen.patches, masks.indices)  # [M, D], what the student has to predict
            patch_logits = to_float32(self.teacher[self.patch_head](hidden))  # [M, K]
            temperature = self.temperature(clock)
            targets = torch.softmax((logits - self.center) / temperature, dim=-1)
            patch_targets = torch.softmax((patch_logits - self.patch_center) / temperature, dim=-1)
            self._teacher_means.append((logits.mean((0, 1))[None], patch_logits.mean(0)[None]))

        found: Features = self.student["backbone"]([crops["global"]], [masks.where.flatten(0, 1)], tokens=True)[0]
        # The local views in a pass of their own: only their CLS tokens are used, so the last block computes no others.
        local = self.student["backbone"]([crops["local"]]) if "local" in crops else []
        head, patch_head = (cast(ProjectionHead, self.student[name]) for name in ("head", self.patch_head))
        rows = head.bottleneck(torch.cat([found.cls, *local])).unflatten(0, (-1, batch))  # [V_s, B, bottleneck_dim]
        image_loss = cross_entropy(rows, head.last_layer.weight, targets, config.student_temp, same_views=True)
        patch_rows = patch_head.bottleneck(_select(found.patches, masks.indices))[None]  # [1, M, bottleneck_dim]
        patch_loss = cross_entropy(
            patch_rows, patch_head.last_layer.weight, patch_targets[None], config.student_temp, same_views=False
        )
        loss = image_loss + config.patch_weight * patch_loss
        metrics = {"image_loss": image_loss.detach(), "patch_loss": patch_loss.detach()}
        if config.koleo_weight:
            spread = torch.stack([koleo(view) for view in found.cls.unflatten(0, shape)])  # [V_g]
            loss = loss + config.koleo_weight * spread.sum()
            metrics["koleo"] = spread.mean().detach()
        metrics |= output_statistics(targets.flatten(0, 1), image_loss, seen.cls)
        metrics |= output_statistics(patch_targets, patch_loss, hidden, "patch_")
        metrics["patch_center_norm"] = self.patch_center.norm()
        numbers = {"teacher_temp": temperature, "momentum": self.ema_momentum(clock)}
        return StepOutput(loss, {"loss": loss.detach()} | metrics, numbers)

    def before_step(self, clock: Clock) -> None:
        """Freeze the prototypes at the start."""
        if clock.step < clock.in_steps(self.config.freeze_last_layer):
            for name in {"head", self.patch_head}:
                cast(ProjectionHead, self.student[name]).drop_prototype_gradients()

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        """EMA updates of the teacher and of both centers."""
        ema_(self.teacher, self.student, self.ema_momentum(clock), ok)
        for center, means in zip((self.center, self.patch_center), zip(*self._teacher_means, strict=True), strict=True):
            center_(center, means, self.config.center_momentum, ok)
        self._teacher_means.clear()

    def ema_momentum(self, clock: Clock) -> float:
        """Current EMA momentum of the teacher."""
        return warmup_cosine(clock.step, self.config.momentum, self.config.momentum_end, clock.total_steps)

    def temperature(self, clock: Clock) -> float:
        """Current teacher temperature τ_t, of images and patches."""
        config = self.config
        length = clock.in_steps(config.teacher_temp_warmup)
        return ramp(clock.step, config.teacher_temp_start, config.teacher_temp, length)


def _select(patches: Tensor, indices: Tensor) -> Tensor:
    """Patches `[V · B N D]` → those at positions in `[V · B · N]`, `[M D]`."""
    return patches.flatten(0, 1).index_select(0, indices)
