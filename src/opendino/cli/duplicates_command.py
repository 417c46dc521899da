"""Find groups of near-duplicate images: opendino duplicates TABLE [--threshold 0.95] [--sheet groups.png]"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro

from opendino.cli import Outcome, flags, table_sheet
from opendino.core import distributed
from opendino.core.progress import track
from opendino.core.ranges import Checked, Cosine
from opendino.embeddings.embedding_table import left_out
from opendino.embeddings.open_table import open_table
from opendino.embeddings.table_images import TableImages
from opendino.features import pixel_copies
from opendino.features.duplicate_threshold import EQUAL, Cosines, cosine_distribution
from opendino.features.near_duplicates import Group, near_duplicates
from opendino.visualize.drawing import tile_grid

_THREADS = 4
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
    lost, vectors = len(table) - len(keys), vectors.to(device)
    cosines = cosine_distribution(vectors) if len(keys) > 1 else None
    threshold = config.threshold if config.threshold is not None else cosines.threshold if cosines else EQUAL
    found = sorted(near_duplicates(vectors, threshold), key=lambda group: (-len(group.indices), -max(group.similarity)))
    groups, num_unread = _with_copies(found, keys, table.about)
    num_redundant = sum(each["copy_of"] is not None for group in groups for each in group)
    sizes = Counter(len(group) for group in groups)
    fields = {
        "table": config.table, "threshold": threshold, "chosen": config.threshold is None, "images": len(keys),
        "sizes": {str(size): number for size, number in sizes.items()}, "redundant": num_redundant, "groups": groups,
        "unreadable": num_unread, "nearest_cosines": cosines and cosines.nearest,
        "random_cosine": cosines and cosines.random, "left_out": lost, "sheet": config.sheet,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    lines = [*_summary(fields, cosines), *_listed(groups)]
    if sheet and groups:
        table_sheet.save(_tiles(groups), table.about, sheet)
        lines.append(f"→ {config.sheet}")
    return Outcome("\n".join(lines), fields)


def _with_copies(
    found: Sequence[Group], keys: Sequence[str], about: Mapping[str, Any]
) -> tuple[list[list[dict[str, Any]]], int]:
    """The members of each group, with their cosine and the image they are a copy of; number of unreadable images."""
    images = TableImages(about, (keys[row] for group in found for row in group.indices), pixel_copies.AREA_PX)
    groups, num_unread = [], 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for group in track(found, "groups read"):
            read = pool.map(images.read, [keys[row] for row in group.indices])
            thumbnails = torch.stack([pixel_copies.thumbnail(image) for image in read])
            num_unread += int(thumbnails[:, 0].isnan().sum())
            first = pixel_copies.copies(thumbnails).tolist()
            members = zip(group.indices, group.similarity, first, strict=True)
            groups.append(
                [
                    {
                        "path": keys[row],
                        "score": round(score, 6),
                        "copy_of": None if group.indices[original] == row else keys[group.indices[original]],
                    }
                    for row, score, original in members
                ]
            )
    return groups, num_unread


def _summary(fields: dict[str, Any], cosines: Cosines | None) -> list[str]:
    """The distribution, the threshold, and the sizes of the groups, one line each."""
    lines = []
    if cosines:
        five, half, most, largest = (f"{value:.4f}" for value in cosines.nearest)
        lines.append(
            f"cosine to the nearest other image: 5% below {five}, half below {half}, 5% above {most}, "
            f"largest {largest}; of two random images {cosines.random:.4f}"
        )
    rule = "chosen: chance would give about one pair; --threshold overrides" if fields["chosen"] else "as given"
    lines.append(f"threshold {fields['threshold']:.6g} ({rule})")
    groups, num_images = fields["groups"], sum(map(len, fields["groups"]))
    sizes = ", ".join(f"{number:,} of {size}" for size, number in fields["sizes"].items()) or "none"
    lines.append(
        f"{len(groups):,} groups of near-duplicates among {fields['images']:,} images"
        f"{left_out(fields['left_out'])}: {sizes}"
    )
    if not groups:
        return lines
    alike = num_images - len(groups) - fields["redundant"]
    text = f"{fields['redundant']:,} images are copies of another by their pixels and are redundant"
    if alike > 0:
        text += f"; {alike:,} more only look similar to the model: check them by eye (--sheet)"
    if fields["unreadable"]:
        text += f"; {fields['unreadable']:,} could not be read and are not compared by pixels"
    return [*lines, text]


def _listed(groups: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """Every group with its images."""
    lines = []
    for number, group in enumerate(groups, 1):
        lines.append(f"group {number}: {len(group)} images")
        lines += [f"  {_mark(each):<12}  {each['path']}" for each in group]
    return lines


def _tiles(groups: Sequence[Sequence[dict[str, Any]]]) -> list[list[tuple[str, str] | None]]:
    """The first groups, as many side by side as fit in a row, with a gap between them."""
    rows: list[list[tuple[str, str] | None]] = [[]]
    for number, group in enumerate(groups, 1):
        shown = group[:_SHEET_COLUMNS]
        if rows[-1] and len(rows[-1]) + 1 + len(shown) > _SHEET_COLUMNS:
            if len(rows) == _SHEET_ROWS:
                break
            rows.append([])
        rows[-1] += [None] if rows[-1] else []
        rows[-1] += [(each["path"], f"{number} of {len(group)}: {_mark(each)}") for each in shown]
    return rows


def _mark(member: dict[str, Any]) -> str:
    """The cosine of an image, and whether it is a copy."""
    return f"{member['score']:.4f}" + (" copy" if member["copy_of"] is not None else "")
