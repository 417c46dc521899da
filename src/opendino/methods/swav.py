"""SwAV: predict from one view the cluster of another (Caron et al. 2020, arXiv:2006.09882), by Sinkhorn-Knopp.

One network. The global views are assigned to prototypes so that each prototype gets equally many images of the batch
(Sinkhorn-Knopp over all devices); every other view of the image must predict that assignment, its code. The paper's
queue for small batches is left out. Collapse: the codes are uniform and the loss stays at ln K ("uniform").

For: 1,000 to 100,000 images and k-NN or search, in batches of 64 images or more; no teacher, so less memory than dino
Teacher is: none; the network's own codes are the targets, without a gradient
Student sees: all views
Teacher sees: nothing
Objective: cross-entropy of the prediction of one view and the code of another, every pair with a global view
Against collapse: codes that use every prototype equally
Learns from: images without labels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from msgspec import Meta
from torch import nn
from torch.nn.functional import linear

from opendino.core.contracts import Backbone, Method, MethodConfig
from opendino.core.ranges import Duration, Temperature, Width
from opendino.core.types import Clock, StepOutput, Views, ViewSpec
from opendino.losses import cross_entropy, entropy, feature_std, sinkhorn_knopp, to_float32
from opendino.models.heads import ProjectionHead
from opendino.views.settings import GlobalView, LocalViews, View, changed, global_and_local


@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings of SwAV. Widths are for small sets; the paper's for ImageNet are in the help."""

    out_dim: Annotated[int, Meta(ge=2, le=2**24)] = 512
    """Number of prototypes K: several times the number of kinds of images; ImageNet: 3000."""
    hidden_dim: Width = 512
    """Hidden width of the head MLP; ImageNet: 2048."""
    bottleneck_dim: Width = 128
    """Width of the head's output, before the prototypes."""
    temperature: Temperature = 0.1
    """Softmax temperature of the predictions."""
    code_temp: Temperature = 0.02
    """Temperature of the codes; lower it if they stay uniform (loss at ln K). The paper's, for ImageNet, is 0.05."""
    freeze_prototypes: Duration = "1%"
    """Keep the prototypes fixed for this time at the start; longer if the loss does not fall."""

    cures: ClassVar[Mapping[str, str]] = {
        "uniform": "Lower --method.code-temp (0.02, then 0.01), raise --batch, or lower --optim.lr",
        "one-hot": "Keep the prototypes fixed for longer (--method.freeze-prototypes 5%), or lower --optim.lr",
        "constant": "Keep the prototypes fixed for longer (--method.freeze-prototypes 5%), or lower --optim.lr",
    }


VIEWS = changed(
    {"global": GlobalView(), "second": View(), "local": LocalViews()},
    {"all.crop.scale": "auto", "all.blur.p": "auto", "second.solarize.p": 0.2},
)
"""The views of `dino`, chosen from the images and the device."""


def views(config: Config, settings: Mapping[str, Any]) -> ViewSpec:
    """Two global views and `local.number` local ones."""
    return global_and_local(settings)


def build(config: Config, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """Build the student; there is no teacher."""
    return _SwAV(config, make_backbone("student"))


class _SwAV(Method):
    product: ClassVar[tuple[Literal["teacher", "student"], ...]] = ("student",)

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        head = ProjectionHead(
            backbone.embed_dim, config.out_dim, config.hidden_dim, config.bottleneck_dim, num_layers=2, batch_norm=True
        )
        self.student, self.teacher = nn.ModuleDict({"backbone": backbone, "head": head}), nn.ModuleDict()

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        batch, num_global = len(views.indices), len(views.crops["global"])
        crops = [group.flatten(0, 1) for group in views.crops.values()]  # the global views first, [V * B, C, H, W]
        head = cast(ProjectionHead, self.student["head"])
        features = torch.cat(self.student["backbone"](crops))  # [V * B, D]
        rows = head.bottleneck(features).unflatten(0, (-1, batch))  # [V, B, bottleneck_dim]
        prototypes = head.last_layer.weight  # [K, bottleneck_dim]
        with torch.no_grad():
            scores = to_float32(linear(rows[:num_global].detach(), prototypes))  # [V_g, B, K]
            codes = sinkhorn_knopp(scores, self.config.code_temp)
            used = (scores / self.config.temperature).softmax(-1).mean((0, 1))  # [K], share of each prototype
        loss = cross_entropy(rows, prototypes, codes, self.config.temperature, same_views=True)
        max_entropy = math.log(self.config.out_dim)
        metrics = {
            "loss": loss.detach(),
            "entropy_frac": entropy(codes).mean() / max_entropy,
            "marginal_frac": entropy(used) / max_entropy,
            "feature_spread": feature_std(features[:batch].detach()),
            "projection_spread": feature_std(rows[0].detach()),
        }
        return StepOutput(loss, metrics)

    def before_step(self, clock: Clock) -> None:
        """Freeze the prototypes at the start."""
        if clock.step < clock.in_steps(self.config.freeze_prototypes):
            cast(ProjectionHead, self.student["head"]).drop_prototype_gradients()
