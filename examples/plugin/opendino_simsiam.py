"""SimSiam: two views of an image, one network, a predictor and a stop-gradient (Chen & He 2021, arXiv:2011.10566).

A method is a module with four names: `Config`, `VIEWS`, `views` and `build`, see `opendino.core.contracts.Method`.

For: a first look at a method of your own
Teacher is: none
Student sees: two views
Teacher sees: nothing
Objective: cosine similarity of each view's prediction and the other view's projection
Against collapse: the predictor and the stop-gradient
Learns from: unlabeled images
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from opendino.core.contracts import Backbone, Method
from opendino.core.ranges import Checked, Width
from opendino.core.types import Clock, Facts, StepOutput, ViewGroup, Views, ViewSpec
from opendino.models.heads import MLPHead
from opendino.views.settings import GlobalView, View, changed


@dataclass(frozen=True)
class Config(Checked):
    """Settings of SimSiam."""

    hidden_dim: Width = 512
    """Hidden width of the projector; the predictor's is a quarter of it."""

    def resolved(self, facts: Facts) -> tuple[Config, list[str]]:
        """Replace every "auto" by a value: there is none."""
        return self, []


VIEWS = changed({"global": GlobalView(), "second": View()}, {"all.crop.scale": (0.2, 1.0), "all.blur.p": 0.5})
"""Two views of the same size with the same augmentations, see docs/augmentations.md."""


def views(config: Config, settings: Mapping[str, Any]) -> ViewSpec:
    """The two views as one group."""
    return ViewSpec((ViewGroup("global", settings["global"].size, (settings["global"], settings["second"])),))


def build(config: Config, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """Build the student; there is no teacher."""
    return SimSiam(config, make_backbone("student"))


class SimSiam(Method):
    """The student is the network to use."""

    product = ("student",)

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        head = MLPHead(backbone.embed_dim, config.hidden_dim, config.hidden_dim)
        predictor = MLPHead(config.hidden_dim, config.hidden_dim // 4, config.hidden_dim)
        self.student = nn.ModuleDict({"backbone": backbone, "head": head, "predictor": predictor})
        self.teacher = nn.ModuleDict()

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        """Negative cosine similarity, symmetric over the two views (equation 2)."""
        first, second = (
            self.student["head"](feature) for feature in self.student["backbone"](list(views.crops["global"].unbind()))
        )
        loss = (self.distance(first, second) + self.distance(second, first)) / 2
        return StepOutput(loss, {"loss": loss.detach(), "projection_spread": first.detach().float().std(0).mean()}, {})

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """-cos(prediction of one, other), without a gradient to the other, mean over images."""
        return -cosine_similarity(self.student["predictor"](one), other.detach(), dim=-1).mean()
