"""Data types passed between layers, and the letters used for tensor shapes.

Letters: `V` views, `B` images in a batch, `C` channels, `H W` pixels, `N` patches, `R` registers, `D` feature width,
`K` prototypes, `S` side of a square canvas in pixels. `num_` counts, `_px` pixels, `_frac` fractions in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from opendino.core import duration

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BlockMasks:
    """A request for masks of patches, see `views.patch_masks`: as many in every batch, so that shapes are static.

    Attributes:
        num_views: Number of views of each image that have a mask.
        frac: Fraction of the patches that a mask covers, in (0, 1).
    """

    num_views: int
    frac: float

    def count(self, grid: tuple[int, int]) -> int:
        """Number of patches in a mask of a (rows, columns) grid: at least one, and not all."""
        number = grid[0] * grid[1]
        return max(1, min(number - 1, round(self.frac * number)))


@dataclass(frozen=True)
class PixelFormat:
    """How the decoded images of a set are stored in a cache and copied to the device.

    Attributes:
        channels: C.
        bits: Bits per value: 8 for uint8, 16 for uint16.
    """

    channels: int = 3
    bits: Literal[8, 16] = 8

    @property
    def dtype(self) -> np.dtype:
        """uint8 or uint16."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of all channels of one pixel."""
        return self.channels * self.bits // 8

    def fits(self, pixels: np.ndarray) -> bool:
        """Whether an array is a not empty image `[H W C]` of this format."""
        return pixels.dtype == self.dtype and pixels.ndim == 3 and pixels.shape[2] == self.channels and pixels.size > 0

    def __str__(self) -> str:
        return f"{self.dtype} [H W {self.channels}]"


@dataclass(frozen=True)
class ViewGroup:
    """Views of one size, e.g. the two global views.

    Attributes:
        name: "global" or "local" for multi-crop.
        size_px: Side of the square crops, or their height and width.
        views: The augmentations of each view, one `opendino.views.settings.View` per view; may be empty.
        masks: The masks of patches that the views have, None for none.
    """

    name: str
    size_px: int | tuple[int, int]
    views: tuple[Any, ...]
    masks: BlockMasks | None = None

    @property
    def view_px(self) -> tuple[int, int]:
        """Height and width of the crops."""
        return (self.size_px, self.size_px) if isinstance(self.size_px, int) else self.size_px

    @property
    def short_px(self) -> int:
        """Shorter side of the crops."""
        return min(self.view_px)


@dataclass(frozen=True)
class ViewSpec:
    """The views that a method needs, their normalization, and the fraction of labeled images per batch.

    Attributes:
        groups: The groups of views.
        mean, std: Normalization of each of the C channels, for pixels in [0, 1].
        labeled_frac: Fraction of every batch that has labels: its first images. If the data has a smaller fraction,
            labeled images repeat more often than the others. 0 for methods without labels.
        patch_px: Side of the network's patches in pixels, for masks.
    """

    groups: tuple[ViewGroup, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    labeled_frac: float = 0.0
    patch_px: int = 16

    def grid(self, group: ViewGroup) -> tuple[int, int]:
        """(rows, columns) of the patches of a group's views."""
        return group.view_px[0] // self.patch_px, group.view_px[1] // self.patch_px

    @property
    def channels(self) -> int:
        """C, number of channels of the images."""
        return len(self.mean)

    def num_labeled(self, batch: int) -> int:
        """Number of images in a batch that have a label: 0 for methods without labels, else at least 1."""
        return max(1, round(self.labeled_frac * batch)) if self.labeled_frac else 0


@dataclass(frozen=True)
class PatchMasks:
    """Masked patches of a group of views of one batch.

    Attributes:
        where: bool `[V B N]`, True for masked patches, row by row.
        indices: int64 `[M]`, ascending positions of the masked patches in `[V · B · N]`; M is the same in every batch.
    """

    where: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Views:
    """The views of one batch on the training device.

    Attributes:
        crops: Group name → float `[V B C H W]`, normalized; a group without views is absent.
        labels: int64 `[B]`, -1 where unknown; self-supervised methods do not use them.
        indices: int64 `[B]`, positions in the source; on the CPU.
        num_labeled: This many images, the first of the batch, have a label; see `ViewSpec.labeled_frac`.
        masks: Group name → its masked patches; groups without masks are absent.
        pixel_labels: Group name → uint8 `[V B H W]`, the class of every pixel of its views, 255 for pixels to ignore;
            empty unless the labels are masks.
    """

    crops: dict[str, Tensor]
    labels: Tensor
    indices: Tensor
    num_labeled: int = 0
    masks: dict[str, PatchMasks] = field(default_factory=dict)
    pixel_labels: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Features:
    """The tokens that a backbone computes for images of one size.

    Attributes:
        cls: float `[B D]`, the image feature: CLS token after the last norm (ViT) or pooled feature map (others).
        registers: float `[B R D]`, register tokens; R may be 0.
        patches: float `[B N D]`, patch tokens in row-major order.
        grid: (rows, columns), rows · columns = N.
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Clock:
    """The current position of a run; schedules are functions of it.

    Attributes:
        step: Optimizer steps completed; 0 during the first step.
        total_steps: Length of the run in optimizer steps.
        steps_per_epoch: Optimizer steps in one pass over the data.
    """

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Completed passes over the data."""
        return self.step // self.steps_per_epoch

    def in_steps(self, span: str) -> int:
        """A duration such as 10ep, 5% or 20k in optimizer steps of this run, see `core.duration`."""
        return duration.steps(span, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)


@dataclass(frozen=True)
class Facts:
    """The facts that an `auto` value may depend on; measured once, before the run starts.

    Attributes:
        num_images: Number of images in the source.
        short_side_px: Median of the shorter side over a sample of the stored images, in pixels.
        num_classes: Number of classes in the source, 0 for none.
        batch: Images per optimizer step over all devices.
        total_steps, steps_per_epoch: Length of the run and of an epoch in optimizer steps.
        device: "cpu", "cuda" or "mps".
        patch_px: View sizes must be multiples of this; 16 for networks without such a constraint.
        convolutional: Whether the network is the small convolutional one, `conv4`, as "auto" selects on a CPU.
        is_rgb: Whether the channels are red, green and blue.
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
    is_rgb: bool = True


@dataclass(frozen=True)
class StepOutput:
    """The result of a method for one batch.

    Attributes:
        loss: Scalar tensor to differentiate.
        metrics: Name → detached scalar tensor on the device.
        numbers: Name → current value of a schedule, e.g. the teacher temperature.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Result of an evaluation.

    Attributes:
        text: A readable table, with the evaluation protocol.
        fields: The same numbers as plain JSON values; accuracies in percent.
    """

    text: str
    fields: dict[str, Any]

    def __repr__(self) -> str:
        return self.text
