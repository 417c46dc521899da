"""SimSiam: one network, a predictor and a stop-gradient (Chen & He 2021, arXiv:2011.10566).

For: a first look at a method of your own
Teacher is: none
Student sees: two views
Teacher sees: nothing
Objective: cosine similarity of each view's prediction and the other view's projection
Against collapse: the predictor and the stop-gradient
Learns from: images without labels
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.functional import cosine_similarity

from opendino.core.contracts import Method, MethodConfig
from opendino.core.ranges import Width
from opendino.core.types import StepOutput, ViewGroup, ViewSpec
from opendino.losses import feature_std, to_float32
from opendino.models.heads import MLPHead
from opendino.views.settings import GlobalView, View, changed


@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings of SimSiam."""

    hidden_dim: Width = 512
    """Hidden width of the projector; the predictor's is a quarter of it."""


VIEWS = changed({"global": GlobalView(), "second": View()}, {"all.crop.scale": "auto", "all.blur.p": "auto"})


def views(config, settings):
    return ViewSpec((ViewGroup("global", settings["global"].size, (settings["global"], settings["second"])),))


def build(config, make_backbone):
    return SimSiam(config, make_backbone("student"))


class SimSiam(Method):
    product = ("student",)  # what a run exports

    def __init__(self, config, backbone):
        super().__init__()
        head = MLPHead(backbone.embed_dim, config.hidden_dim, config.hidden_dim)
        predictor = MLPHead(config.hidden_dim, config.hidden_dim // 4, config.hidden_dim)
        self.student = nn.ModuleDict({"backbone": backbone, "head": head, "predictor": predictor})
        self.teacher = nn.ModuleDict()

    def forward(self, views, clock):
        backbone, head = self.student["backbone"], self.student["head"]
        first, second = (head(each) for each in backbone(list(views.crops["global"])))  # [B, D] of each view
        loss = (self.distance(first, second) + self.distance(second, first)) / 2
        metrics = {"loss": loss.detach(), "projection_spread": feature_std(first.detach())}
        return StepOutput(loss, metrics)

    def distance(self, one, other):
        predictor = self.student["predictor"]
        return -cosine_similarity(to_float32(predictor(one)), to_float32(other.detach()), dim=-1).mean()
