"""Patch features as colors: their first three principal components, fitted over all the images together.

Equal colors mean similar features, in every image. With `--foreground` the first component splits off the background,
which turns black. Components are exact and their signs follow a rule, so that a picture never changes by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from torch import Tensor

from opendino.core import distributed
from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, PixelSize
from opendino.core.types import Report
from opendino.data.image_list import open_image_list
from opendino.features.image_stream import Bad, skipped_message
from opendino.models.load import load
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.image_encoder import ImageEncoder, each, none_read, write_each
from opendino.visualize.drawing.pca_colors import Foreground, PCABasis, fit
from opendino.visualize.drawing.tile_grid import Sheet, Tile

MOST = 32
"""Images in one picture; more go into a folder."""
_FITTED = 64
_COLUMNS = 8


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino visualize pca` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Image files, or a folder, a .tar or .zip, a text file of paths."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; the one to use by default."""
    out: str = "pca.png"
    """A picture (.png, .jpg, .webp, .pdf, .svg, .html), or a folder for one .png an image."""
    size_px: PixelSize = 480
    """Shorter side of the images that the network sees, rounded to whole patches."""
    foreground: Foreground = "off"
    """Color only the patches on one side of the first component: above or below its mean, or auto, the side that
    touches the borders less."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def show(config: Config) -> Report:
    """Fit to up to 64 of the images, evenly spaced, and draw them all.

    Raises:
        UserError: No such model or images, none that can be read, or a network whose features are no grid.
    """
    into_folder = not Path(config.out).suffix
    path = Path(config.out).expanduser() if into_folder else tile_grid.out(config.out, tile_grid.PICTURES)
    source = open_image_list(config.images)
    if len(source) > MOST and not into_folder:
        raise UsageError(f"{len(source)} images are too many for one picture", "Give a folder: --out pca/")
    sight = ImageEncoder(load(config.model, config.which).to(distributed.device(config.device)), config.size_px)
    began, bad = time.monotonic(), Bad()
    sample = np.unique(np.linspace(0, len(source) - 1, min(len(source), _FITTED)).round().astype(int)).tolist()
    known = {index: (image, sight.patches(image)) for index, image in each(source, sight, bad, sample)}
    if not known:
        raise none_read(bad)
    basis = fit([patches for _, patches in known.values()], config.foreground)

    def drawn() -> Iterator[tuple[str, list[Tile]]]:
        for index, (image, patches) in known.items():
            yield source.key(index), tiles(image, patches, basis, Path(source.key(index)).stem)
        others = sorted(set(range(len(source))) - set(sample))
        for index, image in each(source, sight, bad, others):
            yield source.key(index), tiles(image, sight.patches(image), basis, Path(source.key(index)).stem)

    if into_folder:
        paths = write_each(drawn(), path, lambda pair, to: Sheet([pair]).save(to))
    else:
        pairs = [pair for _, pair in drawn()]
        columns = math.ceil(len(pairs) / math.ceil(len(pairs) / _COLUMNS))
        blocks = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
        width = tile_grid.WIDTH_PX // max(2, columns)
        Sheet([[_narrow(pair[i], width) for pair in block] for block in blocks for i in (0, 1)]).save(path)
        paths = [str(path)]
    shares = ", ".join(f"{share:.0%}" for share in basis.explained)
    where = paths[0] if len(paths) == 1 else f"{len(paths)} pictures in {path}"
    lines = [f"the components explain {shares} of the variance, over {len(known)} images → {where}"]
    lines += [f"note: {skipped_message(bad)}"] * bool(bad)
    fields = {"paths": paths, "explained": list(basis.explained), "fitted_on": len(known), "skipped": len(bad)}
    return Report("\n".join(lines), fields | {"seconds": time.monotonic() - began})


def tiles(image: Image.Image, patches: Tensor, basis: PCABasis, name: str = "image") -> list[Tile]:
    """An image, and its components as red, green and blue.

    Args:
        image: As the network saw it.
        patches: Its features `[rows columns D]`.
        basis: From `_principal.fit`.
        name: Of the image.
    """
    return [Tile(image, name), Tile(tile_grid.enlarged(basis.colors(patches), image.size), "components 1 to 3")]


def _narrow(tile: Tile, width_px: int) -> Tile:
    return Tile(tile_grid.shrunk(tile.image, width_px), tile.title)
