"""Write resized images as WebDataset shards, for faster training: opendino pack DATA --out shards/"""

from __future__ import annotations

from dataclasses import asdict, dataclass
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

_DEFAULT_PX = 448  # at this size the paper's crops are not upsampled: 224 px of 25 % of an image, 96 px of 5 %


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino pack`."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: a folder, a .tar or .zip, a text file of paths, shards, a Hugging Face dataset."""
    out: str
    """Folder for the shards; the same command continues an interrupted pack."""
    size: PixelSize | None = None
    """Shrink larger images to the area of a square with this side, in pixels (default: 448)."""
    crops_of: str | None = None
    """Name of a recipe: use the smallest size at which its crops are not upsampled, instead of --size."""
    tiles: PixelSize | None = None
    """Cut larger images into tiles of this side in pixels, at full resolution; for slides and aerial images.
    One large image is in memory at a time: 4 bytes per pixel, 16 for images of more than 8 bits."""
    max_pixels: Annotated[int, Meta(ge=1, le=2**40)] | None = None
    """Skip images with more pixels (default: 250 million, with --tiles 1,000 million)."""
    shard_mb: Annotated[int, Meta(ge=1, le=10**6)] = 256
    """Size of a shard in MB."""
    format: shard_writer.Format = "jpeg"
    """Format of resized images: jpeg or webp (quality 95), or png (lossless). Small images are copied unchanged."""
    workers: Workers | None = None
    """Number of threads that decode and encode (default: number of cores + 4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("size", "crops_of", "tiles") if getattr(self, name) is not None]
        if len(given) > 1:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given[:2])
            raise UsageError(f"{flags} were both given", "Give one of them")


def run(args: list[str]) -> Outcome:
    """Write shards, which are faster to read than the original images."""
    config = _flags.parse(Config, args, "opendino pack", "Write resized images as WebDataset shards.")
    area_px = _crops(config.crops_of) if config.crops_of else (config.tiles or config.size or _DEFAULT_PX) ** 2
    source = open_source(config.data)
    plan = shard_writer.Plan(
        absolute(config.data), len(source), area_px, config.format, config.shard_mb, config.tiles, config.max_pixels
    )
    out = Path(config.out).expanduser()
    done = shard_writer.pack(source, plan, out, config.workers)
    left_out = f"{len(done.bad):,} unusable images skipped, see {out / 'bad_files.csv'}\n" if done.bad else ""
    what = "images and tiles" if config.tiles else "images"
    text = (
        f"{done.images:,} {what} in {done.shards:,} shards, {done.num_bytes / 1e6:,.1f} MB; "
        f"{done.unchanged:,} copied unchanged\n{left_out}Train on them with: opendino train {out}"
    )
    facts = asdict(done) | {"out": str(out), "bad": len(done.bad), "max_area_px": area_px}
    return Outcome(text, facts)


def _crops(recipe: str) -> int:
    config = registry.load("opendino.recipes", recipe).config("images")
    if any("auto" in (getattr(view, "size", None), view.crop.scale) for view in config.views.values()):
        raise UsageError(f"Recipe {recipe} chooses its crop sizes from the images", "Give --size instead of --crops-of")
    return working_area_px(configs.views(config))
