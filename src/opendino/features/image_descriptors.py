"""Compute descriptors of whole images of any size for retrieval and copy detection, optionally whitened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor, nn

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.decode import decode
from opendino.data.open_source import open_source
from opendino.features.image_stream import Bad, prefetch_images, skipped_message
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
        UserError: No image can be read, or the network outputs NaN or infinity.
    """
    indices = range(len(source)) if indices is None else indices

    def load_views(position: int) -> list[Tensor]:
        image = Image.fromarray(decode(source.read(indices[position])))
        return [descriptor.prepare(view) for view in (views(position, image) if views else [image])]

    kept: list[int] = []
    rows: list[Tensor] = []
    bad: Bad = []
    for loaded, unreadable in prefetch_images(source, indices, load_views, batch):
        bad += unreadable
        kept += [position for position, _ in loaded]
        rows += _by_size(descriptor, [view for _, images in loaded for view in images], batch)
    if not rows:
        raise UserError(
            f"None of the {len(indices)} images can be read, e.g. {bad[0][0]}: {bad[0][1]}",
            "Check that the folder holds intact images",
        )
    if not all(row.isfinite().all() for row in rows):
        raise UserError(
            "The network's features are not finite (NaN or infinity)",
            "Its weights are broken: use an earlier checkpoint",
        )
    return ImageDescriptors(torch.stack(rows).unflatten(0, (len(kept), -1)), kept, bad)


def _by_size(descriptor: Descriptor, images: list[Tensor], batch: int) -> list[Tensor]:
    """Descriptors `[D]` of images `[3 H W]` of several sizes; images of one size are batched."""
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
        descriptor: Computes the descriptor of an image.
        device: Device of the result.
        whiten: DATA to fit the PCA whitening on; None for no whitening.
        centered: Whether the whitening is centered, see `whitening.fit`.
        batch: Images per forward pass.

    Attributes:
        protocol: Description of the protocol, for reports.
    """

    def __init__(
        self, descriptor: Descriptor, device: torch.device, whiten: str | None, centered: bool, batch: int
    ) -> None:
        self._descriptor, self._device, self._batch = descriptor, device, batch
        self._whitening: whitening.Whitening | None = None
        self.protocol = descriptor.protocol
        if whiten:
            others = describe_images(descriptor, open_source(whiten), batch=batch).features[:, 0]
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
