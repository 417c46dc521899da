"""Export to one .pt2 file of `torch.export`: runs in PyTorch without this package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from opendino.core.errors import UserError
from opendino.core.ranges import Checked
from opendino.interop import compare_outputs, traced_graph
from opendino.models.load import Model


@dataclass(frozen=True)
class Config(Checked):
    """No options. Load the file with `torch.export.load`; load only files you trust, they can execute code."""


def write(model: Model, out: Path, config: Config) -> float:
    """Write the graph images float32 `[B C H W]` → (cls `[B D]`, patches `[B N D]`), with dynamic batch and image size.

    The preprocessing is in the file as JSON: `torch.export.load(file, extra_files={"preprocessing": ""})`.

    Returns:
        The largest difference of the outputs after loading it again.

    Raises:
        UserError: The name does not end in .pt2, or the network cannot be exported.
    """
    if out.suffix != ".pt2":
        raise UserError(f"'{out.name}' does not end in .pt2", f"Write --out {out.with_suffix('.pt2')}")
    traced = traced_graph.trace(model)
    torch.export.save(traced.program, out, extra_files={"preprocessing": json.dumps(model.preprocessing)})
    again, largest = torch.export.load(out).module(), 0.0
    for images, ours in traced.examples():
        with torch.no_grad():
            largest = max(largest, compare_outputs.largest_difference(ours, again(images), "torch.export"))
    return largest
