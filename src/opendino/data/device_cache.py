"""All images of a small set in the memory of the device that trains: nothing is decoded or sent while it does."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendino.core import log
from opendino.core.errors import BadImage
from opendino.data.cache import DecodedImages
from opendino.data.loader import Batch
from opendino.data.workers import each

_CHUNK_BYTES = 2**26


class DeviceCache(DecodedImages):
    """The images of another, read once at the start. A batch is then made of their sizes alone, and filled here.

    Args:
        images: To read them from.
        device: Whose memory they are kept in, one after the other, 3 bytes a pixel.
        workers: Processes that read; 0 for none.
    """

    def __init__(self, images: DecodedImages, device: torch.device, workers: int) -> None:
        super().__init__(images.source, images.max_area_px)
        began, self.in_flight = time.monotonic(), images.in_flight
        self._bad: dict[int, str] = {}
        self._shapes = np.zeros((len(images), 2), np.int32)

        def look(index: int) -> Tensor | str:
            try:
                return torch.from_numpy(images.read(index))
            except BadImage as error:
                return str(error)

        nothing = torch.empty(0, dtype=torch.uint8)
        chunks, waiting, size = [], [nothing], 0
        for index, found in enumerate(each(look, range(len(images)), self.in_flight, workers)):
            if isinstance(found, str):
                self._bad[index] = found
            else:
                self._shapes[index] = found.shape[:2]
                waiting.append(found.flatten().clone())  # a tensor from another process holds a file open
                size += waiting[-1].nbytes
            if size >= _CHUNK_BYTES or index == len(images) - 1:
                chunks.append(torch.cat(waiting).to(device))
                waiting, size = [nothing], 0
        self._pixels = torch.cat(chunks)
        self._sizes = torch.from_numpy(self._shapes).to(device, torch.int64)
        taken = 3 * self._sizes.prod(1)
        self._starts = taken.cumsum(0) - taken
        took = time.monotonic() - began
        log.say(f"{len(images):,} images, {self._pixels.nbytes / 2**20:,.0f} MiB, read onto {device} in {took:.0f} s")

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_pixels": None, "_sizes": None, "_starts": None}

    def read(self, index: int) -> np.ndarray:
        """The size of an image, as an array `[H W 0]` of its height and width and no pixels.

        Raises:
            BadImage: It could not be read at the start; the reason.
        """
        if index in self._bad:
            raise BadImage(self._bad[index])
        height, width = self._shapes[index].tolist()
        return np.empty((height, width, 0), np.uint8)

    def fill(self, batch: Batch) -> Batch:
        """A batch whose canvas has no channels, `[B 0 H W]`, with the one that its images make, `[B 3 H W]`."""
        indices = batch.indices.to(self._pixels.device, non_blocking=True)
        height, width = batch.canvas.shape[2:]
        rows = torch.arange(height, device=indices.device)[:, None]
        columns = torch.arange(3 * width, device=indices.device)  # with the channels, which come last
        high, wide = self._sizes[indices][..., None, None].unbind(1)  # [B 1 1]
        wide = 3 * wide
        place = self._starts[indices][:, None, None] + rows * wide + columns
        inside = (rows < high) & (columns < wide)
        canvas = self._pixels[place.where(inside, 0)].mul_(inside)
        return replace(batch, canvas=canvas.unflatten(2, (width, 3)).permute(0, 3, 1, 2))
