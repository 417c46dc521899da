"""Find the most unusual images: opendino outliers TABLE [--k 10] [--sheet sheet.png] [--out FILE.csv]"""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from opendino.cli import Outcome, flags, table_sheet
from opendino.core import atomic_write, distributed
from opendino.core.errors import UserError
from opendino.core.ranges import Checked, Count
from opendino.data.open_source import list_paths, not_files
from opendino.data.source_files import cell
from opendino.embeddings.embedding_table import left_out
from opendino.embeddings.open_table import open_table
from opendino.features.outlier_scores import most_unusual, num_unusual
from opendino.visualize.drawing import tile_grid

_COLUMNS = 8
_NAMES = {"distance": "distance", "lof": "local outlier factor"}


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino outliers`."""

    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A .lance table or a .parquet file of `opendino embed`."""
    k: Annotated[Count, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of neighbors; a group of at most this many unusual images that resemble each other is still found."""
    by: Literal["distance", "lof"] = "distance"
    """distance: far from the k-th neighbor; lof: in a thinner place than its neighbors (local outlier factor), for sets
    with tight and loose clusters."""
    num: Count = 40
    """Number of images to print and to draw."""
    out: str | None = None
    """CSV file to write: path, distance, lof of all images, the most unusual first. Works as DATA."""
    sheet: str | None = None
    """Also save the most unusual images as a picture: .png, .jpg, .svg, .html ..."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu. All pairs are compared."""


def run(args: list[str]) -> Outcome:
    """Order the images of a table by how far they are from others."""
    config = flags.parse(Config, args, "opendino outliers", "Find the most unusual images of a table.")
    began = time.monotonic()
    out = tile_grid.out(config.out, (".csv",)) if config.out else None
    sheet = tile_grid.out(config.sheet, tile_grid.PICTURES) if config.sheet else None
    device = distributed.device(config.device)
    table = open_table(config.table)
    keys, vectors = table.normalized()
    lost = len(table) - len(keys)
    if config.k >= len(keys):
        raise UserError(
            f"--k is {config.k}, and there are {len(keys):,} images{left_out(lost)}",
            f"Use at most {len(keys) - 1}" if len(keys) > 1 else "Embed more images",
        )
    order, distance, factor = most_unusual(vectors.to(device), config.k, config.by)
    rows = [
        {"path": keys[row], "distance": round(float(distance[row]), 6), "lof": round(float(factor[row]), 4)}
        for row in order
    ]
    unusual, limit = num_unusual(distance, factor, config.by)
    lines = [
        f"{len(keys):,} images{left_out(lost)}: distance to neighbor {config.k} of unit vectors (0 to 2, median "
        f"{float(distance.median()):.4f}) and local outlier factor (about 1 is usual)",
        f"{unusual:,} unusual: {_NAMES[config.by]} above {limit:.4f}, 3.5 robust standard deviations of its "
        "logarithm above the median; no rule knows which of them matter. The list has the farthest, unusual or not",
        f"{'distance':>9}{'lof':>8}",
        *(f"{row['distance']:>9.4f}{row['lof']:>8.2f}  {row['path']}" for row in rows[: config.num]),
    ]
    if out:
        atomic_write.write(out, _table_text(rows, table.about["data"]))
        lines.append(f"all {len(rows):,} → {config.out}")
        if told := not_files(list_paths(table.about["data"], [rows[0]["path"]])):
            lines.append(f"note: {told}")
    if sheet:
        tiles = [(row["path"], f"{row['distance']:.3f}  lof {row['lof']:.2f}") for row in rows[: config.num]]
        table_sheet.save(table_sheet.in_rows(tiles, _COLUMNS), table.about, sheet)
        lines.append(f"→ {config.sheet}")
    fields = {
        "table": config.table, "images": len(keys), "k": config.k, "by": config.by, "unusual": unusual,
        "limit": limit, "outliers": rows[: config.num],
        "median_distance": float(distance.median()), "left_out": lost, "out": config.out, "sheet": config.sheet,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    return Outcome("\n".join(lines), fields)


def _table_text(rows: list[dict[str, Any]], data: str) -> str:
    """The rows as CSV, with paths that can be read from any folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "distance", "lof"])
    for path, row in zip(list_paths(data, [row["path"] for row in rows]), rows, strict=True):
        writer.writerow([cell(path), row["distance"], row["lof"]])
    return text.getvalue()
