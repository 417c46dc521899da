"""Groups of near-duplicates in a table: candidates by the cosine of their vectors, copies by their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opendino.core.progress import track
from opendino.embeddings.table_images import TableImages
from opendino.features import pixel_copies
from opendino.features.duplicate_threshold import EQUAL, Cosines, cosine_distribution
from opendino.features.near_duplicates import Group, near_duplicates

_THREADS = 4


@dataclass(frozen=True)
class Member:
    """An image of a group.

    Attributes:
        key: Of the image in the table.
        cosine: To the most similar other image of the group, in [-1, 1].
        copy_of: Key of the image that it is a copy of by its pixels; None for the original, and for an image that only
            looks similar to the model.
    """

    key: str
    cosine: float
    copy_of: str | None

    @property
    def mark(self) -> str:
        """The cosine, and whether the image is a copy."""
        return f"{self.cosine:.4f}" + (" copy" if self.copy_of is not None else "")


@dataclass(frozen=True)
class Duplicates:
    """The groups of a table, the largest first.

    Attributes:
        groups: Groups of at least two images.
        threshold: Smallest cosine of two near-duplicates.
        cosines: How similar images of the table are; None for a single image.
        num_unread: Number of images of groups that could not be read and are not compared by pixels.
    """

    groups: list[list[Member]]
    threshold: float
    cosines: Cosines | None
    num_unread: int

    @property
    def copies(self) -> list[str]:
        """Keys of the images that are copies of another, and redundant."""
        return [each.key for group in self.groups for each in group if each.copy_of is not None]

    @property
    def num_similar(self) -> int:
        """Number of images that only look similar to another of their group to the model."""
        return sum(map(len, self.groups)) - len(self.groups) - len(self.copies)


def find_duplicates(
    keys: Sequence[str], vectors: Tensor, about: Mapping[str, Any], threshold: float | None = None
) -> Duplicates:
    """Group images in which each has a cosine of at least the threshold with another of the group.

    Args:
        keys: Keys of the images.
        vectors: Their vectors `[M D]`, L2-normalized, on any device.
        about: Of the table, see `TableImages`.
        threshold: Smallest cosine; None to choose it, see `duplicate_threshold.cosine_distribution`.
    """
    cosines = cosine_distribution(vectors) if len(keys) > 1 else None
    if threshold is None:
        threshold = cosines.threshold if cosines else EQUAL
    found = sorted(near_duplicates(vectors, threshold), key=lambda group: (-len(group.indices), -max(group.similarity)))
    groups, num_unread = _with_copies(found, keys, about)
    return Duplicates(groups, threshold, cosines, num_unread)


def _with_copies(
    found: Sequence[Group], keys: Sequence[str], about: Mapping[str, Any]
) -> tuple[list[list[Member]], int]:
    """The members of each group, and the number of unreadable images."""
    images = TableImages(about, (keys[row] for group in found for row in group.indices), pixel_copies.AREA_PX)
    groups, num_unread = [], 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for group in track(found, "groups read"):
            read = pool.map(images.read, [keys[row] for row in group.indices])
            thumbnails = torch.stack([pixel_copies.thumbnail(image) for image in read])
            num_unread += int(thumbnails[:, 0].isnan().sum())
            first: list[int] = pixel_copies.copies(thumbnails).tolist()
            members = zip(group.indices, group.similarity, first, strict=True)
            groups.append(
                [
                    Member(keys[row], score, None if group.indices[original] == row else keys[group.indices[original]])
                    for row, score, original in members
                ]
            )
    return groups, num_unread
