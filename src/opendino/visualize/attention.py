"""Attention maps: each head, their mean, and the patches with most of the attention.

The tiles of an image are the image; the maps of the mean and of each head, scaled from minimum to maximum; and for each
map the smallest set of patches that holds the fraction `--mass` of it; the rest is pale. The title "60% lies in 12% of
image" means that this set is 12 % of all patches. As in visualize_attention.py of DINO v1: last block, CLS token,
nearest neighbor upsampling; unlike there the aspect ratio is kept, register tokens are excluded, and the threshold is
on by default. Networks without CLS attention, such as ResNets, show the contribution of each position to the mean
feature, see `models/attention_maps.py: contribution_to_mean`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from opendino.core.errors import UsageError
from opendino.core.ranges import CountOrZero, FractionAboveZero
from opendino.core.types import Report
from opendino.features.image_stream import Bad, none_readable, skipped_message
from opendino.models.attention_maps import keep_mass
from opendino.visualize.drawing import style, tile_grid
from opendino.visualize.drawing.image_encoder import ImagesConfig, encode_each, write_each
from opendino.visualize.drawing.tile_grid import Sheet, Tile

MOST = 16
"""Maximum number of images in one file; more need a folder."""
_COLUMNS = 8


@dataclass(frozen=True)
class Config(ImagesConfig):
    """Options of `opendino visualize attention`."""

    out: str = "attention.png"
    """Output file (.png, .jpg, .webp, .pdf, .svg, .html), or a folder for one .png per image."""
    mass: FractionAboveZero = 0.6
    """Fraction of the attention in the patches that are not pale (--threshold of DINO v1)."""
    heads: tuple[CountOrZero, ...] = ()
    """Heads to show, from 0; default: all."""
    overlay: bool = False
    """Draw the maps over the image."""


def show(config: Config) -> Report:
    """Draw the maps of every image.

    Raises:
        UserError: The model or images do not exist, no image can be read, or the network has no feature grid.
        UsageError: The network has no such head.
    """
    source, encoder, path = config.open(MOST)
    began, bad, image_fields = time.monotonic(), Bad(), list[dict[str, Any]]()

    def drawn_rows() -> Iterator[tuple[str, list[list[Tile | None]]]]:
        for index, image, maps in encode_each(encoder, encoder.attention, source, bad):
            kept = keep_mass(maps.mean(0).flatten(), config.mass)
            key, heads = source.key(index), _selected_heads(config.heads, len(maps))
            image_fields.append({"image": key, "grid": list(maps.shape[1:]), "kept_frac": kept.float().mean().item()})
            yield key, tiles(image, maps, config.mass, heads, config.overlay, Path(key).stem)

    paths: list[str] = []
    if not path.suffix:
        paths = write_each(drawn_rows(), path, lambda rows, to: Sheet(rows).save(to))
    elif rows := [row for _, rows in drawn_rows() for row in rows]:
        Sheet(rows).save(path)
        paths = [str(path)]
    if not image_fields:
        raise none_readable(len(source), bad)
    where = paths[0] if len(paths) == 1 else f"{len(paths)} images in {path}"
    lines = [f"{encoder.quantity}, {len(image_fields)} image{'s' * (len(image_fields) > 1)} → {where}"]
    lines += [f"the fewest patches that hold {config.mass:.0%} of the attention are shown; the rest is pale"]
    lines += [f"note: {skipped_message(bad)}"] * bool(bad)
    fields = {
        "paths": paths,
        "images": image_fields,
        "quantity": encoder.quantity,
        "mass": config.mass,
        "skipped": len(bad),
    }
    return Report("\n".join(lines), fields | {"seconds": time.monotonic() - began})


def tiles(
    image: Image.Image,
    maps: Tensor,
    mass: float = 0.6,
    heads: Sequence[int] | None = None,
    overlay: bool = False,
    name: str = "image",
) -> list[list[Tile | None]]:
    """The rows of a `Sheet` about one image.

    Args:
        image: The picture of the prepared image, see `ImageEncoder.picture`.
        maps: float `[heads rows columns]`, non-negative.
        mass: Fraction of the attention in the patches that are not pale.
        heads: Heads to show in addition to the mean; None: all.
        overlay: Whether to draw the maps over the image.
        name: Title of the image.
    """
    heads = range(len(maps)) if heads is None else heads
    titled_maps = [("mean of heads", maps.mean(0))] if len(maps) > 1 else []
    titled_maps += [(f"head {head}" if len(maps) > 1 else "share", maps[head]) for head in heads]
    blocks = math.ceil((len(titled_maps) + 1) / _COLUMNS)
    columns = math.ceil((len(titled_maps) + 1) / blocks)
    small = tile_grid.shrunk(image, tile_grid.WIDTH_PX // columns)
    pairs: list[tuple[Tile, Tile | None]] = [(Tile(small, name), None)]
    for title, each_map in titled_maps:
        kept = keep_mass(each_map.flatten(), mass).view(each_map.shape)
        share = f"{mass:.0%} lies in\n{kept.float().mean().item():.0%} of image"
        pairs.append((Tile(heat(small, each_map, overlay), title), Tile(tile_grid.dimmed(small, kept), share)))
    if len(maps) == 1:
        return [[pairs[0][0], *pairs[1]]]
    rows: list[list[Tile | None]] = []
    for start in range(0, len(pairs), columns):
        upper, lower = zip(*pairs[start : start + columns], strict=True)
        rows += [list(upper), list(lower)]
    return rows


def heat(image: Image.Image, values: Tensor, overlay: bool = False) -> Image.Image:
    """A map `[rows columns]` in color (viridis) at the size of the image.

    Args:
        image: Defines the size of the result, and the background if `overlay`.
        values: `[rows columns]`; scaled to [0, 1].
        overlay: Whether to blend the map with the gray image.
    """
    low, high = values.aminmax()
    heat_map = tile_grid.enlarged(style.viridis((values - low) / (high - low).clamp_min(1e-30)), image.size)
    return Image.blend(image.convert("L").convert("RGB"), heat_map, 0.6) if overlay else heat_map


def _selected_heads(heads: tuple[int, ...], number: int) -> Sequence[int]:
    """The heads to show; checks that they exist."""
    for head in heads:
        if not 0 <= head < number:
            raise UsageError(f"There is no head {head}", f"This network has {number}: 0 to {number - 1}")
    return heads or range(number)
