"""Embed images batch by batch; memory holds only a few batches for any number of images."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.open_source import absolute
from opendino.features.image_stream import Bad, check_finite, encode_images
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

    @property
    def num_images(self) -> int:
        """Number of images of the range, readable or not."""
        return len(self.indices) + len(self.bad)


def concatenate(batches: Sequence[Rows]) -> Rows:
    """One or more batches as one."""
    patches = [rows.patches for rows in batches if rows.patches is not None]
    return Rows(
        [index for rows in batches for index in rows.indices],
        [key for rows in batches for key in rows.keys],
        torch.cat([rows.vectors for rows in batches]),
        [size for rows in batches for size in rows.sizes],
        torch.cat(patches) if patches else None,
        [bad for rows in batches for bad in rows.bad],
    )


@dataclass(frozen=True)
class Embedder:
    """Embeds images with the preprocessing of a model.

    Attributes:
        model: On any device.
        source: The source of the images.
        origin: Metadata of the table, see `table_origin`.
        patches: Whether to keep patch features as well.
        batch: Images per batch.
        workers: Number of threads that read and decode.
    """

    model: Model
    source: Source
    origin: Mapping[str, Any]
    patches: bool = False
    batch: int = 64
    workers: int = 4

    @property
    def dim(self) -> int:
        """D, the number of features of a vector."""
        return self.model.backbone.embed_dim

    @cached_property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the patch grid of a preprocessed image; None without patches.

        Raises:
            UserError: The features of the model are not a grid.
        """
        if not self.patches:
            return None
        side = self.model.preprocessing["image_px"]
        try:
            return self.model.features(torch.zeros(1, self.model.backbone.in_chans, side, side)).grid
        except NotImplementedError as error:
            raise UserError(str(error), "Remove --patches") from error

    @property
    def row_bytes(self) -> int:
        """Size of a row: D float32 values and, with patches, N · D float16 values."""
        return 4 * self.dim + 2 * self.dim * math.prod(self.grid or (0,))

    def rows(self, indices: Sequence[int], within: int | None = None) -> Generator[Rows, None, None]:
        """Embed images batch by batch; threads prepare the next batch while the network runs.

        Args:
            indices: Images to embed, in output order.
            within: Batches do not cross multiples of this number of positions in `indices`; None: no limit.

        Yields:
            One `Rows` per batch; it has no rows if none of its images is readable.

        Raises:
            UserError: The network returns NaN or infinity.
        """

        def prepare(_: int, pixels: np.ndarray) -> tuple[tuple[int, int], Tensor]:
            return (pixels.shape[1], pixels.shape[0]), self.model.prepare(pixels)

        def network(images: list[tuple[tuple[int, int], Tensor]]) -> tuple[Tensor, Tensor | None]:
            return self.model.run(self._forward, torch.stack([pixels for _, pixels in images]))

        patches = torch.empty(0, math.prod(self.grid), self.dim, dtype=torch.float16) if self.grid else None
        empty = torch.empty(0, self.dim), patches
        for part in encode_images(self.source, indices, prepare, network, self.batch, self.workers, within):
            found = [indices[position] for position in part.positions]
            keys, sizes = [self.source.key(index) for index in found], [size for size, _ in part.images]
            vectors, patches = part.output or empty
            yield Rows(found, keys, vectors, sizes, patches, part.bad)

    def parts(self, indices: Sequence[int], size: int) -> Generator[list[Rows], None, None]:
        """The batches of `rows` in parts of `size` images, readable or not; the last part may be smaller.

        Decoding continues between parts.
        """
        batches = self.rows(indices, within=size)
        for start in range(0, len(indices), size):
            part, missing = list[Rows](), min(size, len(indices) - start)
            while missing:
                part.append(next(batches))
                missing -= part[-1].num_images
            yield part

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors float32 `[B D]`, and patches float16 `[B N D]` if requested; on the CPU."""
        if self.patches:
            features = self.model.backbone.features(images)
            outputs = [features.cls.float().cpu(), features.patches.half().cpu()]
        else:
            outputs = [self.model.backbone([images])[0].float().cpu()]
        check_finite(*outputs)
        return outputs[0], outputs[1] if self.patches else None


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
