"""Say what is in a set of images, before training: opendino inspect DATA [--sheet sheet.png]"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from opendino.cli import Outcome, flags, table_sheet
from opendino.core.ranges import Checked
from opendino.data.image_overview import look_at
from opendino.data.video_file import join_every
from opendino.visualize.drawing import tile_grid

_COLUMNS = 4
_LISTED = 5
"""Number of unusable images that are printed; --json has those found."""


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino inspect`."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: a folder, a .tar or .zip, a text file of paths, or any other source."""
    stack: str = "ask"
    """What the pages of a file are: ask, channels, max, mean, images, or the number of a page."""
    every: str = ""
    """Time between the frames used of videos in DATA: 2s, or all for every frame; default 1s."""
    all_images: bool = False
    """Look at every image instead of some spread over the set: finds every file that cannot be used."""
    sheet: str | None = None
    """Also save examples as a picture, by the range of values found: .png, .jpg, .svg, .html ..."""

    def __post_init__(self) -> None:
        super().__post_init__()
        join_every(self)


def run(args: list[str]) -> Outcome:
    """Read a sample of the images: sizes, depth, channels, range of values, files that cannot be used."""
    config = flags.parse(Config, args, "opendino inspect", "Say what is in a set of images, before training.")
    sheet = tile_grid.out(config.sheet, tile_grid.PICTURES) if config.sheet else None
    found = look_at(config.data, config.stack, config.all_images)
    width = max(map(len, found.facts))
    lines = [f"{name:<{width}}  {fact}" for name, fact in found.facts.items()]
    if found.bad:
        lines.append(f"{'not usable':<{width}}  {len(found.bad):,} of those looked at; a training leaves them out")
        lines += [f"{'':<{width}}  {key}: {reason}" for key, reason in found.bad[:_LISTED]]
    if sheet:
        tiles = [table_sheet.tile(image, key) for image, key in found.examples]
        tile_grid.Sheet(table_sheet.in_rows(tiles, _COLUMNS)).save(sheet)
        lines.append(f"→ {config.sheet}")
    command = config.data if found.recipe == "auto" else f"{config.data} --recipe {found.recipe}"
    lines.append(f"next: opendino visualize crops {command}, or opendino train {command}")
    return Outcome("\n".join(lines), {"data": config.data, **asdict(found) | {"examples": len(found.examples)}})
