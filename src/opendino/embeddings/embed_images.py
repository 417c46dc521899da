"""Images → vectors, a batch at a time: of any number of images no more than a few batches are in memory."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.decode import decode
from opendino.data.open_source import absolute
from opendino.features.image_stream import Bad, prefetch_images
from opendino.models.load import Model


@dataclass(frozen=True)
class Rows:
    """The readable images of a stretch of a source, in the source's order.

    Attributes:
        indices: Positions in the source.
        keys: `source.key` of each.
        vectors: float32 `[B D]` on the host, as the network gives them: not of unit length.
        sizes: (width, height) in pixels as stored, upright.
        patches: float16 `[B N D]` on the host, row by row of the grid; None where they were not asked for.
        bad: (key, reason) of the images of this stretch that could not be read.
    """

    indices: list[int]
    keys: list[str]
    vectors: Tensor
    sizes: list[tuple[int, int]]
    patches: Tensor | None
    bad: Bad

    def __len__(self) -> int:
        return len(self.indices)


def vectors(
    model: Model,
    source: Source,
    indices: Sequence[int],
    *,
    batch: int = 64,
    workers: int = 4,
    patches: bool = False,
    within: int | None = None,
) -> Generator[Rows, None, None]:
    """Look at images once, prepared as the model wants them; threads decode the next batch while the network works.

    Args:
        model: On any device.
        source: Where the images come from.
        indices: Which of them, in the order wanted.
        batch: Images at a time.
        workers: Threads that read and decode.
        patches: Whether to keep patch features as well.
        within: No batch reaches across a multiple of so many places in `indices`.

    Yields:
        A batch each, without rows where none of its images can be read.

    Raises:
        UserError: The network gives what is not a number.
    """

    def look(place: int) -> tuple[tuple[int, int], Tensor]:
        pixels = decode(source.read(indices[place]))
        return (pixels.shape[1], pixels.shape[0]), model.preprocess(pixels)

    dim, num_patches = model.backbone.embed_dim, math.prod(grid(model)) if patches else 0
    nothing = torch.empty(0, dim), torch.empty(0, num_patches, dim, dtype=torch.float16) if patches else None
    for looked, bad in prefetch_images(source, indices, look, batch, workers, within):
        found, cells = _through(model, [image for _, (_, image) in looked], patches) if looked else nothing
        places = [indices[place] for place, _ in looked]
        yield Rows(places, [source.key(i) for i in places], found, [size for _, (size, _) in looked], cells, bad)


@torch.no_grad()
def _through(model: Model, images: list[Tensor], patches: bool) -> tuple[Tensor, Tensor | None]:
    """Vectors float32 `[B D]`, and where they are wanted patches float16 `[B N D]`; on the host."""
    weight = next(model.backbone.parameters())
    stacked = torch.stack(images)
    if weight.is_cuda:
        stacked = stacked.pin_memory()
    stacked = stacked.to(weight.device, weight.dtype, non_blocking=True)
    if patches:
        features = model.backbone.features(stacked)
        made = [features.cls.float().cpu(), features.patches.half().cpu()]
    else:
        made = [model.backbone([stacked])[0].float().cpu()]
    if not all(tensor.isfinite().all() for tensor in made):
        raise UserError("The network's features are not finite numbers", "Its weights are broken; take an earlier one")
    return made[0], made[1] if patches else None


def grid(model: Model) -> tuple[int, int]:
    """(rows, columns) of the patches that the model makes of an image.

    Raises:
        UserError: Its features are no grid.
    """
    weight, side = next(model.backbone.parameters()), model.preprocessing["image_px"]
    try:
        return model.features(weight.new_zeros(1, 3, side, side)).grid
    except NotImplementedError as error:
        raise UserError(str(error), "Leave out --patches") from error


def table_origin(model: Model, source: Source, *, name: str, which: str | None, data: str) -> dict[str, Any]:
    """What a table remembers of where its vectors come from, plain JSON values.

    Args:
        model: The opened model.
        source: The opened source.
        name: MODEL as the user gave it.
        which: The network that was asked for, None for the one to use.
        data: DATA as the user gave it.
    """
    return {
        "model": name,
        "which": which,
        "fingerprint": model.fingerprint,
        "preprocessing": model.preprocessing,
        "data": absolute(data),
        "images": len(source),
    }
