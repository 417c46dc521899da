"""Knowledge distillation: a small student learns from a trained teacher that stays as it is (Hinton et al. 2015).

arXiv:1503.02531. Teacher and student may be of any two architectures. Both look at the same view (Beyer et al. 2022,
arXiv:2106.05237), or the teacher at the whole image, and is then asked only once about each.

Teacher is: a trained, usually larger network, frozen
Student sees: one augmented view
Teacher sees: the same view, or the whole image
Objective: features: squared distance to the teacher's, standardized; logits: KL at a temperature, times its square
Against collapse: nothing is needed, the targets stand still
Learns from: images, and what the teacher has learnt; labels as an option
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, kl_div, log_softmax

from opendino.core import auto_values
from opendino.core.contracts import Backbone, Method
from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, Fraction, PixelSize, Temperature
from opendino.core.types import Augment, Clock, Facts, Features, StepOutput, ViewGroup, Views, ViewSpec
from opendino.losses import feature_std, to_float32
from opendino.models.load import Model, load

WHOLE = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, gray=0.0)
"""The largest centered square, without chance."""


@dataclass(frozen=True)
class Config(Checked):
    """Settings of distillation from a frozen teacher."""

    teacher: str = ""
    """The trained model: a run folder, an imported or exported model folder, or timm:NAME. Needed."""
    objective: Literal["features", "logits"] = "features"
    """features: any teacher, no labels. logits: a teacher that classifies."""
    teacher_view: Literal["same", "whole"] = "same"
    """same: the student's own view. whole: the centered image; its features are remembered, so that the teacher works
    in the first epoch only."""
    size_px: PixelSize | Literal["auto"] = "auto"
    """Side of the student's view. The teacher's is resized to what the teacher was trained for."""
    augment: Augment = field(default_factory=lambda: Augment(scale=(0.25, 1.0)))
    """How the view is drawn."""
    temperature: Temperature = 4.0
    """T of both softmax functions (logits)."""
    label_weight: Fraction = 0.0
    """Share of the loss that is cross-entropy with known labels (logits); the classes must be the teacher's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_weight and self.objective != "logits":
            raise UsageError(f"label_weight={self.label_weight} needs objective=logits", "Give both, or neither")

    def resolved(self, facts: Facts) -> tuple[Config, list[str]]:
        """Every "auto" as a number, with the reasons, one line each; the teacher by its full path."""
        path = Path(self.teacher).expanduser()
        found = replace(self, teacher=str(path.absolute()) if self.teacher and path.exists() else self.teacher)
        return auto_values.with_auto_values(
            found, {"size_px": auto_values.size_px(facts)} if self.size_px == "auto" else {}
        )


def views(config: Config) -> ViewSpec:
    """The student's view, and the teacher's where that is another."""
    assert config.size_px != "auto"
    groups = [ViewGroup("global", config.size_px, (config.augment,))]
    if config.teacher_view == "whole":
        groups.append(ViewGroup("whole", config.size_px, (WHOLE,)))
    return ViewSpec(tuple(groups), labeled_frac=0.25 if config.label_weight else 0.0)


def build(config: Config, make_backbone: Callable[[Literal["student", "teacher"]], Backbone]) -> Method:
    """A fresh student and the trained teacher.

    Raises:
        UsageError: No teacher was named, or it has no classifier where its logits are wanted.
        UserError: There is no such model.
    """
    if not config.teacher:
        raise UsageError("Distillation needs a trained teacher", "Name it: --method.teacher runs/big, or timm:NAME")
    with torch.device("cpu"):  # weights are read there also where a network without memory is asked for
        model = load(config.teacher, classifier=config.objective == "logits")
    return _Distillation(config, model, make_backbone("student"))


class _Distillation(Method):
    product: ClassVar[tuple[Literal["teacher", "student"], ...]] = ("student",)

    def __init__(self, config: Config, model: Model, student: Backbone) -> None:
        super().__init__()
        self.config = config
        self.teacher = nn.ModuleDict({"backbone": _Frozen(model, views(config))})
        self.student = nn.ModuleDict({"backbone": student})
        if model.classifier is not None:
            self.teacher["classifier"], self.classes = model.classifier, model.classes
            self.student["classifier"] = nn.Linear(student.embed_dim, model.classifier.out_features)
        else:
            self.student["head"] = nn.Linear(student.embed_dim, model.backbone.embed_dim)
        self.teacher.requires_grad_(False)
        self._remembered: dict[int, Tensor] = {}

    def train(self, mode: bool = True) -> _Distillation:
        """The teacher never trains: its batch norms keep their statistics."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, views: Views, clock: Clock) -> StepOutput:
        embedding = self._ask(views)
        output = self.student["backbone"]([views.crops["global"][0]])[0]
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
    def _ask(self, views: Views) -> Tensor:
        """The teacher's features `[B D]`; of whole images it is asked once."""
        if self.config.teacher_view == "same":
            return self.teacher["backbone"]([views.crops["global"][0]])[0]
        indices = views.indices.tolist()
        if not all(index in self._remembered for index in indices):
            # The whole batch, also what is known: a step costs the same, and no shape depends on what is known.
            self._remembered.update(zip(indices, self.teacher["backbone"]([views.crops["whole"][0]])[0], strict=True))
        return torch.stack([self._remembered[index] for index in indices])


class _Frozen(Backbone):
    """A trained model that takes the student's views: at its own size and normalization, always in eval mode."""

    def __init__(self, model: Model, spec: ViewSpec) -> None:
        super().__init__()
        self.inner = model.backbone
        self.name, self.kwargs, self.embed_dim = self.inner.name, self.inner.kwargs, self.inner.embed_dim
        self.image_px: int = model.preprocessing["image_px"]
        # (x · s + m - m') / s' with the student's mean m and deviation s, and the model's own.
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
        own_mean, own_std = (torch.tensor(model.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """As the model's own, of batches normalized for the student."""
        return self.inner([self._own(batch) for batch in images])

    def features(self, images: Tensor) -> Features:
        """As the model's own, of a batch normalized for the student."""
        return self.inner.features(self._own(images))

    def _own(self, images: Tensor) -> Tensor:
        side = (self.image_px, self.image_px)
        if images.shape[-2:] != side:
            images = interpolate(images, side, mode="bilinear", antialias=True)
        scale, shift = (self.get_buffer(name).to(images.dtype) for name in ("scale", "shift"))
        return images * scale + shift


def feature_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance to the teacher's features, each dimension standardized over the batch.

    Standardizing makes the loss blind to how a network scales its features and to what is common to all images, which
    in networks that end in a ReLU is most of the vector. A prediction of the mean costs 1.

    Args:
        prediction: `[B D]`, a linear map of the student's features.
        target: `[B D]`, the teacher's.
    """
    target = to_float32(target)
    deviation, mean = torch.std_mean(target, dim=0, correction=0)
    return (to_float32(prediction) - (target - mean) / (deviation + 1e-6)).square().mean()


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(target / T) ‖ softmax(logits / T)), mean over images: Hinton's soft targets.

    The square keeps the gradient's size, which falls as 1/T² (section 2.1 of the paper).

    Args:
        logits: `[B C]`, of the student.
        target: `[B C]`, the teacher's logits.
        temperature: T above 0.
    """
    soft, wanted = (log_softmax(x / temperature, dim=-1) for x in (logits, target))
    return temperature**2 * kl_div(soft, wanted, reduction="batchmean", log_target=True)
