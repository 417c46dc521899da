"""Knowledge distillation: a small student learns from a frozen pretrained teacher (Hinton et al. 2015).

arXiv:1503.02531. Teacher and student can have different architectures. Both get the same view (Beyer et al. 2022,
arXiv:2106.05237), or the teacher gets the whole image, and its output is computed once per image and cached.

For: a small, fast network for a task that a large trained one already does
Teacher is: a trained, usually larger network, frozen
Student sees: one augmented view
Teacher sees: the same view, or the whole image
Objective: features: squared distance to the teacher's standardized features; logits: T² times the KL divergence
Against collapse: not needed, the targets are fixed
Learns from: images and the teacher's outputs; optionally labels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, kl_div, log_softmax

from opendino.core.contracts import Backbone, Method, MethodConfig
from opendino.core.errors import UsageError
from opendino.core.ranges import Fraction, Temperature
from opendino.core.types import (
    Clock,
    Facts,
    Features,
    StepOutput,
    ViewGroup,
    Views,
    ViewSpec,
)
from opendino.losses import feature_std, to_float32
from opendino.models.input_conversion import InputConversion, input_conversion
from opendino.models.load import Model, load
from opendino.models.separate_channels import network_of
from opendino.views.settings import GlobalView, view

VIEWS = {"global": GlobalView()}
"""The student's view; the teacher's view is resized to the teacher's own size."""
WHOLE = view({"crop.scale": (1.0, 1.0), "crop.ratio": (1.0, 1.0), "flip.p": 0.0, "color_jitter.p": 0.0, "gray.p": 0.0})
"""The largest center crop, without random augmentation."""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings of distillation from a frozen teacher."""

    teacher: str = ""
    """Required. The teacher: a run folder, an imported or exported model folder, or timm:NAME."""
    objective: Literal["features", "logits"] = "features"
    """Output to match. features: works with any teacher; logits: needs a teacher with a classifier."""
    teacher_view: Literal["same", "whole"] = "same"
    """same: the student's view. whole: the center crop; faster, since its features are cached after the first epoch."""
    temperature: Temperature = 4.0
    """Softmax temperature T of teacher and student; only for objective=logits."""
    label_weight: Fraction = 0.0
    """Weight in [0, 1] of cross-entropy with labels of the teacher's classes; only for objective=logits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_weight and self.objective != "logits":
            raise UsageError(f"label_weight={self.label_weight} needs objective=logits", "Use both, or neither")

    def resolved(self, facts: Facts) -> tuple[Config, list[str]]:
        """Replace every "auto" by a value, and the teacher by its absolute path; also returns the reasons."""
        path = Path(self.teacher).expanduser()
        found = replace(self, teacher=str(path.absolute()) if self.teacher and path.exists() else self.teacher)
        return found, []


def views(config: Config, settings: Mapping[str, Any]) -> ViewSpec:
    """The student's view, and the teacher's view if it is different."""
    student = settings["global"]
    assert student.size != "auto"
    groups = [ViewGroup("global", student.size, (student,))]
    if config.teacher_view == "whole":
        groups.append(ViewGroup("whole", student.size, (WHOLE,)))
    return ViewSpec(tuple(groups), labeled_frac=0.25 if config.label_weight else 0.0)


def build(config: Config, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """Build a new student and load the frozen teacher.

    Raises:
        UsageError: No teacher is given, or it has no classifier and `objective` is "logits".
        UserError: The teacher does not exist.
    """
    if not config.teacher:
        raise UsageError("Distillation needs a teacher", "Set --method.teacher to a run or to timm:NAME")
    with torch.device("cpu"):  # read the weights even if the caller builds on the meta device
        model = load(config.teacher, classifier=config.objective == "logits")
    return _Distillation(config, model, make_backbone("student"))


class _Distillation(Method):
    product: ClassVar[tuple[Literal["teacher", "student"], ...]] = ("student",)

    def __init__(self, config: Config, model: Model, student: Backbone) -> None:
        super().__init__()
        self.config = config
        frozen = _Frozen(model, student.in_chans)
        self.teacher = nn.ModuleDict({"backbone": frozen})
        self.student = nn.ModuleDict({"backbone": student})
        if model.classifier is not None:
            self.teacher["classifier"], self.classes = model.classifier, model.classes
            if not self.classes and not config.label_weight:  # of timm; the classes of the images are others
                self.classes = tuple(map(str, range(model.classifier.out_features)))
            self.student["classifier"] = nn.Linear(student.embed_dim, model.classifier.out_features)
        else:
            self.student["head"] = nn.Linear(student.embed_dim, frozen.embed_dim)
        self.teacher.requires_grad_(False)
        self._cached_features: dict[int, Tensor] = {}

    def set_preprocessing(self, preprocessing: Mapping[str, Any]) -> None:
        """Feed the teacher what it was trained on: its own normalization and range of values, not the student's.

        Raises:
            UserError: The teacher takes another number of channels, other channels, or the range is not comparable.
        """
        cast(_Frozen, self.teacher["backbone"]).take_images_of(preprocessing)

    def train(self, mode: bool = True) -> _Distillation:
        """Keep the teacher in eval mode, so that its batch norm statistics do not change."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        embedding = self._teacher_features(views)  # [B, D_teacher]
        output = self.student["backbone"]([views.crops["global"][0]])[0]  # [B, D]
        metrics = {"feature_spread": feature_std(output.detach())}
        if self.config.objective == "features":
            loss = feature_distance(self.student["head"](output), embedding)
        else:
            logits = to_float32(self.student["classifier"](output))
            loss = soft_cross_entropy(
                logits, to_float32(self.teacher["classifier"](embedding)), self.config.temperature
            )
            metrics["kl"] = loss.detach()
            if self.config.label_weight:
                hard = cross_entropy(logits[: views.num_labeled], views.labels[: views.num_labeled])
                metrics["classification"] = hard.detach()
                loss = (1 - self.config.label_weight) * loss + self.config.label_weight * hard
        return StepOutput(loss, {"loss": loss.detach()} | metrics)

    @torch.no_grad()
    def _teacher_features(self, views: Views) -> Tensor:
        """The teacher's features `[B D]`; those of whole images are cached by index."""
        if self.config.teacher_view == "same":
            return self.teacher["backbone"]([views.crops["global"][0]])[0]
        indices = views.indices.tolist()
        if not all(index in self._cached_features for index in indices):
            # Compute the whole batch, including cached images, so that shapes and step time do not vary.
            features = self.teacher["backbone"]([views.crops["whole"][0]])[0]
            self._cached_features.update(zip(indices, features, strict=True))
        return torch.stack([self._cached_features[index] for index in indices])


