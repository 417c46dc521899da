"""A source of any kind, written once as shards: shuffled, at working size, checked, with an index beside each shard.

Folders of classes and huge folders of small files are slow in two ways: every image is a file to open, and every epoch
decodes more pixels than training looks at. Shards end both. They are WebDataset's: `000000.tar` with `000000042.jpg`
and, where the class is known, `000000042.cls`; 42 is the image's place in the source.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from opendino.core import files, log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data import fingerprint, index
from opendino.data.decode import decode
from opendino.data.files import cell
from opendino.data.order import visits
from opendino.data.shards import note, restored, scan

Format = Literal["jpeg", "webp", "png"]

_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ENCODED: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 95}), "webp": ("WEBP", {"quality": 95}), "png": ("PNG", {}),
}  # fmt: skip
_AHEAD = 256  # images decoded ahead of the one that is written


@dataclass(frozen=True)
class Plan:
    """What decides every byte of the shards.

    Attributes:
        data: Where the images come from.
        num: How many they are.
        max_area_px: Larger images are shrunk to this area.
        format: What shrunk ones are encoded as.
        shard_mb: A shard is closed when it has as many megabytes.
    """

    data: str
    num: int
    max_area_px: int
    format: Format
    shard_mb: int


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

    The order is a shuffle, so that neighbours in a shard are no more alike than any other images. Images that fit
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
    order = visits(len(source), source.blocks, 0, 0)
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
        files.write(out / "bad_files.csv", text.getvalue())
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
    said, classes = json.dumps(asdict(plan) | {"images": fingerprint.whole(source)}, indent=1), source.classes
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
            files.write(out / "classes.txt", "".join(f"{name}\n" for name in classes))
        files.write(out / "pack.json", said)
    except OSError as error:
        raise UserError(f"Cannot write into {out}: {error.strerror}", "Choose another --out") from error


def _finished(out: Path) -> Iterator[dict[str, Any]]:
    """What the indexes of whole shards say, up to the first that is missing or does not fit."""
    for number in range(10**6):
        path = out / f"{number:06d}.tar"
        known = index.load(path.with_name(f"{path.name}.index"))
        if known is None or restored(*known) is None or not path.is_file() or path.stat().st_size != known[1]["bytes"]:
            return
        yield known[1]


@dataclass(frozen=True)
class _Image:
    """An image on its way into a shard; without content a bad one."""

    index: int
    key: str
    label: int
    content: bytes
    ending: str
    unchanged: bool
    reason: str = ""


def _looked_at(source: Source, plan: Plan, order: Any, first: int, workers: int | None) -> Iterator[_Image]:
    """The images from a place in the order on, decoded and encoded in threads."""

    def look(place: int) -> _Image:
        number = int(order[place])
        try:
            content, ending, unchanged = _content(source.read(number), plan)
        except BadImage as error:
            return _Image(number, source.key(number), -1, b"", "", False, str(error))
        return _Image(number, source.key(number), source.label(number), content, ending, unchanged)

    with ThreadPoolExecutor(workers) as pool:
        coming = None
        for start in range(first, len(order), _AHEAD):
            following = pool.map(look, range(start, min(start + _AHEAD, len(order))))
            if coming is not None:
                yield from coming
            coming = following
        if coming is not None:
            yield from coming


def _content(data: bytes | np.ndarray, plan: Plan) -> tuple[bytes, str, bool]:
    """What is written of an image, its ending, and whether that is what was read."""
    pixels = decode(data, plan.max_area_px)
    kind, options = _ENCODED[plan.format]
    if isinstance(data, bytes):
        with Image.open(io.BytesIO(data)) as opened:
            was, size = opened.format or "", opened.size
        if sorted(size) == sorted(pixels.shape[:2]):
            if was in _ENDINGS:
                return data, _ENDINGS[was], True
            kind, options = _ENCODED["png"]
    elif data.shape == pixels.shape:
        kind, options = _ENCODED["png"]  # never encoded before: without loss
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue(), _ENDINGS[kind], False


def _shard(path: Path, images: Iterator[_Image], plan: Plan, first: int) -> dict[str, Any]:
    """Write one shard and then its index, each in one move; what the index says of it."""
    partial = path.with_name(f".{path.name}.partial")
    stop, num, unchanged, bad = first, 0, 0, []
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image in images:
            stop += 1
            if image.reason:
                bad.append((image.key, image.reason))
                continue
            name = f"{image.index:09d}"
            _add(tar, f"{name}.{image.ending}", image.content)
            if image.label >= 0:
                _add(tar, f"{name}.cls", str(image.label).encode())
            num, unchanged = num + 1, unchanged + image.unchanged
            if tar.offset >= plan.shard_mb * 10**6:
                break
    files.sync(partial)
    partial.replace(path)
    contents = scan(path)
    assert len(contents.names) == num and not contents.damage
    said = note(contents) | {"stop": stop, "images": num, "unchanged": unchanged, "bad": bad}
    index.save(path.with_name(f"{path.name}.index"), contents.columns(), said)
    return said


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # of no owner and no time: the same images make the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
