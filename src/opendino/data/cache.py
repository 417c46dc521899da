"""Decoded images at working size, remembered so that only the first epoch pays for decoding."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from opendino.core import atomic_write, log
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data import fingerprint
from opendino.data.decode import decode
from opendino.data.workers import InFlightTracker

Cache = Literal["auto", "device", "ram", "disk", "off"]

_BYTES_PER_PIXEL = 3
_NORESERVE = 0x4000  # MAP_NORESERVE, which Python does not name
_HEADER = 4096  # bytes before everything else, in which a file says what it holds
_FORMAT = 1
_DIFFERENCES = {"images": "of other content", "max_area_px": "of another working size"}
_LEFT_FREE = 0.05  # of a disk: checkpoints need the room more than the cache does


class DecodedImages:
    """The images of a source, decoded and shrunk to at most `max_area_px`, as uint8 arrays `[H W 3]`.

    With a cache every image has a slot of `3 · max_area_px` bytes; untouched ones cost nothing, so images smaller than
    a slot waste only addresses. In `ram` it is a shared mapping, which workers of a forked loader see; copies sent to
    other processes by pickling go without. In `disk` it is a file, which survives an interruption; it stops to grow
    when less than a twentieth of the disk is free, and what has no place in it is decoded anew each time.
    A file that was made of other images, at another working size or by another version is replaced.

    Args:
        source: Where the bytes come from.
        max_area_px: Working size.
        cache: "ram" or "disk"; with any other nothing is kept here.
        folder: Where a `disk` cache keeps its file.
    """

    def __init__(self, source: Source, max_area_px: int, cache: Cache = "off", folder: Path | None = None) -> None:
        self.source, self.max_area_px = source, max_area_px
        self.in_flight = InFlightTracker()
        self._file = folder / "cache.u8" if cache == "disk" and folder is not None else None
        self._memory: mmap.mmap | None = None
        self._descriptor, self._full = -1, False
        if cache == "ram":
            # Anonymous, shared with forked workers; memory is promised to nobody before it is used.
            flags = {"flags": mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE} if sys.platform == "linux" else {}
            self._memory = mmap.mmap(-1, self._offset(len(source)), **flags)
        elif self._file is not None:
            self._claim(self._file)

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": None, "_descriptor": -1}

    def read(self, index: int) -> np.ndarray:
        """One image, uint8 `[H W 3]`.

        Raises:
            BadImage: It cannot be used; the reason.
        """
        image = self._kept(index)
        if image is None:
            with self.in_flight.on(index):
                image = decode(self.source.read(index), self.max_area_px)
            self._keep(index, image)
        return image

    def discard(self) -> None:
        """Remove a `disk` cache; the run that owned it is over."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _offset(self, index: int) -> int:
        """Where a slot begins; the header and all sizes stand before the first."""
        return _HEADER + len(self.source) * 8 + index * self.max_area_px * _BYTES_PER_PIXEL

    def _claim(self, path: Path) -> None:
        """Make the file, unless there is one of just these images; of several processes one does it."""
        about = {
            "format": _FORMAT,
            "opendino": version("opendino"),
            "max_area_px": self.max_area_px,
            "images": fingerprint.whole(self.source),
        }
        while True:
            with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o644), "r+b") as file:
                with contextlib.suppress(OSError):  # file systems without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                        continue  # replaced while this process waited for the lock
                except FileNotFoundError:
                    continue
                header = file.read(_HEADER).rstrip(b"\0")
                if header == json.dumps(about).encode():
                    return
                if header:
                    log.warn(f"{path.name} holds images {_difference(header, about)}; it is discarded and made again")
                # A new file, not the old one emptied: workers of a killed run may still be writing into that.
                with atomic_write.replace_file(path) as partial, open(partial, "wb") as new:
                    new.write(json.dumps(about).encode())
                    new.truncate(self._offset(len(self.source)))  # sparse: takes disk only as it fills
                return

    def _kept(self, index: int) -> np.ndarray | None:
        if self._memory is not None:
            height, width = np.frombuffer(self._memory, np.uint32, 2, _HEADER + index * 8).tolist()
            count = height * width * _BYTES_PER_PIXEL
            pixels = np.frombuffer(self._memory, np.uint8, count, self._offset(index)) if height else None
        elif self._file is not None:
            # No mapping here: a full disk or a failing one would be a signal that ends the process, not an error.
            try:
                height, width = np.frombuffer(os.pread(self._opened(), 8, _HEADER + index * 8), np.uint32).tolist()
                pixels = np.empty(height * width * _BYTES_PER_PIXEL, np.uint8) if height else None
                if pixels is not None and os.preadv(self._opened(), [pixels.data], self._offset(index)) < pixels.size:
                    return None
            except OSError:
                return None
        else:
            return None
        return pixels.reshape(height, width, _BYTES_PER_PIXEL) if pixels is not None else None

    def _keep(self, index: int, image: np.ndarray) -> None:
        sizes = np.array(image.shape[:2], np.uint32)
        if self._memory is not None:
            np.frombuffer(self._memory, np.uint8, image.size, self._offset(index))[:] = image.reshape(-1)
            kept = np.frombuffer(self._memory, np.uint32, 2, _HEADER + index * 8)
            kept[1], kept[0] = sizes[1], sizes[0]  # the height last: it says that the pixels are there
        elif self._file is not None and not self._full:
            try:
                disk = os.fstatvfs(self._opened())
                if disk.f_bavail < _LEFT_FREE * disk.f_blocks:
                    raise OSError(errno.ENOSPC, f"less than {_LEFT_FREE:.0%} of the disk are free")
                _write(self._opened(), image.data, self._offset(index))
                _write(self._opened(), sizes.data, _HEADER + index * 8)
            except OSError as error:
                self._full = True
                log.warn(f"the cache on disk grows no more: {error.strerror}; what is not in it is decoded anew")

    def _opened(self) -> int:
        if self._descriptor < 0:
            assert self._file is not None
            self._descriptor = os.open(self._file, os.O_RDWR)
        return self._descriptor


