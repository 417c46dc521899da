"""A cache of decoded images at working size, in RAM or on disk, so that only the first epoch decodes them."""

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

from opendino.core import atomic_write, log, machine_memory
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data import fingerprint
from opendino.data.decode import decode
from opendino.data.workers import InFlightTracker

Cache = Literal["auto", "device", "ram", "disk", "off"]

_NORESERVE = 0x4000  # MAP_NORESERVE, which Python does not name
_HEADER = 4096  # bytes at the start of a cache file, with a JSON description of what it holds
_FORMAT = 1
_DIFFERENCES = {
    "images": "of other content",
    "max_area_px": "of another working size",
    "pixels": "of other channels or bits",
}
_LEFT_FREE = 0.05  # share of the disk left free for checkpoints


class DecodedImages:
    """The images of a source, decoded and shrunk to at most `max_area_px` pixels, as arrays of its pixel format.

    In a cache every image has a slot for `max_area_px` pixels. The operating system allocates only what is written,
    so an image smaller than its slot wastes address space but no memory.

    - "ram" is a shared anonymous mapping, which forked loader workers share. Pickled copies have no cache.
    - "disk" is a file, which survives an interruption. It stops growing when less than 5 % of the disk is free; images
      without a slot on disk are then decoded every epoch. A file with other images, with another working size or from
      another version is replaced.

    Args:
        source: Provides the encoded images.
        max_area_px: Working size: larger images are shrunk to this area, in pixels.
        cache: "ram" or "disk"; any other value means no cache here.
        folder: Folder for the file of a "disk" cache.
    """

    def __init__(self, source: Source, max_area_px: int, cache: Cache = "off", folder: Path | None = None) -> None:
        self.source, self.max_area_px = source, max_area_px
        self.pixel_format = source.pixel_format
        self.in_flight = InFlightTracker()
        self._file = folder / "cache.bin" if cache == "disk" and folder is not None else None
        self._memory: mmap.mmap | None = None
        self._descriptor, self._full = -1, False
        if cache == "ram":
            # MAP_NORESERVE: no memory is reserved, pages are allocated when they are written.
            flags = {"flags": mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE} if sys.platform == "linux" else {}
            self._memory = mmap.mmap(-1, self._offset(len(source)), **flags)
        elif self._file is not None:
            self._create(self._file)

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": None, "_descriptor": -1}

    def read(self, index: int) -> np.ndarray:
        """One image, an array `[H W C]` of the source's pixel format.

        Raises:
            BadImage: The image is unreadable, or too slow to decode.
        """
        image = self._load(index)
        if image is None:
            with self.in_flight.on(index):
                image = decode(self.source.read(index), self.max_area_px, pixel_format=self.pixel_format)
            self._save(index, image)
        return image

    def discard(self) -> None:
        """Delete the file of a "disk" cache; called at the end of the run."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _offset(self, index: int) -> int:
        """The first byte of an image's slot."""
        # Layout: header, then height and width of every image (2 uint32 each), then the slots.
        return _HEADER + len(self.source) * 8 + index * self.max_area_px * self.pixel_format.bytes_per_pixel

    def _create(self, path: Path) -> None:
        """Create the cache file, unless one for the same images exists; a file lock lets one process do it."""
        about = {
            "format": _FORMAT,
            "opendino": version("opendino"),
            "max_area_px": self.max_area_px,
            "pixels": [self.pixel_format.channels, self.pixel_format.bits],
            "images": fingerprint.whole(self.source),
        }
        while True:
            with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o644), "r+b") as file:
                with contextlib.suppress(OSError):  # some file systems have no locks
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
                    log.warn(f"{path.name} holds images {_difference(header, about)}; it is discarded and rebuilt")
                # A new file instead of truncating the old one, which workers of a killed run may still be writing to.
                with atomic_write.replace_file(path) as partial, open(partial, "wb") as new:
                    new.write(json.dumps(about).encode())
                    new.truncate(self._offset(len(self.source)))  # sparse: takes disk only as it fills
                return

    def _load(self, index: int) -> np.ndarray | None:
        """An image from the cache; None if it is not there."""
        dtype, channels = self.pixel_format.dtype, self.pixel_format.channels
        if self._memory is not None:
            height, width = np.frombuffer(self._memory, np.uint32, 2, _HEADER + index * 8).tolist()
            count = height * width * channels
            pixels = np.frombuffer(self._memory, dtype, count, self._offset(index)) if height else None
        elif self._file is not None:
            # pread, not mmap: with a mapping, a disk error is a SIGBUS that ends the process instead of an OSError.
            try:
                height, width = np.frombuffer(os.pread(self._opened(), 8, _HEADER + index * 8), np.uint32).tolist()
                pixels = np.empty(height * width * channels, dtype) if height else None
                if pixels is not None and os.preadv(self._opened(), [pixels.data], self._offset(index)) < pixels.nbytes:
                    return None
            except OSError:
                return None
        else:
            return None
        return pixels.reshape(height, width, channels) if pixels is not None else None

    def _save(self, index: int, image: np.ndarray) -> None:
        """Write an image into the cache. A disk error ends caching, not the run."""
        sizes = np.array(image.shape[:2], np.uint32)
        if self._memory is not None:
            np.frombuffer(self._memory, image.dtype, image.size, self._offset(index))[:] = image.reshape(-1)
            slot = np.frombuffer(self._memory, np.uint32, 2, _HEADER + index * 8)
            slot[1], slot[0] = sizes[1], sizes[0]  # the height last: a height above 0 means that the slot is complete
        elif self._file is not None and not self._full:
            try:
                disk = os.fstatvfs(self._opened())
                if disk.f_bavail < _LEFT_FREE * disk.f_blocks:
                    raise OSError(errno.ENOSPC, f"less than {_LEFT_FREE:.0%} of the disk is free")
                _write(self._opened(), image.data, self._offset(index))
                _write(self._opened(), sizes.data, _HEADER + index * 8)
            except OSError as error:
                self._full = True
                log.warn(f"Disk cache is full: {error.strerror}; the remaining images are decoded every epoch")

    def _opened(self) -> int:
        if self._descriptor < 0:
            assert self._file is not None
            self._descriptor = os.open(self._file, os.O_RDWR)
        return self._descriptor


