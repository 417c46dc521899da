"""Export to ONNX, checked with onnxruntime: images → CLS, patches and optionally attention."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta

from opendino.core.errors import UserError
from opendino.core.ranges import Checked
from opendino.interop import compare_outputs, traced_graph
from opendino.models.load import Model


@dataclass(frozen=True)
class Config(Checked):
    """Options of the ONNX export."""

    photographs: bool = False
    """The graph takes decoded photographs, uint8 [B H W 3] of any size, and resizes, crops and normalizes them itself,
    as `opendino embed` does. Needs float64 in the runtime."""
    attention: bool = False
    """Also output the last block's self-attention [B heads T T]."""
    opset: Annotated[int, Meta(ge=18, le=23)] = 18
    """ONNX opset version; most runtimes support 18. Raise it only if your runtime needs a newer one."""


def write(model: Model, out: Path, config: Config) -> float:
    """Write images float32 `[B C H W]` → cls `[B D]`, patches `[B N D]`, optionally attention `[B heads T T]`.

    With `photographs` the images are uint8 `[B H W 3]` of any size. Batch size and, if the network supports it, image
    size are dynamic. The metadata of the file hold the fingerprint and the preprocessing as JSON, with the names and
    the range of channels that are not those of photographs. Weights beyond the 2 GB limit of one file are in
    `NAME.onnx.data` next to it.

    Returns:
        The largest difference between outputs of the network and of onnxruntime.

    Raises:
        UserError: The name does not end in .onnx, or the network cannot be exported or has no attention.
    """
    import onnxruntime

    if out.suffix != ".onnx":
        raise UserError(f"'{out.name}' does not end in .onnx", f"Write --out {out.with_suffix('.onnx')}")
    traced = traced_graph.trace(model, config.attention, config.photographs)
    names = ["cls", "patches", *(["attention"] if config.attention else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter about its own code
        graph = torch.onnx.export(
            traced.program, input_names=["images"], output_names=names, opset_version=config.opset, verbose=False,
            dynamo=True,
        )  # fmt: skip
    assert graph is not None
    graph.model.producer_name = "opendino"
    metadata = {"architecture": model.backbone.name, "fingerprint": model.fingerprint, "image_sides": traced.sides}
    graph.model.metadata_props.update(metadata | {"preprocessing": json.dumps(model.preprocessing)})
    graph.save(out)
    session, largest = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"]), 0.0
    for images, ours in traced.examples():
        theirs = [torch.from_numpy(found) for found in session.run(names, {"images": images.numpy()})]
        largest = max(largest, compare_outputs.largest_difference(ours, theirs, "onnxruntime"))
    return largest
