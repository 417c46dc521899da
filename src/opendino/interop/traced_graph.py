"""Trace a network to a graph with `torch.export`, for any batch size and, if possible, any image size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from opendino.core import log
from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.interop import compare_outputs
from opendino.interop.photograph_input import PhotographInput
from opendino.models.load import Model
from opendino.models.patch_inputs import patch_px

_MAX_DIM = 4096
"""Largest batch size and number of patches along a side of the exported graph."""
_MAX_SIDE_PX = 2**16
"""Largest side of a photograph that the graph prepares itself."""


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
        model: The model.
        network: The module that was traced, without the preparation of photographs.
        sizes: (B, H, W) at which to compare the two.
        sides: Description of the supported image sides.
        photographs: Whether the graph takes photographs and prepares them.
    """

    program: ExportedProgram
    model: Model
    network: Outputs
    sizes: tuple[tuple[int, int, int], ...]
    sides: str
    photographs: bool = False

    def examples(self) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """Random inputs of the graph, and the outputs of the model for them, each `[B ...]`, to compare with."""
        for batch, height, width in self.sizes:
            if self.photographs:
                images = _random_photographs(batch, height, width)
                prepared = torch.stack([self.model.prepare(image.numpy()) for image in images])
            else:
                images = prepared = compare_outputs.random_images(self.model, batch, height, width)
            with torch.no_grad():
                yield images, self.network(prepared)


def trace(model: Model, attention: bool = False, photographs: bool = False) -> TracedGraph:
    """Trace cls and patches, and optionally attention.

    Tries dynamic image sizes first, then falls back to the image size of the model with a warning.

    Args:
        model: The model.
        attention: Also trace the attention of the last block.
        photographs: Start the graph with the preparation of photographs: its input is uint8 `[B H W 3]` of any size.

    Raises:
        UserError: The network has no grid of patches or no attention, or cannot be exported; or it is not for
            photographs.
    """
    network = Outputs(model.backbone, attention).eval()
    side, step = model.preprocessing["image_px"], patch_px(model)
    try:
        with torch.no_grad():
            network(compare_outputs.random_images(model, 1))
    except NotImplementedError as error:
        raise UserError(str(error), "Leave --attention out") from error
    batch = Dim("batch", min=1, max=_MAX_DIM)
    if photographs:
        return _of_photographs(model, network, batch)
    dynamic_sides = {2: step * Dim("rows", min=1, max=_MAX_DIM), 3: step * Dim("columns", min=1, max=_MAX_DIM)}
    try:
        # an example that is not square and not of the native size, where the network may take another branch
        program = _export(
            network, compare_outputs.random_images(model, 2, side + step, side + 2 * step), {0: batch, **dynamic_sides}
        )
        sizes = ((1, side, side), (3, side + step, side + 3 * step), (2, 2 * side, side))
        return TracedGraph(program, model, network, sizes, f"multiples of {step} px")
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
    return TracedGraph(program, model, network, ((1, side, side), (3, side, side)), f"{side} px")


def _of_photographs(model: Model, network: Outputs, batch: Dim) -> TracedGraph:
    graph, side = nn.Sequential(PhotographInput(model), network), model.preprocessing["image_px"]
    sides = {1: Dim("height", min=1, max=_MAX_SIDE_PX), 2: Dim("width", min=1, max=_MAX_SIDE_PX)}
    try:
        program = _export(graph, _random_photographs(2, side + 3, 2 * side + 5), {0: batch, **sides})
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"torch.export cannot export {model.backbone.name} with its preprocessing: {reason}",
            "Leave --photographs out",
        ) from error
    sizes = ((1, side, side), (2, 3 * side + 1, 2 * side - 1), (1, side // 2 + 1, 5 * side))
    return TracedGraph(program, model, network, sizes, "any", photographs=True)


def _random_photographs(batch: int, height: int, width: int) -> Tensor:
    """Reproducible noise uint8 `[B H W 3]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def _export(network: nn.Module, images: Tensor, dimensions: dict[int, Dim]) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=(dimensions,), strict=False)
