"""The values that travel between layers, and the letters used for their shapes.

Letters: `V` views, `B` images in a batch, `C` channels, `H W` pixels, `N` patches, `R` registers, `D` feature width,
`K` prototypes, `S` side of a square canvas in pixels. `num_` counts, `_px` pixels, `_frac` shares in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta
from torch import Tensor

from opendino.core.ranges import ASCENDING, Checked, Fraction, FractionRange, Hue, Strength

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Aspect = Annotated[float, Meta(ge=0.01, le=100)]
Sigma = Annotated[float, Meta(ge=0, le=100)]


@dataclass(frozen=True)
class Augment(Checked):
    """How one view is drawn: crop, then flip, jitter, gray, blur, solarize (BYOL, appendix B; DINO v1).

    Attributes:
        scale: Area of the crop as a share of the image, uniform in this range.
        ratio: Aspect (width / height) of the crop, log-uniform in this range.
        flip: Probability of a horizontal flip.
        jitter: Probability of color jitter.
        brightness, contrast, saturation: Factor uniform in [1 - x, 1 + x].
        hue: Shift uniform in [-x, x] turns of the color wheel, x ≤ 0.5.
        gray: Probability of gray.
        blur: Probability of a Gaussian blur; its sigma in pixels of the crop is uniform in `sigma_px`.
        solarize: Probability of inverting every value at or above one half.
    """

    scale: FractionRange
    ratio: Annotated[tuple[Aspect, Aspect], ASCENDING] = (3 / 4, 4 / 3)
    flip: Fraction = 0.5
    jitter: Fraction = 0.8
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.2
    hue: Hue = 0.1
    gray: Fraction = 0.2
    blur: Fraction = 0.0
    sigma_px: Annotated[tuple[Sigma, Sigma], ASCENDING] = (0.1, 2.0)
    solarize: Fraction = 0.0


@dataclass(frozen=True)
class ViewGroup:
    """Views of one size, e.g. the two global ones.

    Attributes:
        name: "global" or "local" for multi-crop.
        size_px: Side of the square crops.
        views: One `Augment` a view; may be empty.
    """

    name: str
    size_px: int
    views: tuple[Augment, ...]


@dataclass(frozen=True)
class ViewSpec:
    """All the views a method asks for, the normalization of their pixels, and how many images must have a label.

    Attributes:
        groups: What is drawn.
        mean, std: Of pixels in [0, 1].
        labeled_frac: This share of every batch, its first images, have a label; they come round more often than the
            others where the set has fewer. 0 for methods that never look at labels.
    """

    groups: tuple[ViewGroup, ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    labeled_frac: float = 0.0

    def num_labeled(self, batch: int) -> int:
        """How many images of a batch have a label for sure: none, or at least one."""
        return max(1, round(self.labeled_frac * batch)) if self.labeled_frac else 0


@dataclass(frozen=True)
class Views:
    """The views of one batch on the training device.

    Attributes:
        crops: Group name → float `[V B C H W]`, normalized; a group without views is absent.
        labels: int64 `[B]`, -1 where unknown (self-supervised methods never look).
        indices: int64 `[B]`, positions in the source; on the host.
        num_labeled: The first so many images have a label for sure, see `ViewSpec.labeled_frac`.
    """

    crops: dict[str, Tensor]
    labels: Tensor
    indices: Tensor
    num_labeled: int = 0


@dataclass(frozen=True)
class Features:
    """What a backbone makes of images of one size.

    Attributes:
        cls: float `[B D]`, the CLS token after the last norm (ViT) or the pooled map (others): the image's feature.
        registers: float `[B R D]`, R may be 0.
        patches: float `[B N D]`, row by row.
        grid: (rows, columns), rows · columns = N.
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Clock:
    """Where a run stands. Schedules are functions of it.

    Attributes:
        step: Optimizer steps done so far, so 0 during the first.
        total_steps: Length of the run.
        steps_per_epoch: Optimizer steps in one pass over the data.
    """

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Passes over the data completed so far."""
        return self.step // self.steps_per_epoch


@dataclass(frozen=True)
class Facts:
    """What an `auto` value may depend on; measured once, before the run starts.

    Attributes:
        num_images: Images in the source.
        short_side_px: Median shorter side of a sample of the images as stored.
        num_classes: Classes the source names, 0 for none.
        batch: Images per optimizer step over all devices.
        total_steps, steps_per_epoch: Length of the run and of an epoch.
        device: "cpu", "cuda" or "mps".
        patch_px: What the sides of views must be multiples of; 16 for networks that do not mind.
        convolutional: Small images on a CPU, for which "auto" took a small convolutional network.
    """

    num_images: int
    short_side_px: int
    num_classes: int
    batch: int
    total_steps: int
    steps_per_epoch: int
    device: str = "cpu"
    patch_px: int = 16
    convolutional: bool = False


@dataclass(frozen=True)
class StepOutput:
    """What a method returns for one batch.

    Attributes:
        loss: Scalar tensor to differentiate.
        metrics: Name → detached scalar tensor, left on the device.
        numbers: Name → where a schedule stands, e.g. the teacher's temperature.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What an eval found.

    Attributes:
        text: A table for people, with the protocol it was measured by.
        fields: The same for scripts, plain JSON values; accuracies in percent.
    """

    text: str
    fields: dict[str, Any]
