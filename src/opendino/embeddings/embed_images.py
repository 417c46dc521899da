"""Embed images batch by batch; memory holds only a few batches for any number of images."""

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
    """Embeddings of the readable images of a contiguous range of a source, in source order.

    Attributes:
        indices: Indices into the source.
        keys: `source.key` of each.
        vectors: float32 `[B D]` on the CPU, not normalized.
        sizes: (width, height) of the stored images in pixels, after EXIF rotation.
        patches: float16 `[B N D]` on the CPU, in row-major order of the grid; None if not requested.
        bad: (key, reason) of the images of this range that could not be read.
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
    """Embed images with the preprocessing of the model; threads decode the next batch while the network runs.

    Args:
        model: On any device.
        source: The source of the images.
        indices: Images to embed, in output order.
        batch: Images per batch.
        workers: Number of threads that read and decode.
        patches: Whether to keep patch features as well.
        within: Batches do not cross multiples of this number of positions in `indices`; None: no limit.

    Yields:
        One `Rows` per batch; it has no rows if none of the images can be read.

    Raises:
        UserError: The network returns NaN or infinity.
    """

    def load_image(position: int) -> tuple[tuple[int, int], Tensor]:
        pixels = decode(source.read(indices[position]))
        return (pixels.shape[1], pixels.shape[0]), model.preprocess(pixels)

    dim, num_patches = model.backbone.embed_dim, math.prod(grid(model)) if patches else 0
    empty = torch.empty(0, dim), torch.empty(0, num_patches, dim, dtype=torch.float16) if patches else None
    for loaded, bad in prefetch_images(source, indices, load_image, batch, workers, within):
        embedded, patch_features = _forward(model, [image for _, (_, image) in loaded], patches) if loaded else empty
        positions = [indices[position] for position, _ in loaded]
        yield Rows(
            positions,
            [source.key(i) for i in positions],
            embedded,
            [size for _, (size, _) in loaded],
            patch_features,
            bad,
        )


@torch.no_grad()
def _forward(model: Model, images: list[Tensor], patches: bool) -> tuple[Tensor, Tensor | None]:
    """Vectors float32 `[B D]`, and patches float16 `[B N D]` if requested; on the CPU."""
    weight = next(model.backbone.parameters())
    stacked = torch.stack(images)  # [B, C, H, W]
    if weight.is_cuda:
        stacked = stacked.pin_memory()
    stacked = stacked.to(weight.device, weight.dtype, non_blocking=True)
    if patches:
        features = model.backbone.features(stacked)
        outputs = [features.cls.float().cpu(), features.patches.half().cpu()]
    else:
        outputs = [model.backbone([stacked])[0].float().cpu()]
    if not all(tensor.isfinite().all() for tensor in outputs):
        raise UserError(
            "The features of the network are NaN or infinite", "Its weights are broken; use an earlier checkpoint"
        )
    return outputs[0], outputs[1] if patches else None


def grid(model: Model) -> tuple[int, int]:
    """(rows, columns) of the patch grid of a preprocessed image.

    Raises:
        UserError: The features of the model are not a grid.
    """
    weight, side = next(model.backbone.parameters()), model.preprocessing["image_px"]
    try:
        return model.features(weight.new_zeros(1, 3, side, side)).grid
    except NotImplementedError as error:
        raise UserError(str(error), "Remove --patches") from error


def table_origin(model: Model, source: Source, *, name: str, which: str | None, data: str) -> dict[str, Any]:
    """Metadata of a table: the model and the data that its vectors come from, as plain JSON values.

    Args:
        model: The loaded model.
        source: The opened source.
        name: MODEL as the user wrote it.
        which: The network that the user named; None for the default.
        data: DATA as the user wrote it.
    """
    return {
        "model": name,
        "which": which,
        "fingerprint": model.fingerprint,
        "preprocessing": model.preprocessing,
        "data": absolute(data),
        "images": len(source),
    }
