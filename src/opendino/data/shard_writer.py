"""Write any source as WebDataset shards: shuffled, shrunk to working size, checked, with an index beside each shard.

A large folder of images is slow in two ways: every image is a file to open, and every epoch decodes more pixels than
training uses. Shards avoid both. The format is WebDataset's: `000000.tar` holds `000000042.jpg` and, if the class is
known, `000000042.cls`; 42 is the index of the image in the source. Tiles of an image have their row and column in the
name: `000000042-003-017.jpg` is the tile in row 3 and column 17.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from opendino.core import atomic_write
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.core.progress import track
from opendino.data import fingerprint, readers
from opendino.data import mmap_table as index
from opendino.data.decode import MAX_PIXELS, decode, measure, tiles
from opendino.data.readers import photograph
from opendino.data.readers.multi_page_files import StackQuestion
from opendino.data.sampler import epoch_order
from opendino.data.shard_index import read_index, scan, write_index
from opendino.data.source_files import cell

Format = Literal["jpeg", "webp", "png"]

_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ENCODED: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 95}), "webp": ("WEBP", {"quality": 95}), "png": ("PNG", {}),
}  # fmt: skip
_DEEP_ENDINGS = {
    b"\x89PNG": "png", b"\0\0\0\x0cjP  ": "jp2", b"\xff\x4f\xff\x51": "j2k", b"P5": "pgm", b"Pf": "pnm",
}  # fmt: skip
"""First bytes of the formats, other than those of science, that may hold more than 8 bits."""
_PREFETCH = 256  # images decoded ahead of the one being written
_TILED_PIXELS = 10**9  # default limit for images that are cut into tiles: one takes 4 GB of memory
_PREFETCH_TILED = 4  # fewer, because each image may give hundreds of tiles
_large = threading.Lock()  # only one image of more than MAX_PIXELS is in memory at a time


@dataclass(frozen=True)
class Plan:
    """Settings that decide every byte of the shards.

    Attributes:
        data: DATA of the source.
        num: Number of images.
        max_area_px: Larger images are shrunk to this area, in pixels.
        format: Encoding of the images that are shrunk or cut.
        shard_mb: A shard is closed when it reaches this size, in megabytes.
        tiles_px: Cut images into square tiles of this side, in pixels; None to keep them whole.
        max_pixels: Images of more pixels are left out; None for the default limit.
    """

    data: str
    num: int
    max_area_px: int
    format: Format
    shard_mb: int
    tiles_px: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class Packed:
    """Result of `pack`.

    Attributes:
        shards, images: Number of shards, and of images or tiles in them.
        unchanged: Number of images copied byte for byte from the source.
        bad: (key, reason) of the images left out.
        num_bytes: Size of all shards.
        seconds: Duration of this call.
    """

    shards: int
    images: int
    unchanged: int
    bad: list[tuple[str, str]]
    num_bytes: int
    seconds: float


def pack(source: Source, plan: Plan, out: Path, workers: int | None = None) -> Packed:
    """Write a source as shards. A call that was interrupted is resumed after the last finished shard.

    The images are shuffled, so that neighbors in a shard are not more alike than other images. JPEG, PNG and WebP files
    that are small enough are copied unchanged; small images of other formats become PNG. `bad_files.csv` lists the
    unreadable images, `classes.txt` the names of the classes, and `pack.json` holds the settings.

    Args:
        source: The images.
        plan: The settings.
        out: Folder for the shards; new, empty, or from an interrupted call with the same plan.
        workers: Threads that decode and encode; None for the default of `ThreadPoolExecutor`.

    Raises:
        UserError: The folder holds something else, or no image can be read.
    """
    start = time.monotonic()
    _prepare_folder(out, plan, source)
    order = epoch_order(len(source), source.shard_sizes, 0, 0)
    done = list(_finished_shards(out))
    position = done[-1]["stop"] if done else 0  # in `order`, of the first image that is not in a shard yet
    samples = track(_encode_all(source, plan, order, position, workers), "images", len(order) - position)
    while position < len(order):
        number = len(done)
        done.append(_write_shard(out / f"{number:06d}.tar", samples, plan, position))
        position = done[-1]["stop"]
    bad = sorted((key, reason) for each in done for key, reason in each["bad"])
    if bad:
        listed = ((cell(key), cell(reason)) for key, reason in bad)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *listed])
        atomic_write.write(out / "bad_files.csv", text.getvalue())
    images = sum(each["images"] for each in done)
    if not images:
        raise UserError(
            f"None of {len(source):,} images can be read, e.g. {bad[0][0]}: {bad[0][1]}", "Check the images"
        )
    return Packed(
        len(done), images, sum(each["unchanged"] for each in done), bad,
        sum(each["bytes"] for each in done), time.monotonic() - start,
    )  # fmt: skip


def _prepare_folder(out: Path, plan: Plan, source: Source) -> None:
    """Create the folder, or check that it holds shards of the same images with the same plan."""
    about = {key: value for key, value in asdict(plan).items() if value is not None}
    described, classes = json.dumps(about | {"images": fingerprint.whole(source)}, indent=1), source.classes
    try:
        if out.is_dir() and any(out.iterdir()):
            then = (out / "pack.json").read_text("utf-8") if (out / "pack.json").is_file() else ""
            if then != described:
                raise UserError(
                    f"'{out}' holds {'shards of another plan or of other images' if then else 'something else'}",
                    "Choose another --out",
                )
        out.mkdir(parents=True, exist_ok=True)
        if classes and not any("\n" in name for name in classes):
            atomic_write.write(out / "classes.txt", "".join(f"{name}\n" for name in classes))
        atomic_write.write(out / "pack.json", described)
    except OSError as error:
        raise UserError(f"Cannot write into {out}: {error.strerror}", "Choose another --out") from error


def _finished_shards(out: Path) -> Iterator[dict[str, Any]]:
    """The notes in the indexes of the finished shards, up to the first shard that is missing or incomplete."""
    for number in range(10**6):
        path = out / f"{number:06d}.tar"
        known = index.load(path.with_name(f"{path.name}.index"))
        if (
            known is None
            or read_index(*known) is None
            or not path.is_file()
            or path.stat().st_size != known[1]["bytes"]
        ):
            return
        yield known[1]


@dataclass(frozen=True)
class _Sample:
    """An encoded image or tile that is to be written into a shard; without content an unreadable image."""

    index: int
    name: str
    key: str
    label: int
    content: bytes
    ending: str
    unchanged: bool
    reason: str = ""


def _encode_all(source: Source, plan: Plan, order: Any, first: int, workers: int | None) -> Iterator[list[_Sample]]:
    """Decode and encode the images from position `first` of the order, in threads; each with all its tiles."""
    ahead = _PREFETCH_TILED if plan.tiles_px else _PREFETCH

    def encode(position: int) -> list[_Sample]:
        number = int(order[position])
        key, label = source.key(number), source.label(number)
        try:
            return [
                _Sample(number, f"{number:09d}{tile}", key, label, content, ending, unchanged)
                for tile, content, ending, unchanged in _contents(source.read(number), plan)
            ]
        except BadImage as error:
            return [_Sample(number, "", key, -1, b"", "", False, str(error))]

    with ThreadPoolExecutor(workers) as pool:
        # At most two chunks are in memory: one is written while the next is encoded.
        current = None
        for start in range(first, len(order), ahead):
            following = pool.map(encode, range(start, min(start + ahead, len(order))))
            if current is not None:
                yield from current
            current = following
        if current is not None:
            yield from current


def _contents(data: bytes | np.ndarray, plan: Plan) -> list[tuple[str, bytes, str, bool]]:
    """The files to write for an image: for each tile its name, bytes, suffix, and whether they are unchanged."""
    limit = plan.max_pixels or (_TILED_PIXELS if plan.tiles_px else MAX_PIXELS)
    if isinstance(data, bytes) and (ending := _science_ending(data, limit)):
        if plan.tiles_px:
            raise BadImage("more than 8 bits or other channels than RGB: packed whole only, without --tiles")
        return [("", data, ending, True)]
    form, size = measure(data, limit) if isinstance(data, bytes) else ("", (data.shape[1], data.shape[0]))
    with _large if size[0] * size[1] > MAX_PIXELS else contextlib.nullcontext():
        if plan.tiles_px and max(size) > plan.tiles_px:
            cut = tiles(data, plan.tiles_px, limit)
            return [(f"-{row:03d}-{column:03d}", *_encode(pixels, plan.format)) for row, column, pixels in cut]
        return [("", *_encode_whole(data, form, size, decode(data, plan.max_area_px, limit), plan))]


def _science_ending(data: bytes, limit: int) -> str:
    """The suffix of a file that is packed as it is, because 8-bit RGB would not hold its values; "" for a photograph.

    Raises:
        BadImage: It cannot be read, or is a NumPy array: shards hold those for other purposes.
    """
    kind = readers.kind_of(data)
    if kind == "numpy_file":
        raise BadImage("a NumPy array, which is no image in a shard: save it as TIFF")
    try:
        science = readers.read_science(data, None, limit) is not None
    except StackQuestion:
        science = True
    if kind == "nifti":
        raise BadImage("a NIfTI volume, which is no image in a shard: keep the folder")
    if kind == "deep_color" or (kind == "photograph" and photograph.may_be_deep(data)):
        return next(ending for start, ending in _DEEP_ENDINGS.items() if data.startswith(start))
    return {"tiff": "tif", "dicom": "dcm"}[kind] if science else ""


def _encode(pixels: np.ndarray, into: Format) -> tuple[bytes, str, bool]:
    kind, options = _ENCODED[into]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue(), _ENDINGS[kind], False


def _encode_whole(
    data: bytes | np.ndarray, was: str, size: tuple[int, int], pixels: np.ndarray, plan: Plan
) -> tuple[bytes, str, bool]:
    """The file to write for a whole image: its bytes, suffix, and whether they are unchanged."""
    if sorted(size) != sorted(pixels.shape[:2]):
        return _encode(pixels, plan.format)
    if isinstance(data, bytes) and was in _ENDINGS:
        return data, _ENDINGS[was], True
    return _encode(pixels, "png")  # an array, or a rare format: encode without loss


def _write_shard(path: Path, images: Iterator[list[_Sample]], plan: Plan, first: int) -> dict[str, Any]:
    """Write one shard and then its index, each under a temporary name that is renamed; the note of the index."""
    partial = path.with_name(f".{path.name}.partial")
    stop, num, unchanged, bad = first, 0, 0, []
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for several in images:
            stop += 1
            for image in several:
                if image.reason:
                    bad.append((image.key, image.reason))
                    continue
                _add(tar, f"{image.name}.{image.ending}", image.content)
                if image.label >= 0:
                    _add(tar, f"{image.name}.cls", str(image.label).encode())
                num, unchanged = num + 1, unchanged + image.unchanged
            if tar.offset >= plan.shard_mb * 10**6:
                break
    atomic_write.sync(partial)
    partial.replace(path)
    contents = scan(path)
    assert len(contents.names) == num and not contents.damage
    note = write_index(contents) | {"stop": stop, "images": num, "unchanged": unchanged, "bad": bad}
    index.save(path.with_name(f"{path.name}.index"), contents.columns(), note)
    return note


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # no owner and no time: the same images always give the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
