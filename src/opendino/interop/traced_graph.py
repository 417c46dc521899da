"""A network's computation as a recorded graph (`torch.export`), for any batch and, where it can be, any image size."""

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

_MOST = 4096
"""Images in a batch, and patches along a side, that a graph is recorded for."""


class Outputs(nn.Module):
    """What a graph gives for images float32 `[B 3 H W]`: cls `[B D]`, patches `[B N D]`, and on request attention."""

    def __init__(self, backbone: Backbone, attention: bool) -> None:
        super().__init__()
        self.backbone, self.attention = backbone, attention

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(cls, patches) or (cls, patches, attention `[B heads T T]` of the last block)."""
        found = self.backbone.features(images)
        return (found.cls, found.patches, *([self.backbone.attention(images)] if self.attention else []))


@dataclass(frozen=True)
class Recorded:
    """A graph and what it stands for.

    Attributes:
        program: The graph; its input is `images`.
        network: The same as a module.
        sizes: (B, H, W) to compare the two at.
        sides: For people: which sides of images it takes.
    """

    program: ExportedProgram
    network: Outputs
    sizes: tuple[tuple[int, int, int], ...]
    sides: str


def record(model: Model, attention: bool = False) -> Recorded:
    """Record cls and patches, and attention on request.

    Raises:
        UserError: The network has no grid of patches, no attention, or cannot be recorded.
    """
    network = Outputs(model.backbone, attention).eval()
    side, step = model.preprocessing["image_px"], patch_px(model)
    try:
        with torch.no_grad():
            network(compare_outputs.random_images(model, 1))
    except NotImplementedError as error:
        raise UserError(str(error), "Leave --attention out") from error
    batch = Dim("batch", min=1, max=_MOST)
    open_sides = {2: step * Dim("rows", min=1, max=_MOST), 3: step * Dim("columns", min=1, max=_MOST)}
    try:
        # neither square nor of the size at which a network may do something else
        program = _recorded(
            network, compare_outputs.random_images(model, 2, side + step, side + 2 * step), {0: batch, **open_sides}
        )
        sizes = ((1, side, side), (3, side + step, side + 3 * step), (2, 2 * side, side))
        return Recorded(program, network, sizes, f"multiples of {step} px")
    except Exception as error:  # torch has no one error for a network whose shapes it cannot leave open
        reason = str(error).strip().partition("\n")[0]
    try:
        program = _recorded(network, compare_outputs.random_images(model, 2), {0: batch})
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"torch cannot record {model.backbone.name}: {reason}", "Choose another --to") from error
    log.warn(f"{model.backbone.name} is exported for images of {side}×{side} px only; other sizes failed: {reason}")
    return Recorded(program, network, ((1, side, side), (3, side, side)), f"{side} px")


def _recorded(network: Outputs, images: Tensor, dimensions: dict[int, Dim]) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes={"images": dimensions}, strict=False)
