"""Find the most similar images in a table: opendino search MODEL TABLE IMAGE... [-k 10] [--sheet OUT.png]"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from opendino.cli import Outcome, flags, table_sheet
from opendino.core import distributed
from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, Count
from opendino.embeddings.embedding_table import check_model, left_out
from opendino.embeddings.open_table import open_table
from opendino.embeddings.table_images import TableImages
from opendino.models.image_reading import ImageReading
from opendino.models.load import load
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.tile_grid import Tile


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino search`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model that made the table."""
    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A .lance table or a .parquet file of `opendino embed`."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Query image files."""
    k: Annotated[Count, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of results per query."""
    exact: bool = False
    """Compare with all images even if the table has an approximate index (tables of 100,000 images or more)."""
    sheet: str | None = None
    """Also save the results as a picture: .png, .jpg, .svg, .html ..."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu."""


def run(args: list[str]) -> Outcome:
    """Find the nearest neighbors of each query by cosine similarity."""
    config = flags.parse(Config, args, "opendino search", "Find the most similar images in a table.")
    if not config.images:
        raise UsageError("No image was named to search for", "Give one: opendino search MODEL TABLE photo.jpg")
    sheet = tile_grid.out(config.sheet, tile_grid.PICTURES) if config.sheet else None
    table = open_table(config.table)
    model = load(config.model, table.about["which"])
    check_model(table, model, config.model)
    pixels = torch.stack([model.preprocess(image) for image in config.images])
    found = table.nearest(
        model.to(distributed.device(config.device)).embed(pixels).float().cpu(), config.k, exact=config.exact
    )
    searches = [
        {
            "query": query,
            "results": [{"path": key, "score": round(score, 6)} for key, score in zip(keys, scores, strict=True)],
        }
        for query, keys, scores in zip(config.images, found.keys, found.scores, strict=True)
    ]
    method = "exact" if found.exact else "approximate (index)"
    lines = []
    for search in searches:
        lines += [
            f"{search['query']}: {len(search['results'])} of {len(table):,} images, {method}{left_out(found.left_out)}"
        ]
        lines += [f"  {hit['score']:7.4f}  {hit['path']}" for hit in search["results"]]
    if sheet:
        tile_grid.Sheet(_tiles(searches, table.about, model.reading)).save(sheet)
        lines.append(f"→ {config.sheet}")
    fields = {"table": config.table, "exact": found.exact, "left_out": found.left_out, "sheet": config.sheet}
    return Outcome("\n".join(lines), {**(searches[0] if len(searches) == 1 else {"searches": searches}), **fields})


def _tiles(searches: list[dict], about: Mapping[str, Any], reading: ImageReading) -> list[list[Tile | None]]:
    """One row per query: the query, then its results."""
    keys = (hit["path"] for search in searches for hit in search["results"])
    images = TableImages(about, keys, table_sheet.AREA_PX)
    rows = []
    for search in searches:
        pixels = reading.decode(Path(search["query"]).expanduser().read_bytes(), table_sheet.AREA_PX)
        tiles: list[Tile | None] = [table_sheet.tile(reading.picture(pixels), f"query\n{Path(search['query']).name}")]
        for hit in search["results"]:
            title = f"{hit['score']:.4f}\n{hit['path']}"
            tiles.append(table_sheet.tile(images.read(hit["path"]), title))
        rows.append(tiles)
    return rows
