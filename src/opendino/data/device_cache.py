"""Cache all images of a small dataset in GPU memory: nothing is decoded or copied during training."""

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
    """Decoded images that are read once, at the start, and stay on the device.

    The loader then builds batches without pixels, and `fill` adds the pixels on the device.

    Args:
        images: The images to read.
        device: The device that keeps them, as one array of their pixel format.
        workers: Number of processes that read; 0 to read in this process.
    """

    def __init__(self, images: DecodedImages, device: torch.device, workers: int) -> None:
        super().__init__(images.source, images.max_area_px)
        start, self.in_flight = time.monotonic(), images.in_flight
        self._bad: dict[int, str] = {}
        self._shapes = np.zeros((len(images), 2), np.int32)  # [images 2], height and width; 0 for unreadable images

        # int16 holds the bits of uint16, for which PyTorch has few operations.
        stored = np.uint8 if self.pixel_format.bits == 8 else np.int16

        def read(index: int) -> Tensor | str:
            try:
                return torch.from_numpy(images.read(index).view(stored))
            except BadImage as error:
                return str(error)

        # Copied in chunks: one copy per image is slow, and one copy of everything needs all images in host memory.
        nothing = torch.empty(0, dtype=torch.uint8 if self.pixel_format.bits == 8 else torch.int16)
        chunks, waiting, size = [], [nothing], 0
        for index, found in enumerate(each(read, range(len(images)), self.in_flight, workers)):
            if isinstance(found, str):
                self._bad[index] = found
            else:
                self._shapes[index] = found.shape[:2]
                waiting.append(found.flatten().clone())  # cloned: a tensor from a worker keeps a file descriptor open
                size += waiting[-1].nbytes
            if size >= _CHUNK_BYTES or index == len(images) - 1:
                chunks.append(torch.cat(waiting).to(device))
                waiting, size = [nothing], 0
        self._pixels = torch.cat(chunks)  # [values], all images one after the other
        self._sizes = torch.from_numpy(self._shapes).to(device, torch.int64)
        lengths = self.pixel_format.channels * self._sizes.prod(1)  # [images]
        self._starts = lengths.cumsum(0) - lengths  # [images], first value of each
        took = time.monotonic() - start
        log.say(f"Cached {len(images):,} images, {self._pixels.nbytes / 2**20:,.0f} MiB, on {device} in {took:.0f} s")

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_pixels": None, "_sizes": None, "_starts": None}

    def read(self, index: int) -> np.ndarray:
        """An array `[H W 0]`, which has the height and width of the image and no pixels.

        Raises:
            BadImage: The image could not be read at the start.
        """
        if index in self._bad:
            raise BadImage(self._bad[index])
        height, width = self._shapes[index].tolist()
        return np.empty((height, width, 0), self.pixel_format.dtype)

    def fill(self, batch: Batch) -> Batch:
        """Replace the empty canvas of a batch, `[B 0 H W]`, by one with the pixels of its images, `[B C H W]`."""
        indices = batch.indices.to(self._pixels.device, non_blocking=True)
        (height, width), channels = batch.canvas.shape[2:], self.pixel_format.channels
        rows = torch.arange(height, device=indices.device)[:, None]  # [H 1]
        columns = torch.arange(
            channels * width, device=indices.device
        )  # [W * C], a row of the canvas with its channels
        image_height, row_length = self._sizes[indices][..., None, None].unbind(1)  # [B 1 1]
        row_length = channels * row_length
        offsets = self._starts[indices][:, None, None] + rows * row_length + columns  # [B H W*C]
        inside = (rows < image_height) & (columns < row_length)  # [B H W*C], False on the padding
        canvas = self._pixels[offsets.where(inside, 0)].mul_(inside).view(batch.canvas.dtype)  # [B H W*C]
        return replace(batch, canvas=canvas.unflatten(2, (width, channels)).permute(0, 3, 1, 2))  # [B C H W]
