"""Supervised: a classifier from labels, cross-entropy alone; fine-tunes a trained network with `opendino finetune`.
With masks as labels it classifies every pixel.

For: a classifier that starts from a trained network, where the frozen features are not good enough
Teacher is: none
Student sees: one view of a labeled image
Teacher sees: nothing
Objective: cross-entropy on the labels, with label smoothing
Against collapse: the labels
Learns from: labeled images alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from opendino.core import auto_values
from opendino.core.contracts import Backbone, Method, MethodConfig
from opendino.core.errors import UsageError
from opendino.core.ranges import CountOrZero, Fraction
from opendino.core.types import Clock, Facts, StepOutput, ViewGroup, Views, ViewSpec
from opendino.losses import feature_std, to_float32
from opendino.models.lora import add_adapters, with_merged_adapters
from opendino.views.settings import GlobalView, changed

IGNORED = 255
"""Class of pixels to ignore, as in masks."""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings of supervised training. Labels are folder names or a CSV file, see `--labels`."""

    label_smoothing: Fraction = 0.1
    """Label smoothing in [0, 1]: this share of the target is spread over all classes; 0 for none."""
    num_classes: CountOrZero | Literal["auto"] = "auto"
    """Number of classes. auto: the classes of the data."""
    lora_rank: CountOrZero = 0
    """Freeze the network and train low-rank adapters (LoRA) of this rank, e.g. 8: less memory. 0: train all weights."""

    labeled_only: ClassVar[bool] = True

    def resolved(self, facts: Facts) -> tuple[ResolvedConfig, list[str]]:
        """Replace every "auto" by a value; also returns the reasons, one line each."""
        found = {"num_classes": (facts.num_classes, "the classes of the data")} if self.num_classes == "auto" else {}
        return auto_values.with_auto_values(ResolvedConfig, self, found)


@dataclass(frozen=True)
class ResolvedConfig(Config):
    """Settings of supervised training without "auto"."""

    num_classes: CountOrZero = 0


# Mild: a class may be a matter of color, or of what a small crop would cut off.
VIEWS = changed(
    {"global": GlobalView()}, {"global.crop.scale": (0.5, 1.0), "global.color_jitter.p": 0.0, "global.gray.p": 0.0}
)
"""The one view."""


def views(config: Config, settings: Mapping[str, Any]) -> ViewSpec:
    """One view; every image of a batch has a label."""
    view = settings["global"]
    assert view.size != "auto"
    return ViewSpec((ViewGroup("global", view.size, (view,)),), labeled_frac=1.0)


def build(config: ResolvedConfig, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """Build the network with a linear classifier.

    Raises:
        UsageError: The data has fewer than two classes, or the rank of the adapters is too high.
        UserError: There are to be adapters, and peft is not installed or the network has no linear layers.
    """
    if config.num_classes < 2:
        raise UsageError(
            f"supervised needs labels of at least 2 classes, but the data has {config.num_classes} classes",
            "Sort the images into one folder per class, or use --labels FILE.csv",
        )
    backbone = make_backbone("student")
    if config.lora_rank:
        add_adapters(backbone, config.lora_rank)
    return _Supervised(config, backbone)


class _Supervised(Method):
    product: ClassVar[tuple[Literal["teacher", "student"], ...]] = ("student",)

    def __init__(self, config: ResolvedConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        classifier = nn.Linear(backbone.embed_dim, config.num_classes)
        self.student = nn.ModuleDict({"backbone": backbone, "classifier": classifier})
        self.teacher = nn.ModuleDict()

    def networks(self) -> dict[str, nn.ModuleDict]:
        """The network; adapters are part of its weights, so that everything that reads the run sees a plain model."""
        return {"student": with_merged_adapters(self.student) if self.config.lora_rank else self.student}

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        if views.pixel_labels:
            return self._pixels(views.crops["global"][0], views.pixel_labels["global"][0].long())
        embedding = self.student["backbone"]([views.crops["global"][0]])[0]  # [B, D]
        logits = to_float32(self.student["classifier"](embedding))  # [B, classes]
        loss = cross_entropy(logits, views.labels, label_smoothing=self.config.label_smoothing)
        right = (logits.detach().argmax(1) == views.labels).float().mean()
        metrics = {
            "loss": loss.detach(),
            "train_accuracy": 100 * right,
            "feature_spread": feature_std(embedding.detach()),
        }
        return StepOutput(loss, metrics)

    def _pixels(self, images: Tensor, labels: Tensor) -> StepOutput:
        """Classify the pixels of images `[B C H W]` from their patches; labels `[B H W]`."""
        found = self.student["backbone"]([images], tokens=True)[0]
        scores = to_float32(self.student["classifier"](found.patches))  # [B, N, classes]
        scores = scores.mT.unflatten(2, found.grid)
        scores = interpolate(scores, images.shape[-2:], mode="bilinear")  # as a segmentation head does
        loss = balanced_cross_entropy(scores, labels, self.config.label_smoothing)
        known = labels != IGNORED
        right = ((scores.detach().argmax(1) == labels) & known).sum() / known.sum().clamp_min(1)
        metrics = {
            "loss": loss.detach(),
            "train_accuracy": 100 * right,
            "feature_spread": feature_std(found.patches.detach().flatten(0, 1)),
        }
        return StepOutput(loss, metrics)


def balanced_cross_entropy(scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of pixels: its mean over those of each class, and then over the classes that occur.

    Args:
        scores: float `[B K H W]`.
        labels: int64 `[B H W]`, classes 0 to K - 1; 255 for pixels to ignore.
        label_smoothing: This share of the target is spread over all classes.

    Returns:
        Scalar; 0 if all pixels are to be ignored.
    """
    losses = cross_entropy(scores, labels, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="none")
    classes = torch.where(labels == IGNORED, scores.shape[1], labels).flatten()  # [B * H * W]
    number = scores.new_zeros(scores.shape[1] + 1)
    sums = number.scatter_add(0, classes, losses.flatten())[:-1]
    counts = number.scatter_add(0, classes, torch.ones_like(losses).flatten())[:-1]
    return (sums / counts.clamp_min(1)).sum() / (counts > 0).sum().clamp_min(1)
