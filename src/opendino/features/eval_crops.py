"""A fixed subset of the data, cropped once, for the online evaluation of a run."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opendino.core import distributed
from opendino.core.contracts import Source
from opendino.core.errors import BadImage
from opendino.data.cache import DecodedImages
from opendino.data.loader import pad_to_batch
from opendino.data.sampler import epoch_order
from opendino.data.workers import each
from opendino.views.crop_resize import crop_resize

CENTER_FRAC = 224 / 256  # crop side as a fraction of the shorter side: the usual "resize to 256, crop 224"

_TOGETHER = 16  # images that are cropped at once

_WARN_FRAC = 0.1  # warn if more than this fraction of images are copies or have a single color


@dataclass(frozen=True)
class EvalSet:
    """Center crops for k-NN classification: a bank of labeled images and queries.

    Attributes:
        bank, queries: uint8 or uint16 `[M C size size]`, the images of this rank; without labels all images are in the
            bank.
        bank_labels, query_labels: int64 `[M]` of all ranks, -1 without labels.
        origin: Where the queries come from, for messages.
    """

    bank: Tensor
    bank_labels: Tensor
    queries: Tensor
    query_labels: Tensor
    origin: str

    @property
    def labeled(self) -> bool:
        """Whether k-NN is possible: there are queries, and the bank has at least two classes."""
        return len(self.query_labels) > 0 and len(self.bank_labels.unique()) > 1

    @property
    def one_class(self) -> bool:
        """Whether there are labels and the bank has only one class."""
        return len(self.query_labels) > 0 and len(self.bank_labels.unique()) == 1

    def content_counts(self) -> dict[str, int]:
        """Counts over the crops of all ranks. Collective: every rank must call it.

        Returns:
            "images": number of images; "distinct": number of different ones; "flat": images of a single color;
            "copy": queries that equal an image of the bank pixel for pixel.
        """
        bank, queries = (
            distributed.all_gather_object([_digest(crop) for crop in crops]) for crops in (self.bank, self.queries)
        )
        flat = distributed.all_gather_object([int(_flat(crops).sum()) for crops in (self.bank, self.queries)])
        known = set(bank)
        return {
            "images": len(bank) + len(queries), "distinct": len(known | set(queries)), "flat": sum(flat),
            "copy": sum(each in known for each in queries),
        }  # fmt: skip


def content_warning(counts: Mapping[str, float]) -> str:
    """Warning about the evaluation images from the counts of `EvalSet.content_counts`; empty if there is none."""
    images, distinct, flat, copies = (int(counts.get(name, 0)) for name in ("images", "distinct", "flat", "copy"))
    warnings = []
    if flat > images * _WARN_FRAC:
        warnings.append(f"{flat:,} of {images:,} have a single color")
    if images - distinct > images * _WARN_FRAC:
        warnings.append(f"only {distinct:,} of {images:,} differ from each other, the rest are exact copies")
    if copies:
        warnings.append(f"{copies:,} queries are exact copies of labeled images, so k-NN accuracy is too high")
    return f"of the evaluation images, {'; '.join(warnings)}" if warnings else ""


def _digest(crop: Tensor) -> bytes:
    return hashlib.blake2b(crop.numpy().tobytes(), digest_size=16).digest()


def _flat(crops: Tensor) -> Tensor:
    """Whether each of the crops `[M C H W]` is of a single color, bool `[M]`."""
    pixels = crops.flatten(2)
    return (pixels == pixels[:, :, :1]).flatten(1).all(1)


def make(images: DecodedImages, val: DecodedImages | None, num: int, size_px: int, workers: int = 0) -> EvalSet:
    """Read and center-crop up to `num` images.

    With labels, queries are taken from `val` if it is given (a quarter of `num`); otherwise a fifth of the images are
    held out as queries, and then the network also trains on them, without labels.

    Args:
        images: Images of the bank.
        val: Validation images for queries, or None.
        num: Largest number of images.
        size_px: Crop side in pixels.
        workers: Number of reader processes, 0 for this one.
    """
    order = _some(images, num)
    if not images.source.classes or (val is not None and not val.source.classes):
        bank, labels = _crops(images, order, size_px, workers)
        unlabeled = distributed.all_gather_rows(torch.full_like(labels, -1))
        return EvalSet(bank, unlabeled, bank[:0], labels[:0], "crops of training images: there are no labels")
    if val is None:
        cut = -(-len(order) // 5)
        queries, origin = _crops(images, order[:cut], size_px, workers), "a fifth of these images, against the others"
        bank = _crops(images, order[cut:], size_px, workers)
    else:
        queries = _crops(val, _some(val, max(1, num // 4)), size_px, workers)
        origin, bank = "held-out images", _crops(images, order, size_px, workers)
        # Both sets number their classes differently: match them by name.
        known = {name: i for i, name in enumerate(images.source.classes)}
        renamed = torch.tensor([known.get(name, len(known) + i) for i, name in enumerate(val.source.classes)] + [-1])
        queries = queries[0], renamed[queries[1]]  # label -1 (unknown) selects the last entry, -1
    return EvalSet(*_labeled(*bank), *_labeled(*queries), origin)


def _center_square(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * CENTER_FRAC))
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def center_crops(source: Source, size_px: int) -> Tensor:
    """Center crops uint8 or uint16 `[M C size size]` of the readable images of a source, in order."""
    images = DecodedImages(source, (2 * size_px) ** 2)
    return _crops(images, list(range(len(source))), size_px, 0)[0]


def _some(images: DecodedImages, num: int) -> list[int]:
    """Indices of up to `num` random images; if the source stores images in shards, from few of them."""
    return [int(index) for index in epoch_order(len(images), images.source.shard_sizes, 0, 0)[:num]]


def _labeled(crops: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Crops of this rank whose label is known, and the labels of all ranks."""
    return crops[labels >= 0], distributed.all_gather_rows(labels[labels >= 0])


def _crops(images: DecodedImages, indices: list[int], size_px: int, workers: int) -> tuple[Tensor, Tensor]:
    """Center crops uint8 or uint16 `[M C size size]` and labels int64 `[M]` of this rank's readable images."""
    indices = indices[distributed.rank_slice(len(indices))]

    numbers = range(-(-len(indices) // _TOGETHER))

    def crops_of(number: int) -> tuple[Tensor, list[int]]:
        """Crops of some images, resized together: several times as fast as one by one. And their indices."""
        squares, kept = list[np.ndarray](), list[int]()
        for index in indices[number * _TOGETHER : (number + 1) * _TOGETHER]:
            with contextlib.suppress(BadImage):
                squares.append(_center_square(images.read(index)))
                kept.append(index)
        if not kept:
            return none, kept
        canvas, sizes = pad_to_batch(squares)
        boxes = torch.cat([torch.zeros_like(sizes), sizes], 1)[None]
        return crop_resize(canvas, boxes, torch.zeros(1, len(kept), dtype=torch.bool), size_px)[0], kept

    none = torch.from_numpy(np.empty((0, images.pixel_format.channels, size_px, size_px), images.pixel_format.dtype))
    # Clone: a tensor received from another process keeps a file descriptor open.
    found = [(c.clone(), kept) for c, kept in each(crops_of, numbers, images.in_flight, workers)]
    labels = [images.source.label(index) for _, kept in found for index in kept]
    return torch.cat([none, *(c for c, _ in found)]), torch.from_numpy(np.array(labels, np.int64))
