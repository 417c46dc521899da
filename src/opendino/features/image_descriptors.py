"""Compute descriptors of whole images of any size for retrieval and copy detection, optionally whitened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.core.types import PixelFormat
from opendino.features.image_stream import Bad, check_finite, encode_images, none_readable, skipped_message
from opendino.models import whitening
from opendino.models.global_descriptor import Descriptor

Edit = Callable[[int, Image.Image], Sequence[Image.Image]]
"""(position in `indices`, upright RGB image) → images to embed instead; must return the same number every time."""


@dataclass(frozen=True)
class ImageDescriptors:
    """Descriptors of the readable images of a source.

    Attributes:
        features: float32 `[M V D]`, V views of each image.
        kept: Positions of the M images in `indices`, ascending.
        bad: (key, reason) of unreadable images.
    """

    features: Tensor
    kept: list[int]
    bad: Bad


def describe_images(
    descriptor: Descriptor,
    source: Source,
    indices: Sequence[int] | None = None,
    views: Edit | None = None,
    batch: int = 32,
) -> ImageDescriptors:
    """Compute descriptors of whole images of any size, on the CPU, not L2-normalized; threads decode ahead.

    Args:
        descriptor: Computes the descriptor of an image.
        source: The images.
        indices: Positions of the images to use, at least one; None for all.
        views: Returns the images to embed instead of an image, may raise `BadImage`; None for the image itself.
        batch: Images per forward pass; two batches are in memory.

    Raises:
        UserError: No image can be read, `views` are asked of images other than photographs, or the network outputs NaN
            or infinity.
    """
    if views and source.pixel_format != PixelFormat():
        raise UserError(
            f"Images are changed here as RGB photographs, and these have {source.pixel_format.channels} channels",
            "Measure on whole images, e.g. opendino eval retrieval, or copy-detection --mode duplicates",
        )
    indices = range(len(source)) if indices is None else indices

    def prepare(position: int, pixels: np.ndarray) -> list[Tensor]:
        if views is None:
            return [descriptor.prepare(pixels)]
        return [descriptor.prepare(np.array(view)) for view in views(position, Image.fromarray(pixels))]

    def network(images: list[list[Tensor]]) -> Tensor:
        rows = _by_size(descriptor, [view for views_of_image in images for view in views_of_image], batch)
        return torch.stack(rows).unflatten(0, (len(images), -1))  # [B V D]

    kept: list[int] = []
    features: list[Tensor] = []
    bad: Bad = []
    for part in encode_images(source, indices, prepare, network, batch):
        bad += part.bad
        if part.output is not None:
            kept += part.positions
            features.append(part.output)
    if not kept:
        raise none_readable(len(indices), bad)
    check_finite(*features)
    return ImageDescriptors(torch.cat(features), kept, bad)


def _by_size(descriptor: Descriptor, images: list[Tensor], batch: int) -> list[Tensor]:
    """Descriptors `[D]` of images `[C H W]` of several sizes; images of one size are batched."""
    by_shape: dict[torch.Size, list[int]] = {}
    for position, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(position)
    found: dict[int, Tensor] = {}
    for positions in by_shape.values():
        for start in range(0, len(positions), batch):
            part = positions[start : start + batch]
            found.update(zip(part, descriptor(torch.stack([images[i] for i in part])), strict=True))
    return [found[position] for position in range(len(images))]


class Describe:
    """Compute L2-normalized descriptors of images, PCA-whitened if `whiten` is given.

    Args:
        descriptor: Computes the descriptor of an image, and opens images as its model reads them.
        device: Device of the result.
        whiten: DATA to fit the PCA whitening on; None for no whitening.
        centered: Whether the whitening is centered, see `whitening.fit`.
        batch: Images per forward pass.

    Attributes:
        open_images: Opens DATA as the model reads it.
        protocol: Description of the protocol, for reports.
    """

    def __init__(
        self, descriptor: Descriptor, device: torch.device, whiten: str | None, centered: bool, batch: int
    ) -> None:
        self._descriptor, self._device, self._batch = descriptor, device, batch
        self.open_images = descriptor.open_images
        self._whitening: whitening.Whitening | None = None
        self.protocol = descriptor.protocol
        if whiten:
            others = describe_images(descriptor, descriptor.open_images(whiten), batch=batch).features[:, 0]
            self._whitening = whitening.fit(others, centered)
            self.protocol += f"; PCA whitening learned on {len(others)} images of {whiten}"

    def __call__(
        self, source: Source, indices: Sequence[int] | None = None, views: Edit | None = None
    ) -> ImageDescriptors:
        """As `describe_images`, but whitened, L2-normalized and on the device."""
        table = describe_images(self._descriptor, source, indices, views, self._batch)
        vectors = self._whitening(table.features) if self._whitening else table.features
        return replace(table, features=nn.functional.normalize(vectors, dim=2).to(self._device))


def skipped(bad: Sequence[tuple[str, str]]) -> str:
    """Line about unreadable images, with a leading newline; empty if there are none."""
    return f"\n{skipped_message(bad)}" if bad else ""
