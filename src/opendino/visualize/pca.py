"""Patch features as RGB: their first three principal components, fitted to all images together.

Equal colors mean similar features across all images. With `--foreground` the first component separates the background,
which becomes black. The PCA is exact and the signs of its components are fixed, so the result is reproducible.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from opendino.core.types import Report
from opendino.data.subset import evenly_spaced
from opendino.features.image_stream import Bad, none_readable, skipped_message
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.image_encoder import ImagesConfig, encode_each, write_each
from opendino.visualize.drawing.pca_colors import Foreground, PCABasis, fit
from opendino.visualize.drawing.tile_grid import Sheet, Tile

MOST = 32
"""Maximum number of images in one file; more need a folder."""
_FITTED = 64
_COLUMNS = 8


@dataclass(frozen=True)
class Config(ImagesConfig):
    """Options of `opendino visualize pca`."""

    out: str = "pca.png"
    """Output file (.png, .jpg, .webp, .pdf, .svg, .html), or a folder for one .png per image."""
    foreground: Foreground = "off"
    """Color only patches above or below the mean of the first component; auto: the side with fewer border patches."""


def show(config: Config) -> Report:
    """Fit the PCA to up to 64 evenly spaced images, and draw all images.

    Raises:
        UserError: The model or images do not exist, no image can be read, or the network has no feature grid.
    """
    source, encoder, path = config.open(MOST)
    began, bad = time.monotonic(), Bad()
    sample = evenly_spaced(len(source), _FITTED)
    encode = partial(encode_each, encoder, encoder.patches, source, bad)
    fitted = {index: (image, patches) for index, image, patches in encode(sample)}
    if not fitted:
        raise none_readable(len(sample), bad)
    basis = fit([patches for _, patches in fitted.values()], config.foreground)

    def drawn_tiles() -> Iterator[tuple[str, list[Tile]]]:
        for index, (image, patches) in fitted.items():
            yield source.key(index), tiles(image, patches, basis, Path(source.key(index)).stem)
        others = sorted(set(range(len(source))) - set(sample))
        for index, image, patches in encode(others):
            yield source.key(index), tiles(image, patches, basis, Path(source.key(index)).stem)

    if not path.suffix:
        paths = write_each(drawn_tiles(), path, lambda image_tiles, to: Sheet([image_tiles]).save(to))
    else:
        pairs = [image_tiles for _, image_tiles in drawn_tiles()]
        columns = math.ceil(len(pairs) / math.ceil(len(pairs) / _COLUMNS))
        blocks = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
        width = tile_grid.WIDTH_PX // max(2, columns)
        Sheet([[_shrunk(pair[i], width) for pair in block] for block in blocks for i in (0, 1)]).save(path)
        paths = [str(path)]
    explained = ", ".join(f"{share:.0%}" for share in basis.explained)
    where = paths[0] if len(paths) == 1 else f"{len(paths)} images in {path}"
    lines = [f"the components explain {explained} of the variance, over {len(fitted)} images → {where}"]
    lines += [f"note: {skipped_message(bad)}"] * bool(bad)
    fields = {"paths": paths, "explained": list(basis.explained), "fitted_on": len(fitted), "skipped": len(bad)}
    return Report("\n".join(lines), fields | {"seconds": time.monotonic() - began})


def tiles(image: Image.Image, patches: Tensor, basis: PCABasis, name: str = "image") -> list[Tile]:
    """Tiles of the image and of its components as red, green and blue.

    Args:
        image: The picture of the prepared image, see `ImageEncoder.picture`.
        patches: Patch features `[rows columns D]` of the image.
        basis: From `pca_colors.fit`.
        name: Title of the image.
    """
    return [Tile(image, name), Tile(tile_grid.enlarged(basis.colors(patches), image.size), "components 1 to 3")]


def _shrunk(tile: Tile, width_px: int) -> Tile:
    return Tile(tile_grid.shrunk(tile.image, width_px), tile.title)
