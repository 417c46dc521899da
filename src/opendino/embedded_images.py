"""The images of a folder with their features: search, duplicates, and a diverse selection, from Python."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError
from opendino.data.decode import decode
from opendino.embeddings.diverse_selection import first_batch
from opendino.features.duplicate_threshold import EQUAL, cosine_distribution
from opendino.features.near_duplicates import near_duplicates
from opendino.features.nearest_neighbors import nearest
from opendino.models.load import ImageInput, Model
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.tile_grid import Tile

_SIDE_PX, _COLUMNS, _ROWS = 160, 8, 6


class Hit(NamedTuple):
    """An image that was found.

    Attributes:
        path: Its key in the source: the path inside the folder.
        score: Cosine similarity to the query or to the nearest other of its group; for a selection the covering radius.
        position: Its position in the source.
    """

    path: str
    score: float
    position: int


class Hits(list[Hit]):
    """Images in order; drawn in notebooks."""

    def __init__(self, hits: Sequence[Hit], draw: Callable[[Sequence[Sequence[Hit]]], bytes]) -> None:
        super().__init__(hits)
        self._draw = draw

    def _repr_png_(self) -> bytes | None:
        shown = self[: _COLUMNS * _ROWS]
        return self._draw([shown[start : start + _COLUMNS] for start in range(0, len(shown), _COLUMNS)])


class Groups(list[list[Hit]]):
    """Groups of near-duplicates, the largest first; drawn in notebooks, a row per group."""

    def __init__(self, groups: Sequence[list[Hit]], draw: Callable[[Sequence[Sequence[Hit]]], bytes]) -> None:
        super().__init__(groups)
        self._draw = draw

    def _repr_png_(self) -> bytes | None:
        return self._draw([group[:_COLUMNS] for group in self[:_ROWS]]) if self else None


@dataclass(frozen=True, repr=False, eq=False)
class EmbeddedImages:
    """The readable images of a source, M of them, with their features.

    Attributes:
        model: The model that computed the features.
        source: The images.
        indices: Positions of the M images in the source, ascending.
        vectors: float32 `[M D]` on the CPU, not L2-normalized.
        labels: int64 `[M]` on the CPU, positions in `classes`; -1 where unknown.
        bad: (key, reason) of the unreadable images.
    """

    model: Model
    source: Source
    indices: list[int]
    vectors: Tensor
    labels: Tensor
    bad: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.indices)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The vectors, so that NumPy and scikit-learn take this object: float32 `[M D]`."""
        return np.array(self.vectors.numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        unread = f", {len(self.bad):,} unusable" if self.bad else ""
        return f"{len(self):,} images with {self.vectors.shape[1]} features each{unread}: .search, .duplicates, .select"

    @property
    def paths(self) -> list[str]:
        """Keys of the M images: their paths inside the folder."""
        return [self.source.key(index) for index in self.indices]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: sub-folders, or those of the dataset; empty if there are none."""
        return self.source.classes

    @cached_property
    def _unit(self) -> Tensor:
        return normalize(self.vectors, dim=1)

    def search(self, image: ImageInput, k: int = 10) -> Hits:
        """The images most similar to one image.

        Args:
            image: A path, a PIL image, an array or a tensor, as for `embed`.
            k: Number of images, at least 1.

        Returns:
            At most k images with their cosine similarity in [-1, 1], the most similar first.

        Raises:
            UserError: The image cannot be read.
        """
        query = self.model.embed([image] if isinstance(image, str | Path | Image.Image) else image).float().cpu()
        if k < 1 or len(query) != 1:
            raise UsageError(f"search takes one image and k from 1, not {len(query)} images and k={k}", "Search again")
        scores, rows = nearest(self.vectors, query, min(k, len(self)))
        return self._hits(rows[0].tolist(), scores[0].tolist())

    def duplicates(self, threshold: float | None = None) -> Groups:
        """Groups of images in which each has a cosine of at least the threshold with another of the group.

        Args:
            threshold: In (-1, 1]; None chooses it from the distribution of cosines: chance would give about one pair.

        Returns:
            The groups, the largest first; scores are cosines to the nearest other image of the group.
        """
        if threshold is None:
            threshold = cosine_distribution(self._unit).threshold if len(self) > 1 else EQUAL
        groups = sorted(near_duplicates(self._unit, threshold), key=lambda group: -len(group.indices))
        return Groups([self._hits(group.indices, group.similarity) for group in groups], self._draw)

    def select(self, num: int, seed: int = 0) -> Hits:
        """A selection to label first: the most typical image of each of `num` clusters, see `first_batch`.

        Args:
            num: Number of images, 1 to M.
            seed: Random seed of the clusters.

        Returns:
            The images, those of large clusters first; the score is the covering radius so far, the largest distance of
            any image to its nearest chosen one, 0 to 2.
        """
        if not 1 <= num <= len(self):
            raise UsageError(f"num is {num}, and there are {len(self):,} images", f"Choose from 1 to {len(self)}")
        chosen = list(first_batch(self._unit, num, seed))
        return self._hits([row for row, _ in chosen], [radius for _, radius in chosen])

    def _hits(self, rows: Sequence[int], scores: Sequence[float]) -> Hits:
        found = [self.indices[row] for row in rows]
        hits = [Hit(self.source.key(index), score, index) for index, score in zip(found, scores, strict=True)]
        return Hits(hits, self._draw)

    def _draw(self, rows: Sequence[Sequence[Hit]]) -> bytes:
        """The images as PNG."""

        def tile(hit: Hit) -> Tile:
            try:
                item, area_px = self.source.read(hit.position), (2 * _SIDE_PX) ** 2
                image = self.model.reading.picture(decode(item, area_px, pixel_format=self.source.pixel_format))
            except BadImage:  # it was readable before: a gray tile
                image = None
            return Tile(tile_grid.square(image, _SIDE_PX), f"{hit.score:.3f}\n{hit.path}")

        content = io.BytesIO()
        tile_grid.Sheet([[tile(hit) for hit in row] for row in rows]).image().save(content, "PNG")
        return content.getvalue()
