"""Sheets of images of an embedding table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from opendino.embeddings.table_images import TableImages
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.tile_grid import Tile

T = TypeVar("T")

SIDE_PX = 160
AREA_PX = (2 * SIDE_PX) ** 2
"""Number of pixels to which images are decoded for a tile."""


def tile(image: Image.Image | None, title: str) -> Tile:
    """A square tile; gray for an image that can no longer be read."""
    return Tile(tile_grid.square(image, SIDE_PX), title)


def save(
    rows: Iterable[Iterable[tuple[str, str] | None]], about: Mapping[str, Any], out: Path, title: str = ""
) -> None:
    """Draw rows of images of a table.

    Args:
        rows: For each tile the key of the image and the line above its path; None leaves a gap.
        about: Of the table, see `TableImages`.
        out: File to write, see `tile_grid.out`.
        title: What stands above all tiles.
    """
    listed = [list(row) for row in rows]
    images = TableImages(about, (each[0] for row in listed for each in row if each), AREA_PX)

    def drawn(key: str, text: str) -> Tile:
        return tile(images.read(key), f"{text}\n{key}")

    tile_grid.Sheet([[drawn(*each) if each else None for each in row] for row in listed], title).save(out)


def in_rows(tiles: Sequence[T], columns: int) -> list[Sequence[T]]:
    """Split a list of tiles into rows."""
    return [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
