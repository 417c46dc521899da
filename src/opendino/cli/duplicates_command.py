"""Find groups of near-duplicate images: opendino duplicates TABLE [--threshold 0.95]"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from opendino.cli import Outcome, flags
from opendino.core import distributed
from opendino.core.ranges import Checked, Cosine
from opendino.embeddings.embedding_table import left_out
from opendino.embeddings.open_table import open_table
from opendino.features.near_duplicates import near_duplicates


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino duplicates`."""

    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A .lance table or a .parquet file of `opendino embed`."""
    threshold: Cosine = 0.95
    """Smallest cosine similarity of two near-duplicates; depends on the model, so check a few groups by eye."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu. All pairs are compared; needs memory for two copies of the vectors."""


def run(args: list[str]) -> Outcome:
    """Find groups of images in which each has a cosine of at least the threshold with another of the group."""
    config = flags.parse(Config, args, "opendino duplicates", "Find groups of near-duplicate images in a table.")
    began = time.monotonic()
    device = distributed.device(config.device)
    table = open_table(config.table)
    keys, vectors = table.normalized()
    lost = len(table) - len(keys)
    groups = [
        [
            {"path": keys[row], "score": round(score, 6)}
            for row, score in zip(group.indices, group.similarity, strict=True)
        ]
        for group in near_duplicates(vectors.to(device), config.threshold)
    ]
    num_surplus = sum(len(group) - 1 for group in groups)
    lines = [
        f"{len(groups):,} groups of near-duplicates (cosine ≥ {config.threshold}) among {len(keys):,} images; "
        f"{num_surplus:,} are redundant{left_out(lost)}"
    ]
    for number, group in enumerate(groups, 1):
        lines += [f"group {number}", *(f"  {each['score']:7.4f}  {each['path']}" for each in group)]
    fields = {"table": config.table, "threshold": config.threshold, "images": len(keys), "groups": groups}
    return Outcome("\n".join(lines), {**fields, "left_out": lost, "seconds": time.monotonic() - began})
