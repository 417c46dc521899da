"""Polygons of a COCO file (detection format) as masks of class numbers."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from opendino.core.errors import BadImage, UserError
from opendino.data.decode import MAX_PIXELS
from opendino.data.source_files import printable, read_regular
from opendino.datasets.mask_files import VOID

_Coordinate = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Side = Annotated[int, Meta(ge=1, le=10**6)]
_HINT = "Export polygons in COCO's detection format: images, annotations and categories"


class _Image(msgspec.Struct):
    id: int
    file_name: str
    height: _Side
    width: _Side


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    segmentation: Any = None
    iscrowd: int = 0


class _Runs(msgspec.Struct):
    """Lengths of runs of pixels outside and inside in turns, down the columns."""

    counts: list[Annotated[int, Meta(ge=0, le=MAX_PIXELS)]]


class _Category(msgspec.Struct):
    id: int


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: Annotated[list[_Category], Meta(max_length=VOID - 1)]


class CocoPolygons:
    """The polygons of a COCO file.

    The category with the lowest id is class 1, the next one 2; 0 is what no polygon covers.

    Args:
        path: The file.

    Raises:
        UserError: The file cannot be read or is not of this format.
    """

    def __init__(self, path: Path) -> None:
        try:
            file = msgspec.json.decode(read_regular(path), type=_File)
        except (BadImage, msgspec.MsgspecError, RecursionError) as error:
            raise UserError(f"{printable(str(path))} cannot be used: {error}", _HINT) from error
        numbers = {own: number for number, own in enumerate(sorted(each.id for each in file.categories), 1)}
        self._sizes = {PurePosixPath(each.file_name).name: (each.height, each.width) for each in file.images}
        by_id = {each.id: PurePosixPath(each.file_name).name for each in file.images}
        self._polygons: dict[str, list[tuple[int, Any]]] = {}
        for each in file.annotations:
            if each.image_id not in by_id or each.category_id not in numbers:
                kind = "image" if each.image_id not in by_id else "category"
                raise UserError(f"{printable(str(path))} has an annotation of an unknown {kind}", _HINT)
            number = VOID if each.iscrowd else numbers[each.category_id]
            self._polygons.setdefault(by_id[each.image_id], []).append((number, each.segmentation))

    def __contains__(self, file_name: str) -> bool:
        """Whether an image, by its file name without folders, has a polygon."""
        return file_name in self._polygons

    def mask(self, file_name: str) -> np.ndarray:
        """The class number of each pixel whose center is in a polygon, uint8 `[H W]`; the last of several counts.

        Raises:
            BadImage: Too many pixels, or an annotation that is not a list of polygons.
        """
        height, width = self._sizes[file_name]
        if height * width > MAX_PIXELS:
            raise BadImage(f"{width} x {height} pixels, more than {MAX_PIXELS // 10**6} million")
        found = np.zeros((height, width), np.uint8)
        for number, polygons in self._polygons.get(file_name, []):
            if number == VOID and isinstance(polygons, dict):
                found[_crowd(polygons, height, width)] = VOID
                continue
            try:
                rings = msgspec.convert(polygons, list[Annotated[list[_Coordinate], Meta(min_length=6)]])
            except msgspec.ValidationError as error:
                raise BadImage(f"an annotation is not a list of polygons, but for example RLE: {error}") from error
            for ring in rings:
                _fill(found, np.array(ring[: len(ring) // 2 * 2]).reshape(-1, 2), number)
        return found


def _crowd(runs: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Where a crowd is, bool `[H W]`, which official files give by lengths of runs.

    Raises:
        BadImage: They are compressed, or do not cover the image.
    """
    try:
        counts = msgspec.convert(runs, _Runs).counts
    except msgspec.ValidationError as error:
        raise BadImage(f"a crowd is neither polygons nor a list of counts: {error}") from error
    if sum(counts) != height * width:
        raise BadImage(f"a crowd of {sum(counts):,} pixels in an image of {width} x {height}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _fill(mask: np.ndarray, ring: np.ndarray, number: int) -> None:
    """Fill a polygon, points (x, y) `[P 2]`, by the even-odd rule: a pixel is inside if its center is."""
    height, width = mask.shape
    first, last = max(0, math.floor(ring[:, 1].min())), min(height, math.ceil(ring[:, 1].max()))
    if first >= last:
        return
    centers = np.arange(first, last) + 0.5
    crossings = np.zeros((last - first, width + 1), np.int32)  # the boundary is crossed left of a pixel's center
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        rows = np.flatnonzero((y0 <= centers) != (y1 <= centers))
        x = x0 + (centers[rows] - y0) * (x1 - x0) / (y1 - y0) if len(rows) else np.empty(0)
        np.add.at(crossings, (rows, np.ceil(x - 0.5).clip(0, width).astype(int)), 1)
    mask[first:last][crossings[:, :width].cumsum(1) % 2 == 1] = number
