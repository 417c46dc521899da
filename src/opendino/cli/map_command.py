"""Draw a 2-D map of a table with its images: opendino map TABLE [--color-by folder] [--out map.png]"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from opendino.cli import Outcome, flags, table_sheet
from opendino.core.ranges import Checked
from opendino.embeddings.embedding_table import left_out
from opendino.embeddings.open_table import open_table
from opendino.embeddings.table_groups import group_names
from opendino.embeddings.table_images import TableImages
from opendino.features.projection import Projection, project
from opendino.visualize.drawing import scatter_map, style, tile_grid


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino map`."""

    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A .lance table or a .parquet file of `opendino embed`."""
    color_by: str = "folder"
    """folder, cluster (eight of them, by k-means), or the name of a column of --labels."""
    labels: str | None = None
    """CSV file with a column of paths and the columns to color by."""
    projection: Projection = "pca"
    """pca: fast, keeps large distances; umap: keeps neighbors together (pip install "opendino[umap]")."""
    out: str = "map.png"
    """Picture to write: .png, .svg, .pdf or .html. `opendino app` shows the map to select images on it."""


def run(args: list[str]) -> Outcome:
    """Project the vectors to two dimensions and draw them."""
    config = flags.parse(Config, args, "opendino map", "Draw a 2-D map of a table with its images.")
    began = time.monotonic()
    out = tile_grid.out(config.out, style.FIGURES)
    table = open_table(config.table)
    keys, vectors = table.normalized()
    lost = len(table) - len(keys)
    names = group_names(keys, vectors, config.color_by, config.labels)
    points = project(vectors, config.projection)
    rows = scatter_map.shown_rows(points)
    images = TableImages(table.about, (keys[row] for row in rows), table_sheet.AREA_PX)
    thumbnails = {row: image for row in rows if (image := images.read(keys[row]))}
    style.save(scatter_map.figure(points, names, thumbnails), out)
    groups = {name: count for name, (_, count) in scatter_map.colors(names).items()}
    fields = {
        "out": config.out, "images": len(keys), "left_out": lost, "shown": len(thumbnails), "color_by": config.color_by,
        "projection": config.projection, "groups": groups, "seconds": time.monotonic() - began,
    }  # fmt: skip
    return Outcome(
        f"{len(keys):,} images{left_out(lost)}, {len(thumbnails)} of them shown, colored by {config.color_by} → "
        f"{config.out}\nImages that lie together look alike to the model.",
        fields,
    )
