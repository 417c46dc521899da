"""Find groups of near-duplicate images: opendino duplicates TABLE [--threshold 0.95] [--sheet groups.png]"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from opendino.cli import Outcome, flags, table_sheet
from opendino.core import distributed
from opendino.core.ranges import Checked, Cosine
from opendino.embeddings.duplicate_groups import Duplicates, Member, find_duplicates
from opendino.embeddings.embedding_table import left_out
from opendino.embeddings.open_table import open_table
from opendino.visualize.drawing import tile_grid

_SHEET_ROWS, _SHEET_COLUMNS = 20, 8


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino duplicates`."""

    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A .lance table or a .parquet file of `opendino embed`."""
    threshold: Cosine | None = None
    """Smallest cosine similarity of two near-duplicates; default: chosen from the cosines of nearest neighbors so that
    chance would give about one pair."""
    sheet: str | None = None
    """Also save the largest groups as a picture: .png, .jpg, .svg, .html ..."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu. All pairs are compared; needs memory for two copies of the vectors."""


def run(args: list[str]) -> Outcome:
    """Find groups of images in which each has a cosine of at least the threshold with another of the group.

    The pixels then decide which of a group are copies; only copies are called redundant.
    """
    config = flags.parse(Config, args, "opendino duplicates", "Find groups of near-duplicate images in a table.")
    began = time.monotonic()
    sheet = tile_grid.out(config.sheet, tile_grid.PICTURES) if config.sheet else None
    device = distributed.device(config.device)
    table = open_table(config.table)
    keys, vectors = table.normalized()
    lost = len(table) - len(keys)
    found = find_duplicates(keys, vectors.to(device), table.about, config.threshold)
    sizes = Counter(map(len, found.groups))
    groups = [
        [{"path": each.key, "score": round(each.cosine, 6), "copy_of": each.copy_of} for each in group]
        for group in found.groups
    ]
    fields = {
        "table": config.table, "threshold": found.threshold, "chosen": config.threshold is None, "images": len(keys),
        "sizes": {str(size): number for size, number in sizes.items()}, "redundant": len(found.copies),
        "groups": groups, "unreadable": found.num_unread, "nearest_cosines": found.cosines and found.cosines.nearest,
        "random_cosine": found.cosines and found.cosines.random, "left_out": lost, "sheet": config.sheet,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    lines = [*_summary(fields, found), *_listed(found.groups)]
    if sheet and groups:
        table_sheet.save(_tiles(found.groups), table.about, sheet)
        lines.append(f"→ {config.sheet}")
    return Outcome("\n".join(lines), fields)


def _summary(fields: dict[str, Any], found: Duplicates) -> list[str]:
    """The distribution, the threshold, and the sizes of the groups, one line each."""
    lines = []
    if found.cosines:
        five, half, most, largest = (f"{value:.4f}" for value in found.cosines.nearest)
        lines.append(
            f"cosine to the nearest other image: 5% below {five}, half below {half}, 5% above {most}, "
            f"largest {largest}; of two random images {found.cosines.random:.4f}"
        )
    rule = "chosen: chance would give about one pair; --threshold overrides" if fields["chosen"] else "as given"
    lines.append(f"threshold {fields['threshold']:.6g} ({rule})")
    sizes = ", ".join(f"{number:,} of {size}" for size, number in fields["sizes"].items()) or "none"
    lines.append(
        f"{len(found.groups):,} groups of near-duplicates among {fields['images']:,} images"
        f"{left_out(fields['left_out'])}: {sizes}"
    )
    if not found.groups:
        return lines
    text = f"{len(found.copies):,} images are copies of another by their pixels and are redundant"
    if found.num_similar > 0:
        text += f"; {found.num_similar:,} more only look similar to the model: check them by eye (--sheet)"
    if found.num_unread:
        text += f"; {found.num_unread:,} could not be read and are not compared by pixels"
    return [*lines, text]


def _listed(groups: Sequence[Sequence[Member]]) -> list[str]:
    """Every group with its images."""
    lines = []
    for number, group in enumerate(groups, 1):
        lines.append(f"group {number}: {len(group)} images")
        lines += [f"  {each.mark:<12}  {each.key}" for each in group]
    return lines


def _tiles(groups: Sequence[Sequence[Member]]) -> list[list[tuple[str, str] | None]]:
    """The first groups, as many side by side as fit in a row, with a gap between them."""
    rows: list[list[tuple[str, str] | None]] = [[]]
    for number, group in enumerate(groups, 1):
        shown = group[:_SHEET_COLUMNS]
        if rows[-1] and len(rows[-1]) + 1 + len(shown) > _SHEET_COLUMNS:
            if len(rows) == _SHEET_ROWS:
                break
            rows.append([])
        rows[-1] += [None] if rows[-1] else []
        rows[-1] += [
            (each.key, f"group {number}: {place}/{len(group)}\n{each.mark}") for place, each in enumerate(shown, 1)
        ]
    return rows