def _difference(header: bytes, about: dict[str, Any]) -> str:
    """How the images of a cache file differ from those wanted, for a message."""
    try:
        found = json.loads(header)
        return next(words for name, words in _DIFFERENCES.items() if found[name] != about[name])
    except (ValueError, TypeError, KeyError, StopIteration):
        return "of another version"


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    data = data.cast("B")
    while data:  # pwrite may write less than it was given
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
    """Choose where to cache decoded images, and check that they fit.

    "auto" becomes "device" if the images take at most a tenth of the free GPU memory, else "ram" if they take at most a
    quarter of the free RAM, else "off"; also "off" if every image is read only once.

    Args:
        cache: The setting.
        num_images: Number of images in the dataset.
        bytes_per_image: Mean size of a decoded image.
        num_epochs: Epochs of the run.
        gpu_bytes: Free memory of the GPU that trains; 0 without a GPU.
        out: Run folder, for a "disk" cache.

    Returns:
        The cache to use, and the reason, for the log.

    Raises:
        UserError: The images do not fit into the chosen cache ("disk": less than a quarter of them fits).
    """
    needed, free = num_images * bytes_per_image, machine_memory.free_bytes()
    size = f"{num_images:,} images of about {bytes_per_image / 1024:.0f} KiB"
    # DeviceCache concatenates chunks: for a moment every image is on the device twice.
    required, available = (2 * needed, gpu_bytes or free) if cache == "device" else (needed, free)
    if cache in ("ram", "device") and required > available:
        raise UserError(
            f"cache={cache} needs {required / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are free",
            "Use --cache disk",
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
        return "device", f"{size} fit into a tenth of the free GPU memory"
    if needed > free / 4:
        return "off", f"{size} are more than a quarter of the free memory"
    return "ram", f"{size} fit into memory"


def _free_disk_bytes(out: str | None) -> float:
    """Free bytes on the disk of a run folder, which may not exist yet; less the share left free for checkpoints."""
    folder = Path(out or ".").expanduser().absolute()
    usage = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir()))
    return max(0.0, usage.free - _LEFT_FREE * usage.total)
