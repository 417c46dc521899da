"""LeJEPA: views predict their common center, and embeddings are normally distributed (Balestriero & LeCun 2025).

One network, no teacher, no stop-gradient, and one setting, `sigreg_weight` (arXiv:2511.08544). SIGReg, the
regularizer, samples new directions in each step and compares the embeddings along each of them with the normal
distribution N(0, 1), by the test of Epps and Pulley (1983). Collapse: projections that are the same for every image
("dead"); then `sigreg` is proportional to the batch, not a few units.

For: small networks and runs of minutes, from 1,000 images on: little to tune; a lower loss means better features
Teacher is: none
Student sees: all views
Teacher sees: nothing
Objective: squared distance of each view's embedding to the mean of the global views', plus SIGReg
Against collapse: SIGReg, embeddings that are normally distributed with unit variance in every direction
Learns from: images without labels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from opendino.core import distributed
from opendino.core.contracts import Backbone, Method, MethodConfig
from opendino.core.ranges import Fraction, Width
from opendino.core.types import Clock, StepOutput, Views, ViewSpec
from opendino.losses import feature_std, to_float32
from opendino.models.heads import MLPHead
from opendino.views.settings import GlobalView, LocalViews, View, changed, global_and_local

_LARGEST, _POINTS = 3.0, 17
"""The characteristic functions are compared at this many points from 0 to the largest, as in the authors' code."""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings of LeJEPA."""

    sigreg_weight: Fraction = 0.05
    """λ, the share of SIGReg in the loss; raise it if projection_spread falls towards 0."""
    num_directions: Width = 256
    """Random directions per step along which the embeddings are compared with N(0, 1)."""
    hidden_dim: Width = 512
    """Hidden width of the projector; ImageNet: 2048."""
    projection_dim: Width = 64
    """Width of the embeddings in the loss."""

    cures: ClassVar[Mapping[str, str]] = {
        "dead": "Raise --method.sigreg-weight (0.1, then 0.2), or lower --optim.lr",
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
    return _LeJEPA(config, make_backbone("student"))


class _LeJEPA(Method):
    product: ClassVar[tuple[Literal["teacher", "student"], ...]] = ("student",)

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        head = MLPHead(backbone.embed_dim, config.hidden_dim, config.projection_dim)
        self.student, self.teacher = nn.ModuleDict({"backbone": backbone, "head": head}), nn.ModuleDict()

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        batch, num_global = len(views.indices), len(views.crops["global"])
        crops = [group.flatten(0, 1) for group in views.crops.values()]  # the global views first, [V * B, C, H, W]
        features = torch.cat(self.student["backbone"](crops))  # [V * B, D]
        embeddings = to_float32(self.student["head"](features)).unflatten(0, (-1, batch))  # [V, B, projection_dim]
        distance = prediction(embeddings, num_global)
        statistic = sigreg(embeddings, directions(clock.step, self.config, embeddings))
        loss = (1 - self.config.sigreg_weight) * distance + self.config.sigreg_weight * statistic
        metrics = {
            "loss": loss.detach(),
            "prediction": distance.detach(),
            "sigreg": statistic.detach(),
            "feature_spread": feature_std(features[:batch].detach()),
            "projection_spread": feature_std(embeddings[0].detach()),
        }
        return StepOutput(loss, metrics)


def prediction(embeddings: Tensor, num_global: int) -> Tensor:
    """Squared distance of each view's embedding to the mean of the global views', mean over everything.

    Args:
        embeddings: `[V B D]`, the global views first.
        num_global: V_g, number of global views.

    Returns:
        Scalar.
    """
    return (embeddings - embeddings[:num_global].mean(0)).square().mean()


def directions(step: int, config: Config, like: Tensor) -> Tensor:
    """Random unit vectors `[D num_directions]`, the same on every rank; a function of the step, so that runs resume."""
    generator = torch.Generator(like.device).manual_seed(step)
    drawn = torch.randn(
        like.shape[-1], config.num_directions, generator=generator, device=like.device, dtype=like.dtype
    )
    return drawn / drawn.norm(dim=0)


def sigreg(embeddings: Tensor, directions: Tensor) -> Tensor:
    """SIGReg: the statistic of Epps and Pulley against N(0, 1), mean over views and directions.

    N · ∫ |φ(t) - exp(-t²/2)|² exp(-t²/2) dt, where φ is the characteristic function of the projections of all ranks'
    N images; the trapezoidal rule over t from -3 to 3.

    Args:
        embeddings: `[V B D]` of this rank.
        directions: `[D M]`, unit vectors.

    Returns:
        Scalar: below 1 for normally distributed embeddings, proportional to N for a collapse. Averaged over ranks its
        gradient is that of the statistic of all images.
    """
    num_images = embeddings.shape[1] * distributed.world_size()
    t = torch.linspace(0, _LARGEST, _POINTS, device=embeddings.device, dtype=embeddings.dtype)
    normal = torch.exp(-t.square() / 2)
    with torch.autocast(embeddings.device.type, enabled=False):
        angles = (embeddings @ directions)[..., None] * t  # [V, B, M, points]
    real, imaginary = (_mean_over_ranks(part.mean(1)) for part in (angles.cos(), angles.sin()))  # [V, M, points]
    errors = (real - normal).square() + imaginary.square()
    # The integrand is symmetric: twice the integral from 0.
    return 2 * num_images * torch.trapezoid(errors * normal, t, dim=-1).mean()


def _mean_over_ranks(mine: Tensor) -> Tensor:
    """The mean over ranks, with this rank's gradient only: training averages the gradients of all ranks."""
    return mine + (distributed.all_reduce_mean(mine.detach()) - mine.detach())
