"""A source of any kind, written once as shards: shuffled, at working size, checked, with an index beside each shard.

Folders of classes and huge folders of small files are slow in two ways: every image is a file to open, and every epoch
decodes more pixels than training looks at. Shards end both. They are WebDataset's: `000000.tar` with `000000042.jpg`
and, where the class is known, `000000042.cls`; 42 is the image's place in the source. Tiles of an image have their
place in it behind that: `000000042-003-017.jpg` is in row 3 and column 17.
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

from opendino.core import atomic_write, log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data import fingerprint
from opendino.data import mmap_table as index
from opendino.data.decode import MAX_PIXELS, decode, measure, tiles
from opendino.data.sampler import epoch_order
from opendino.data.shards import read_index, scan, write_index
from opendino.data.source_files import cell

Format = Literal["jpeg", "webp", "png"]

_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ENCODED: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 95}), "webp": ("WEBP", {"quality": 95}), "png": ("PNG", {}),
}  # fmt: skip
_AHEAD = 256  # images decoded ahead of the one that is written
_TILED_PIXELS = 10**9  # the usual limit where images are cut into tiles: 4 GB while one is cut
_AHEAD_TILED = 4  # each may be hundreds of tiles
_large = threading.Lock()  # one image above the usual limit is in memory at a time


@dataclass(frozen=True)
class Plan:
    """What decides every byte of the shards.

    Attributes:
        data: Where the images come from.
        num: How many they are.
        max_area_px: Larger images are shrunk to this area.
        format: What shrunk ones are encoded as.
        shard_mb: A shard is closed when it has as many megabytes.
        tiles_px: Images larger than a square of this side are cut into such squares; None for whole images.
        max_pixels: Images of more are left out; None for the usual limit.
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
    """What came of it.

    Attributes:
        shards, images: How many there are now.
        unchanged: How many images are byte for byte those of the source.
        bad: (key, reason) of those left out.
        num_bytes: Of all shards.
        seconds: Of this call.
    """

    shards: int
    images: int
    unchanged: int
    bad: list[tuple[str, str]]
    num_bytes: int
    seconds: float


def pack(source: Source, plan: Plan, out: Path, workers: int | None = None) -> Packed:
    """Write the shards; what an interrupted call has finished stays, and the next one goes on behind it.

    The order is a shuffle, so that neighbors in a shard are no more alike than any other images. Images that fit
    already are passed through as they are, if they are JPEG, PNG or WebP; small ones of another format become PNG.
    `bad_files.csv` lists what could not be read, `classes.txt` names the classes, `pack.json` holds the plan.

    Args:
        source: The images.
        plan: What is asked for.
        out: Folder of the shards.
        workers: Threads that decode and encode; as many as Python thinks fit where None.

    Raises:
        UserError: The folder holds something else, or no image can be read.
    """
    began = time.monotonic()
    _claim(out, plan, source)
    order = epoch_order(len(source), source.blocks, 0, 0)
    done = list(_finished(out))
    place = done[-1]["stop"] if done else 0
    looked = _looked_at(source, plan, order, place, workers)
    spoke = time.monotonic()
    while place < len(order):
        number = len(done)
        done.append(_shard(out / f"{number:06d}.tar", looked, plan, place))
        place = done[-1]["stop"]
        if time.monotonic() - spoke > 30:
            spoke = time.monotonic()
            log.say(f"{place:,} of {len(order):,} images in {len(done)} shards")
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
        sum(each["bytes"] for each in done), time.monotonic() - began,
    )  # fmt: skip