class _Frozen(Backbone):
    """A pretrained backbone that takes the student's views, and converts them to its own size and normalization.

    Args:
        model: The teacher.
        in_chans: C, number of channels that the student takes. If it is 1, a teacher that takes each channel by itself
            is reduced to its network of one channel.
    """

    def __init__(self, model: Model, in_chans: int) -> None:
        super().__init__()
        self.inner = network_of(model.backbone) if in_chans == 1 else model.backbone
        self.name, self.kwargs, self.embed_dim = self.inner.name, self.inner.kwargs, self.inner.embed_dim
        self.in_chans, self._preprocessing = in_chans, model.preprocessing
        self.image_px: int = model.preprocessing["image_px"]

    def take_images_of(self, student: Mapping[str, Any]) -> None:
        """Convert images from now on that have this preprocessing."""
        found = input_conversion(student, self.in_chans, self._preprocessing, self.inner.in_chans)
        for name, values in found._asdict().items():
            self.register_buffer(name, values)

    def forward(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, tokens: bool = False
    ) -> list[Tensor] | list[Features]:
        """Features of batches that are normalized for the student."""
        return self.inner([self._convert(batch) for batch in images], masks, tokens)

    def features(self, images: Tensor) -> Features:
        """All tokens of a batch that is normalized for the student."""
        return self.inner.features(self._convert(images))

    def _convert(self, images: Tensor) -> Tensor:
        side = (self.image_px, self.image_px)
        if images.shape[-2:] != side:
            images = interpolate(images, side, mode="bilinear", antialias=True)
        return InputConversion(*(self.get_buffer(name) for name in InputConversion._fields))(images)


def feature_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance to the teacher's features, each dimension standardized over the batch.

    Standardizing makes the loss independent of the scale of the features and of their mean over images, which is most
    of the vector in networks that end in a ReLU. Predicting the mean gives a loss of 1.

    Args:
        prediction: `[B D]`, a linear projection of the student's features.
        target: `[B D]`, the teacher's features.

    Returns:
        Scalar loss.
    """
    target = to_float32(target)
    deviation, mean = torch.std_mean(target, dim=0, correction=0)
    return (to_float32(prediction) - (target - mean) / (deviation + 1e-6)).square().mean()


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(target / T) ‖ softmax(logits / T)), mean over images: Hinton's soft targets.

    The factor T² compensates for gradients that scale as 1/T² (section 2.1 of the paper).

    Args:
        logits: `[B C]`, from the student.
        target: `[B C]`, the teacher's logits.
        temperature: T > 0.
    """
    student, teacher = (log_softmax(x / temperature, dim=-1) for x in (logits, target))
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
