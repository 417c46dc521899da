"""A fixed part of the data, cropped once, on which a run is judged while it trains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opendino.core import distributed
from opendino.core.errors import BadImage
from opendino.data.cache import DecodedImages
from opendino.data.loader import pad_to_batch
from opendino.data.sampler import epoch_order
from opendino.data.workers import each
from opendino.views.functional import crop_resize

CENTER_FRAC = 224 / 256  # of the shorter side: the usual "resize to 256, crop 224"

_ODD_FRAC = 0.1  # of the images: so many copies, or images without anything in them, are worth a word


@dataclass(frozen=True)
class EvalSet:
    """Center crops in two parts: a bank of neighbors and the queries that look among them.

    Attributes:
        bank, queries: uint8 `[M 3 size size]`, this rank's share; without labels all images are in the bank.
        bank_labels, query_labels: int64 `[M]` of all ranks, -1 without labels.
        origin: Where the queries come from, for people.
    """

    bank: Tensor
    bank_labels: Tensor
    queries: Tensor
    query_labels: Tensor
    origin: str

    @property
    def labeled(self) -> bool:
        """Whether k-NN makes sense: queries, and at least two classes among the bank."""
        return len(self.query_labels) > 0 and len(self.bank_labels.unique()) > 1

    @property
    def one_class(self) -> bool:
        """Whether classes are named and the bank has but one of them."""
        return len(self.query_labels) > 0 and len(self.bank_labels.unique()) == 1

    def seen(self) -> dict[str, int]:
        """What the crops of all ranks are: how many "images", how many "distinct", how many "flat" (of one color), and
        how many queries are a "copy" of an image of the bank, pixel for pixel. Every rank must call it.
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


def oddities(seen: Mapping[str, float]) -> str:
    """What is wrong with images that a run is judged on, see `EvalSet.seen`: a sentence, empty where nothing is."""
    images, distinct, flat, copies = (int(seen.get(name, 0)) for name in ("images", "distinct", "flat", "copy"))
    told = []
    if flat > images * _ODD_FRAC:
        told.append(f"{flat:,} of {images:,} have a single color")
    if images - distinct > images * _ODD_FRAC:
        told.append(f"only {distinct:,} of {images:,} differ from each other, the rest are exact copies")
    if copies:
        told.append(f"{copies:,} to be classified are exact copies of labeled ones: such a k-NN is too good")
    return f"of the images looked at, {'; '.join(told)}" if told else ""


def _digest(crop: Tensor) -> bytes:
    return hashlib.blake2b(crop.numpy().tobytes(), digest_size=16).digest()


def _flat(crops: Tensor) -> Tensor:
    """Which of the crops `[M C H W]` have the same value everywhere in each channel."""
    pixels = crops.flatten(2)
    return (pixels == pixels[:, :, :1]).flatten(1).all(1)


def make(images: DecodedImages, val: DecodedImages | None, num: int, size_px: int, workers: int = 0) -> EvalSet:
    """Up to `num` images of a set, cropped to `size_px`, read by `workers` processes.

    Where classes are named, a fifth are queries: of `val` if given, else held out from the bank. In the latter case
    the network has trained on the queries too, without their labels.
    """
    order = _some(images, num)
    if not images.source.classes or (val is not None and not val.source.classes):
        bank, labels = _crops(images, order, size_px, workers)
        return EvalSet(
            bank, distributed.all_gather_rows(torch.full_like(labels, -1)), bank[:0], labels[:0], "no labels"
        )
    if val is None:
        cut = -(-len(order) // 5)
        queries, origin = _crops(images, order[:cut], size_px, workers), "training images held out from the bank"
        bank = _crops(images, order[cut:], size_px, workers)
    else:
        queries = _crops(val, _some(val, max(1, num // 4)), size_px, workers)
        origin, bank = "held-out images", _crops(images, order, size_px, workers)
        # The two sets number their classes each in its own order: go by name.
        known = {name: i for i, name in enumerate(images.source.classes)}
        renamed = torch.tensor([known.get(name, len(known) + i) for i, name in enumerate(val.source.classes)] + [-1])
        queries = queries[0], renamed[queries[1]]  # -1, unknown, is the last of them
    return EvalSet(*_labeled(*bank), *_labeled(*queries), origin)


def _some(images: DecodedImages, num: int) -> list[int]:
    """Up to `num` images, drawn from all of them or, if the source has shards, from few shards."""
    return [int(index) for index in epoch_order(len(images), images.source.shard_sizes, 0, 0)[:num]]


def _labeled(crops: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's crops whose class is known, and all ranks' labels."""
    return crops[labels >= 0], distributed.all_gather_rows(labels[labels >= 0])


def _crops(images: DecodedImages, indices: list[int], size_px: int, workers: int) -> tuple[Tensor, Tensor]:
    """Center crops uint8 `[M 3 size size]` and labels of the readable ones in this rank's share."""
    indices = indices[distributed.rank_slice(len(indices))]

    def crop(index: int) -> Tensor | None:
        try:
            canvas, sizes = pad_to_batch([images.read(index)])
        except BadImage:
            return None
        height, width = sizes[0].tolist()
        side = max(1, round(min(height, width) * CENTER_FRAC))
        box = torch.tensor([(height - side) // 2, (width - side) // 2, side, side]).view(1, 1, 4)
        return crop_resize(canvas, box, torch.zeros(1, 1, dtype=torch.bool), size_px)[0, 0]

    # Cloned: a tensor from another process holds a file open.
    crops = [c if c is None else c.clone() for c in each(crop, indices, images.in_flight, workers)]
    kept = [(c, images.source.label(i)) for c, i in zip(crops, indices, strict=True) if c is not None]
    pixels = torch.stack([c for c, _ in kept]) if kept else torch.zeros(0, 3, size_px, size_px, dtype=torch.uint8)
    return pixels, torch.from_numpy(np.array([label for _, label in kept], np.int64))