def _claim(out: Path, plan: Plan, source: Source) -> None:
    """Make the folder, or find it half done of the same images by the same plan."""
    about = {key: value for key, value in asdict(plan).items() if value is not None}
    said, classes = json.dumps(about | {"images": fingerprint.whole(source)}, indent=1), source.classes
    try:
        if out.is_dir() and any(out.iterdir()):
            then = (out / "pack.json").read_text("utf-8") if (out / "pack.json").is_file() else ""
            if then != said:
                raise UserError(
                    f"'{out}' holds {'shards of another plan or of other images' if then else 'something else'}",
                    "Choose another --out",
                )
        out.mkdir(parents=True, exist_ok=True)
        if classes and not any("\n" in name for name in classes):
            atomic_write.write(out / "classes.txt", "".join(f"{name}\n" for name in classes))
        atomic_write.write(out / "pack.json", said)
    except OSError as error:
        raise UserError(f"Cannot write into {out}: {error.strerror}", "Choose another --out") from error


def _finished(out: Path) -> Iterator[dict[str, Any]]:
    """What the indexes of whole shards say, up to the first that is missing or does not fit."""
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
class _Image:
    """An image or tile on its way into a shard; without content a bad one."""

    index: int
    name: str
    key: str
    label: int
    content: bytes
    ending: str
    unchanged: bool
    reason: str = ""


def _looked_at(source: Source, plan: Plan, order: Any, first: int, workers: int | None) -> Iterator[list[_Image]]:
    """The images from a place in the order on, decoded and encoded in threads; each with all its tiles."""
    ahead = _AHEAD_TILED if plan.tiles_px else _AHEAD

    def look(place: int) -> list[_Image]:
        number = int(order[place])
        key, label = source.key(number), source.label(number)
        try:
            return [
                _Image(number, f"{number:09d}{tile}", key, label, content, ending, unchanged)
                for tile, content, ending, unchanged in _contents(source.read(number), plan)
            ]
        except BadImage as error:
            return [_Image(number, "", key, -1, b"", "", False, str(error))]

    with ThreadPoolExecutor(workers) as pool:
        coming = None
        for start in range(first, len(order), ahead):
            following = pool.map(look, range(start, min(start + ahead, len(order))))
            if coming is not None:
                yield from coming
            coming = following
        if coming is not None:
            yield from coming


def _contents(data: bytes | np.ndarray, plan: Plan) -> list[tuple[str, bytes, str, bool]]:
    """What is written of an image, one by one: the tile, its file, its ending, whether that is what was read."""
    limit = plan.max_pixels or (_TILED_PIXELS if plan.tiles_px else MAX_PIXELS)
    form, size = measure(data, limit) if isinstance(data, bytes) else ("", (data.shape[1], data.shape[0]))
    with _large if size[0] * size[1] > MAX_PIXELS else contextlib.nullcontext():
        if plan.tiles_px and max(size) > plan.tiles_px:
            cut = tiles(data, plan.tiles_px, limit)
            return [(f"-{row:03d}-{column:03d}", *_encoded(pixels, plan.format)) for row, column, pixels in cut]
        return [("", *_content(data, form, size, decode(data, plan.max_area_px, limit), plan))]


def _encoded(pixels: np.ndarray, into: Format) -> tuple[bytes, str, bool]:
    kind, options = _ENCODED[into]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue(), _ENDINGS[kind], False


def _content(
    data: bytes | np.ndarray, was: str, size: tuple[int, int], pixels: np.ndarray, plan: Plan
) -> tuple[bytes, str, bool]:
    """What is written of an image as a whole."""
    if sorted(size) != sorted(pixels.shape[:2]):
        return _encoded(pixels, plan.format)
    if isinstance(data, bytes) and was in _ENDINGS:
        return data, _ENDINGS[was], True
    return _encoded(pixels, "png")  # never encoded before, or in a rare format: without loss


def _shard(path: Path, images: Iterator[list[_Image]], plan: Plan, first: int) -> dict[str, Any]:
    """Write one shard and then its index, each in one move; what the index says of it."""
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
    said = write_index(contents) | {"stop": stop, "images": num, "unchanged": unchanged, "bad": bad}
    index.save(path.with_name(f"{path.name}.index"), contents.columns(), said)
    return said


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # of no owner and no time: the same images make the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
