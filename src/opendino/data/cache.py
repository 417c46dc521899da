"""Decoded images at working size, remembered so that only the first epoch pays for decoding."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.decode import decode

Cache = Literal["auto", "ram", "disk", "off"]

_BYTES_PER_PIXEL = 3
_NORESERVE = 0x4000  # MAP_NORESERVE, which Python does not name


class Images:
    """The images of a source, decoded and shrunk to at most `max_area_px`, as uint8 arrays `[H W 3]`.

    With a cache every image has a slot of `3 · max_area_px` bytes in one shared mapping; untouched pages cost nothing,
    so images smaller than a slot waste only addresses. Workers of a forked loader share it without a file
    (`ram`) or through one (`disk`), which survives an interruption. Copies sent to other processes by pickling read a
    `disk` cache too, and go without a `ram` one.

    Args:
        source: Where the bytes come from.
        max_area_px: Working size.
        cache: "ram", "disk" or "off"; "auto" must have been decided by `decide`.
        folder: Where a `disk` cache keeps its file.
    """

    def __init__(self, source: Source, max_area_px: int, cache: Cache = "off", folder: Path | None = None) -> None:
        self.source, self.max_area_px = source, max_area_px
        self._file = folder / "cache.u8" if cache == "disk" and folder is not None else None
        self._memory: mmap.mmap | None = None
        if cache == "ram":
            # Anonymous, shared with forked workers; memory is promised to nobody before it is used.
            flags = {"flags": mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE} if sys.platform == "linux" else {}
            self._memory = mmap.mmap(-1, self._num_bytes(), **flags)
        elif self._file is not None:
            with open(os.open(self._file, os.O_CREAT | os.O_RDWR), "r+b") as file:
                file.truncate(
                    self._num_bytes()
                )  # sparse: takes disk only as it fills; keeps what a former run has put in

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": None}

    def read(self, index: int) -> np.ndarray:
        """One image, uint8 `[H W 3]`.

        Raises:
            BadImage: It cannot be used; the reason.
        """
        memory = self._map()
        if memory is None:
            return decode(self.source.read(index), self.max_area_px)
        sizes, pixels = self._slot(memory, index)
        height, width = (int(n) for n in sizes)
        if height:
            return pixels[: height * width * _BYTES_PER_PIXEL].reshape(height, width, 3)
        image = decode(self.source.read(index), self.max_area_px)
        pixels[: image.size] = image.reshape(-1)
        sizes[1], sizes[0] = image.shape[1], image.shape[0]  # the height last: it says that the pixels are there
        return image

    def discard(self) -> None:
        """Remove a `disk` cache; the run that owned it is over."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _num_bytes(self) -> int:
        return len(self.source) * (8 + self.max_area_px * _BYTES_PER_PIXEL)

    def _map(self) -> mmap.mmap | None:
        if self._memory is None and self._file is not None:
            with open(self._file, "r+b") as file:
                self._memory = mmap.mmap(file.fileno(), self._num_bytes())
        return self._memory

    def _slot(self, memory: mmap.mmap, index: int) -> tuple[np.ndarray, np.ndarray]:
        area = self.max_area_px * _BYTES_PER_PIXEL
        sizes = np.frombuffer(memory, np.uint32, 2, offset=index * 8)
        return sizes, np.frombuffer(memory, np.uint8, area, offset=len(self.source) * 8 + index * area)


def decide(cache: Cache, num_images: int, bytes_per_image: float, num_epochs: float) -> tuple[Cache, str]:
    """Resolve "auto": RAM where the set is seen more than once and takes at most a quarter of the free memory.

    Raises:
        UserError: "ram" was asked for and cannot fit.
    """
    needed, free = num_images * bytes_per_image, _free_ram_bytes()
    size = f"{num_images:,} images of about {bytes_per_image / 1024:.0f} KiB"
    if cache == "ram" and needed > free:
        raise UserError(
            f"cache=ram needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free", "Use --cache disk"
        )
    if cache != "auto":
        return cache, "as asked"
    if num_epochs <= 1:
        return "off", "every image is read once"
    if needed > free / 4:
        return "off", f"{size} are more than a quarter of the free memory"
    return "ram", f"{size} fit into memory"


def _free_ram_bytes() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(float(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES") / 2
