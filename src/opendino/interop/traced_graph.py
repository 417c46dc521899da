"""Trace a network to a graph with `torch.export`, for any batch size and, if possible, any image size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from opendino.core import log
from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.interop import compare_outputs
from opendino.models.load import Model
from opendino.models.patch_inputs import patch_px

_MAX_DIM = 4096
"""Largest batch size and number of patches along a side of the exported graph."""


class Outputs(nn.Module):
    """Outputs of the graph for images float32 `[B C H W]`: cls `[B D]`, patches `[B N D]`, and optionally attention."""

    def __init__(self, backbone: Backbone, attention: bool) -> None:
        super().__init__()
        self.backbone, self.attention = backbone, attention

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(cls, patches) or (cls, patches, attention `[B heads T T]` of the last block)."""
        found = self.backbone.features(images)
        return (found.cls, found.patches, *([self.backbone.attention(images)] if self.attention else []))


@dataclass(frozen=True)
class TracedGraph:
    """An exported graph and its network.

    Attributes:
        program: The exported graph; its input is `images`.
        network: The module that was traced.
        sizes: (B, H, W) at which to compare the two.
        sides: Description of the supported image sides.
    """

    program: ExportedProgram
    network: Outputs
    sizes: tuple[tuple[int, int, int], ...]
    sides: str


def trace(model: Model, attention: bool = False) -> TracedGraph:
    """Trace cls and patches, and optionally attention.

    Tries dynamic image sizes first, then falls back to the image size of the model with a warning.

    Raises:
        UserError: The network has no grid of patches or no attention, or cannot be exported.
    """
    network = Outputs(model.backbone, attention).eval()
    side, step = model.preprocessing["image_px"], patch_px(model)
    try:
        with torch.no_grad():
            network(compare_outputs.random_images(model, 1))
    except NotImplementedError as error:
        raise UserError(str(error), "Leave --attention out") from error
    batch = Dim("batch", min=1, max=_MAX_DIM)
    dynamic_sides = {2: step * Dim("rows", min=1, max=_MAX_DIM), 3: step * Dim("columns", min=1, max=_MAX_DIM)}
    try:
        # an example that is not square and not of the native size, where the network may take another branch
        program = _export(
            network, compare_outputs.random_images(model, 2, side + step, side + 2 * step), {0: batch, **dynamic_sides}
        )
        sizes = ((1, side, side), (3, side + step, side + 3 * step), (2, 2 * side, side))
        return TracedGraph(program, network, sizes, f"multiples of {step} px")
    except Exception as error:  # torch raises many error types if dynamic shapes fail
        reason = str(error).strip().partition("\n")[0]
    try:
        program = _export(network, compare_outputs.random_images(model, 2), {0: batch})
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"torch.export cannot export {model.backbone.name}: {reason}", "Choose another --to") from error
    log.warn(
        f"{model.backbone.name} is exported for images of {side}×{side} px only; dynamic image sizes failed: {reason}"
    )
    return TracedGraph(program, network, ((1, side, side), (3, side, side)), f"{side} px")


def _export(network: Outputs, images: Tensor, dimensions: dict[int, Dim]) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes={"images": dimensions}, strict=False)
