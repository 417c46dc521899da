"""ONNX, checked with onnxruntime: images in, CLS and patches out, attention on request."""

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
    """How the graph is written."""

    attention: bool = False
    """Also give the last block's self-attention [B heads T T]."""
    opset: Annotated[int, Meta(ge=18, le=23)] = 18
    """Version of ONNX's operators; 18 is what most runtimes know."""


def write(model: Model, out: Path, config: Config) -> float:
    """Write images float32 `[B 3 H W]` → cls `[B D]`, patches `[B N D]` and on request attention `[B heads T T]`.

    Batch and, where the network can be recorded so, image size are open. The file's metadata hold the fingerprint and,
    as JSON, how to prepare images. Weights beyond the 2 GB of one file lie in `NAME.onnx.data` beside it.

    Raises:
        UserError: The name does not end in .onnx, or the network cannot be recorded or has no attention.
    """
    import onnxruntime

    if out.suffix != ".onnx":
        raise UserError(f"'{out.name}' does not end in .onnx", f"Write --out {out.stem}.onnx")
    recorded = traced_graph.record(model, config.attention)
    names = ["cls", "patches", *(["attention"] if config.attention else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        graph = torch.onnx.export(
            recorded.program, input_names=["images"], output_names=names, opset_version=config.opset, verbose=False,
            dynamo=True,
        )  # fmt: skip
    assert graph is not None
    graph.model.producer_name = "opendino"
    told = {"architecture": model.backbone.name, "fingerprint": model.fingerprint, "image_sides": recorded.sides}
    graph.model.metadata_props.update(told | {"preprocessing": json.dumps(model.preprocessing)})
    graph.save(out)
    session, largest = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"]), 0.0
    for batch, height, width in recorded.sizes:
        images = compare_outputs.random_images(model, batch, height, width)
        theirs = [torch.from_numpy(found) for found in session.run(names, {"images": images.numpy()})]
        with torch.no_grad():
            ours = recorded.network(images)
        largest = max(largest, compare_outputs.largest_difference(ours, theirs, "onnxruntime"))
    return largest
