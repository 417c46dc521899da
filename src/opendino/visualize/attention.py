"""Where a network looks: attention of each head, their mean, and the patches that hold most of it.

The tiles of an image: the image; the mean of the heads and each head, dark to bright from its smallest to its largest
value; and for each the fewest patches that hold `--mass` of it, in color, titled "60% in 12%" where those are 12 % of
all patches. As in DINO v1 (visualize_attention.py): last block,
CLS token, nearest neighbor to image size; unlike there the aspect ratio is kept, registers are left out, and the
threshold is on by default. Networks without CLS attention, such as ResNets, show each position's share in the mean
feature, see `models/attention_maps.py: of_mean`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image
from torch import Tensor

from opendino.core import distributed
from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, CountOrZero, FractionAboveZero, PixelSize
from opendino.core.types import Report
from opendino.data.image_list import open_image_list
from opendino.features.image_stream import Bad, skipped_message
from opendino.models.attention_maps import keep_mass
from opendino.models.load import load
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.image_encoder import ImageEncoder, each, none_read, write_each
from opendino.visualize.drawing.tile_grid import Sheet, Tile

MOST = 16
"""Images in one picture; more go into a folder."""
_COLUMNS = 8


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino visualize attention` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Image files, or a folder, a .tar or .zip, a text file of paths."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; the one to use by default."""
    out: str = "attention.png"
    """A picture (.png, .jpg, .webp, .pdf, .svg, .html), or a folder for one .png an image."""
    size_px: PixelSize = 480
    """Shorter side of the images that the network sees, rounded to whole patches."""
    mass: FractionAboveZero = 0.6
    """Share of the attention that the patches in color hold (--threshold of DINO v1)."""
    heads: tuple[CountOrZero, ...] = ()
    """Only these heads, counted from 0; all by default."""
    overlay: bool = False
    """Draw the maps over the image."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def show(config: Config) -> Report:
    """Draw the maps of every image.

    Raises:
        UserError: No such model or images, none that can be read, or a network whose features are no grid.
        UsageError: No such head.
    """
    into_folder = not Path(config.out).suffix
    path = Path(config.out).expanduser() if into_folder else tile_grid.out(config.out, tile_grid.PICTURES)
    source = open_image_list(config.images)
    if len(source) > MOST and not into_folder:
        raise UsageError(f"{len(source)} images are too many for one picture", "Give a folder: --out attention/")
    sight = ImageEncoder(load(config.model, config.which).to(distributed.device(config.device)), config.size_px)
    began, bad, told = time.monotonic(), Bad(), list[dict[str, Any]]()

    def drawn() -> Iterator[tuple[str, list[list[Tile | None]]]]:
        for index, image in each(source, sight, bad):
            maps = sight.attention(image)
            kept = keep_mass(maps.mean(0).flatten(), config.mass)
            key, heads = source.key(index), _chosen(config.heads, len(maps))
            told.append({"image": key, "grid": list(maps.shape[1:]), "kept_frac": kept.float().mean().item()})
            yield key, tiles(image, maps, config.mass, heads, config.overlay, Path(key).stem)

    paths: list[str] = []
    if into_folder:
        paths = write_each(drawn(), path, lambda rows, to: Sheet(rows).save(to))
    elif rows := [row for _, rows in drawn() for row in rows]:
        Sheet(rows).save(path)
        paths = [str(path)]
    if not told:
        raise none_read(bad)
    where = paths[0] if len(paths) == 1 else f"{len(paths)} pictures in {path}"
    lines = [f"{sight.quantity}, {len(told)} image{'s' * (len(told) > 1)} → {where}"]
    lines += [f"'{config.mass:.0%} in 12%': 12 % of the patches hold that much of it"]
    lines += [f"note: {skipped_message(bad)}"] * bool(bad)
    fields = {"paths": paths, "images": told, "quantity": sight.quantity, "mass": config.mass, "skipped": len(bad)}
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
        image: As the network saw it.
        maps: float `[heads rows columns]`, not negative.
        mass: Share of the attention that the patches in color hold.
        heads: Those to show beside the mean of all; every one where None.
        overlay: Maps over the image rather than beside it.
        name: Of the image.
    """
    heads = range(len(maps)) if heads is None else heads
    shown = [("mean of heads", maps.mean(0))] if len(maps) > 1 else []
    shown += [(f"head {head}" if len(maps) > 1 else "share", maps[head]) for head in heads]
    blocks = math.ceil((len(shown) + 1) / _COLUMNS)
    columns = math.ceil((len(shown) + 1) / blocks)
    small = tile_grid.shrunk(image, tile_grid.WIDTH_PX // columns)
    pairs: list[tuple[Tile, Tile | None]] = [(Tile(small, name), None)]
    for title, each_map in shown:
        kept = keep_mass(each_map.flatten(), mass).view(each_map.shape)
        share = f"{mass:.0%} in {kept.float().mean().item():.0%}"
        pairs.append((Tile(heat(small, each_map, overlay), title), Tile(tile_grid.dimmed(small, kept), share)))
    if len(maps) == 1:
        return [[pairs[0][0], *pairs[1]]]
    rows: list[list[Tile | None]] = []
    for start in range(0, len(pairs), columns):
        upper, lower = zip(*pairs[start : start + columns], strict=True)
        rows += [list(upper), list(lower)]
    return rows


def heat(image: Image.Image, values: Tensor, overlay: bool = False) -> Image.Image:
    """A map `[rows columns]` in color at the size of the image, dark to bright.

    Args:
        image: Its size counts, and its content where `overlay`.
        values: Stretched from their smallest to their largest.
        overlay: Let the gray image shine through.
    """
    low, high = values.aminmax()
    picture = tile_grid.enlarged(tile_grid.color((values - low) / (high - low).clamp_min(1e-30)), image.size)
    return Image.blend(image.convert("L").convert("RGB"), picture, 0.6) if overlay else picture


def _chosen(heads: tuple[int, ...], number: int) -> Sequence[int]:
    for head in heads:
        if not 0 <= head < number:
            raise UsageError(f"There is no head {head}", f"This network has {number}: 0 to {number - 1}")
    return heads or range(number)
