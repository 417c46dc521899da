"""Whole images of any size → vectors, for retrieval and copy detection: described, whitened, of unit length."""

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
"""(place in the list that was asked for, upright RGB image) → what to describe in its stead, always as many."""


@dataclass(frozen=True)
class ImageDescriptors:
    """Features of the readable images of a source.

    Attributes:
        features: float32 `[M V D]`, V views of each image.
        kept: The places of the M images in the list that was asked for, ascending.
        bad: (key, reason) of those that could not be read.
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
    """The features of whole images of any size, on the host, not of unit length; threads decode ahead of the network.

    Args:
        descriptor: How the model sees an image.
        source: Where the images come from.
        indices: Which of them, at least one; all where None.
        views: What to describe in the stead of an image, may raise `BadImage`; the image itself where None.
        batch: Images in memory at a time, twice over, and in the network.

    Raises:
        UserError: No image can be read, or the network gives what is not a number.
    """
    indices = range(len(source)) if indices is None else indices

    def look(place: int) -> list[Tensor]:
        image = Image.fromarray(decode(source.read(indices[place])))
        return [descriptor.prepare(view) for view in (views(place, image) if views else [image])]

    kept: list[int] = []
    rows: list[Tensor] = []
    bad: Bad = []
    for looked, unread in prefetch_images(source, indices, look, batch):
        bad += unread
        kept += [place for place, _ in looked]
        rows += _by_size(descriptor, [view for _, images in looked for view in images], batch)
    if not rows:
        raise UserError(
            f"No image can be read, of {len(indices)} tried, e.g. {bad[0][0]}: {bad[0][1]}",
            "Check that the folder holds intact images",
        )
    if not all(row.isfinite().all() for row in rows):
        raise UserError("The network's features are not finite numbers", "Its weights are broken; take an earlier one")
    return ImageDescriptors(torch.stack(rows).unflatten(0, (len(kept), -1)), kept, bad)


def _by_size(descriptor: Descriptor, images: list[Tensor], batch: int) -> list[Tensor]:
    """Features `[D]` of images of several sizes, those of one size together."""
    places: dict[torch.Size, list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image.shape, []).append(place)
    found: dict[int, Tensor] = {}
    for alike in places.values():
        for start in range(0, len(alike), batch):
            part = alike[start : start + batch]
            found.update(zip(part, descriptor(torch.stack([images[i] for i in part])), strict=True))
    return [found[place] for place in range(len(images))]


class Describe:
    """Images as vectors of unit length, whitened where a folder to learn that on is given.

    Args:
        descriptor: How the model sees an image.
        device: Where the vectors go.
        whiten: DATA to learn a PCA whitening of the raw features on.
        centered: Whether about their mean, see `whitening.fit`.
        batch: Images at a time.

    Attributes:
        protocol: What is done, in words.
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
            self.protocol += f"; PCA whitening learnt on {len(others)} images of {whiten}"

    def __call__(
        self, source: Source, indices: Sequence[int] | None = None, views: Edit | None = None
    ) -> ImageDescriptors:
        """As `describe`, of unit length and on the device."""
        table = describe_images(self._descriptor, source, indices, views, self._batch)
        vectors = self._whitening(table.features) if self._whitening else table.features
        return replace(table, features=nn.functional.normalize(vectors, dim=2).to(self._device))


def skipped(bad: Sequence[tuple[str, str]]) -> str:
    """What to tell people of unreadable images: a line, or nothing."""
    return f"\n{skipped_message(bad)}" if bad else ""
