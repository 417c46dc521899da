"""Write images as shards at working size, once for all runs: opendino pack DATA --out shards/"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro
from msgspec import Meta

from opendino import config as configs
from opendino.cli import Outcome
from opendino.cli import flags as _flags
from opendino.core import registry
from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, PixelSize, Workers
from opendino.data import shard_writer
from opendino.data.decode import working_area_px
from opendino.data.open_source import absolute, open_source

_DEFAULT_PX = 448  # the paper's crops have native pixels from here on: 224 px of 25 % of an image, 96 px of 5 %


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino pack` takes."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: a folder, a .tar or .zip, a text file of paths, shards, a Hugging Face dataset."""
    out: str
    """Folder of the shards; an interrupted pack into it goes on where it stopped."""
    size: PixelSize | None = None
    """Larger images are shrunk to the area of a square of this side, in pixels; 448 where neither this nor --crops-of
    is given, enough for the paper's crops."""
    crops_of: str | None = None
    """The size at which the smallest crop of this recipe still has native pixels."""
    tiles: PixelSize | None = None
    """Cut images larger than this many pixels a side into tiles of that side, at full resolution; for slides and
    aerial images. One large image is in memory at a time, at 4 bytes a pixel (16 for more than 8 bits)."""
    max_pixels: Annotated[int, Meta(ge=1, le=2**40)] | None = None
    """Leave out images of more pixels; 250 million where not given, 1,000 million with --tiles."""
    shard_mb: Annotated[int, Meta(ge=1, le=10**6)] = 256
    """Megabytes of a shard."""
    format: shard_writer.Format = "jpeg"
    """What shrunk images become: jpeg or webp (quality 95), or png, without loss. Small ones stay as they are."""
    workers: Workers | None = None
    """Threads that decode and encode; four more than there are cores by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("size", "crops_of", "tiles") if getattr(self, name) is not None]
        if len(given) > 1:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given[:2])
            raise UsageError(f"{flags} were both given", "Give one of them")


def run(args: list[str]) -> Outcome:
    """Shards that any run reads faster than the images they were made of."""
    config = _flags.parse(Config, args, "opendino pack", "Write images as WebDataset shards at working size.")
    area_px = _crops(config.crops_of) if config.crops_of else (config.tiles or config.size or _DEFAULT_PX) ** 2
    source = open_source(config.data)
    plan = shard_writer.Plan(
        absolute(config.data), len(source), area_px, config.format, config.shard_mb, config.tiles, config.max_pixels
    )
    out = Path(config.out).expanduser()
    done = shard_writer.pack(source, plan, out, config.workers)
    left_out = f"{len(done.bad):,} unreadable left out, see {out / 'bad_files.csv'}\n" if done.bad else ""
    what = "images and tiles" if config.tiles else "images"
    text = (
        f"{done.images:,} {what} in {done.shards:,} shards, {done.num_bytes / 1e6:,.1f} MB; "
        f"{done.unchanged:,} passed through as they were\n{left_out}Train on them with: opendino train {out}"
    )
    facts = asdict(done) | {"out": str(out), "bad": len(done.bad), "max_area_px": area_px}
    return Outcome(text, facts)


def _crops(recipe: str) -> int:
    config = registry.load("opendino.recipes", recipe).config("images")
    if any(
        field.name.endswith("size_px") and getattr(config.method, field.name) == "auto"
        for field in fields(config.method)
    ):
        raise UsageError(f"Recipe {recipe} chooses its crops by the images", "Give --size in pixels")
    return working_area_px(configs.views(config))