def _difference(header: bytes, about: dict[str, Any]) -> str:
    """What tells a file's images from those wanted."""
    try:
        found = json.loads(header)
        return next(words for name, words in _DIFFERENCES.items() if found[name] != about[name])
    except (ValueError, TypeError, KeyError, StopIteration):
        return "of another version"


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    data = data.cast("B")
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def decide(
    cache: Cache,
    num_images: int,
    bytes_per_image: float,
    num_epochs: float,
    gpu_bytes: float = 0.0,
    out: str | None = None,
) -> tuple[Cache, str]:
    """Resolve "auto", for a set that is seen more than once.

    On the device where that is a GPU and the set takes at most a tenth of its free memory; in RAM where it takes at
    most a quarter of that.

    Args:
        cache: What was asked for.
        num_images: In the set.
        bytes_per_image: Decoded.
        num_epochs: Of the run.
        gpu_bytes: Free memory of the GPU that trains; 0 where there is none.
        out: Run folder of a cache on disk.

    Raises:
        UserError: A cache was asked for and cannot fit; one on disk where less than a quarter fits.
    """
    needed, free = num_images * bytes_per_image, _free_ram_bytes()
    size = f"{num_images:,} images of about {bytes_per_image / 1024:.0f} KiB"
    # Put together on the device, they are there twice for a moment.
    wanted, there = (2 * needed, gpu_bytes or free) if cache == "device" else (needed, free)
    if cache in ("ram", "device") and wanted > there:
        raise UserError(
            f"cache={cache} needs {wanted / 2**30:.1f} GiB and {there / 2**30:.1f} GiB are free", "Use --cache disk"
        )
    if cache == "disk" and needed > (disk := _free_disk_bytes(out)):
        if needed > 4 * disk:
            raise UserError(
                f"cache=disk needs {needed / 2**30:,.1f} GiB and {disk / 2**30:.1f} GiB are free",
                "Use --cache off, or an --out on a larger disk",
            )
        return cache, f"{disk / needed:.0%} of the images fit on the disk; the others are decoded every epoch"
    if cache != "auto":
        return cache, "as configured"
    if num_epochs <= 1:
        return "off", "every image is read once"
    if needed <= gpu_bytes / 10:
        return "device", f"{size} fit into a tenth of the GPU's memory"
    if needed > free / 4:
        return "off", f"{size} are more than a quarter of the free memory"
    return "ram", f"{size} fit into memory"


def _free_disk_bytes(out: str | None) -> float:
    """Of the disk that a run folder will be on, which may not exist yet; without what is kept for checkpoints."""
    place = Path(out or ".").expanduser().absolute()
    found = shutil.disk_usage(next(path for path in (place, *place.parents) if path.is_dir()))
    return max(0.0, found.free - _LEFT_FREE * found.total)


def _free_ram_bytes() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(float(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES") / 2
