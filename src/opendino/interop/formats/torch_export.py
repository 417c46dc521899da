"""A recorded graph as one .pt2 file of `torch.export`: runs in PyTorch without this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from opendino.core.errors import UserError
from opendino.core.ranges import Checked
from opendino.interop import compare_outputs, traced_graph
from opendino.models.load import Model


@dataclass(frozen=True)
class Config(Checked):
    """No flags. `torch.export.load` reads such a file; load only those you made yourself, it may run what they say."""


def write(model: Model, out: Path, config: Config) -> float:
    """Write images `[B 3 H W]` → (cls `[B D]`, patches `[B N D]`), for any batch and, where possible, any size.

    Raises:
        UserError: The name does not end in .pt2, or the network cannot be recorded.
    """
    if out.suffix != ".pt2":
        raise UserError(f"'{out.name}' does not end in .pt2", f"Write --out {out.stem}.pt2")
    recorded = traced_graph.record(model)
    torch.export.save(recorded.program, out)
    again, largest = torch.export.load(out).module(), 0.0
    for batch, height, width in recorded.sizes:
        images = compare_outputs.random_images(model, batch, height, width)
        with torch.no_grad():
            largest = max(
                largest, compare_outputs.largest_difference(recorded.network(images), again(images), "torch.export")
            )
    return largest
