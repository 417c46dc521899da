"""A table of vectors, made in parts: what is finished is never computed again, and who computed it does not matter.

Parts are files of one stretch of the source each, `TABLE.parts/part-00003-of-00020.safetensors`, complete or absent.
Which images a part holds depends on the source and the width of a row alone, so that work begun by four processes can
be finished by one. When all are there they are merged into the table and removed.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import safe_open

from opendino.core import atomic_write, distributed, log
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data import fingerprint
from opendino.data.source_files import cell
from opendino.embeddings import embed_images, table_files
from opendino.embeddings.embed_images import Rows
from opendino.features.image_stream import Bad
from opendino.models.load import Model

_PART_IMAGES = 512
_PART_BYTES = 2**25
_FORMAT = 1
_ABOUT = "about.json"
_DIFFERENCES = {
    "format": "another version",
    "fingerprint": "another model",
    "images": "another number of images",
    "source": "other images",
    "patches": "another choice of --patches",
}


@dataclass(frozen=True)
class Written:
    """What became of the images.

    Attributes:
        written: Rows of the table.
        skipped: Images that could not be read.
        bad: (key, reason) of the first 20 of them.
        listed: Where all of them are listed; None where there are none.
        images_per_second: Of what was computed now, by all processes; None where everything had been.
    """

    written: int
    skipped: int
    bad: Bad
    listed: Path | None
    images_per_second: float | None


def check(out: Path, overwrite: bool) -> None:
    """Whether a table may be written here, before anything is computed.

    Raises:
        UserError: There is no folder for it, or something is there already.
    """
    if not out.absolute().parent.is_dir():
        raise UserError(f"There is no folder to write {out} into", "Make it, or choose another --out")
    if out.is_dir():
        raise UserError(f"{out} is a folder", "Choose another --out")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists", "Choose another --out, or replace it with --overwrite")


def write(
    model: Model,
    source: Source,
    out: Path,
    about: Mapping[str, Any],
    *,
    patches: bool = False,
    batch: int = 64,
    workers: int = 4,
    overwrite: bool = False,
    part_images: int = _PART_IMAGES,
) -> Written | None:
    """Embed every image of a source into one file, going on where an earlier attempt ended. Ranks share the work.

    Unreadable images are left out and listed in a `.bad.csv` beside the table. Memory holds a few batches, a part and
    a row group, however many images there are.

    Args:
        model: On this rank's device.
        source: The same on every rank.
        out: A file with the ending of a format, see `formats`; replaced at the end, in one move.
        about: What the table remembers, as from `embed.origin`.
        patches: Whether to keep patch features.
        batch: Images at a time.
        workers: Threads that decode.
        overwrite: Drop unfinished parts of another model or other images.
        part_images: Images in a part, fewer where their rows are wide.

    Returns:
        None on ranks other than the first.

    Raises:
        UserError: No image can be read, or there are parts of something else.
    """
    grid = embed_images.grid(model) if patches else None
    dim = model.backbone.embed_dim
    size = max(1, min(part_images, _PART_BYTES // (4 * dim + 2 * dim * math.prod(grid or (0,)))))
    whole = range(len(source))
    spans = [whole[start : start + size] for start in whole[::size]]
    folder = out.with_name(f"{out.name}.parts")
    paths = [folder / f"part-{number:05d}-of-{len(spans):05d}.safetensors" for number in range(len(spans))]
    settings = {
        "format": _FORMAT,
        "fingerprint": about["fingerprint"],
        "images": len(source),
        "patches": patches,
        "part_images": size,
    }
    try:
        _begin(folder, settings, source, overwrite)
        missing = distributed.broadcast_object([number for number, path in enumerate(paths) if not path.is_file()])
        if len(missing) < len(paths):
            log.say(f"{len(paths) - len(missing)} of {len(paths)} parts are there already, going on")
        began = time.monotonic()
        mine = missing[distributed.rank() :: distributed.world_size()]
        indices = array("q", itertools.chain.from_iterable(spans[number] for number in mine))
        stream = embed_images.vectors(
            model, source, indices, batch=batch, workers=workers, patches=patches, within=size
        )
        with contextlib.closing(stream):
            for number in mine:
                _save(paths[number], _stretch(stream, len(spans[number])))
        distributed.barrier()
        seconds = time.monotonic() - began
        if distributed.rank():
            return None
        done = _merge(paths, out, table_files.Content(lambda: map(_read, paths), dim, grid, about))
        _remove(folder)
    finally:
        if not distributed.rank() and not any(folder.glob("part-*")):
            _remove(folder)
    num_seen = sum(len(spans[number]) for number in missing)
    return replace(done, images_per_second=num_seen / seconds if missing else None)


def _begin(folder: Path, settings: dict[str, Any], source: Source, overwrite: bool) -> None:
    """The folder of parts, made or found to hold parts of just this; by rank 0 for all."""
    refusal: UserError | None = None
    if not distributed.rank():
        try:
            _claim(folder, settings | {"source": fingerprint.whole(source)}, overwrite)
        except UserError as error:
            refusal = error
    if refusal := distributed.broadcast_object(refusal):
        raise refusal


def _claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make {folder}: {error.strerror}", "Choose another --out") from error
    try:
        found = json.loads((folder / _ABOUT).read_bytes())
    except (OSError, ValueError):
        found = {}
    if found == settings:
        return
    if any(folder.glob("part-*")):
        if not overwrite:
            differs = [words for name, words in _DIFFERENCES.items() if found.get(name) != settings[name]]
            raise UserError(
                f"{folder} holds parts made with {differs[0] if differs else 'other settings'}",
                "Finish those with the command that began them, choose another --out, or drop them with --overwrite",
            )
        _remove(folder)
        folder.mkdir(exist_ok=True)
    atomic_write.write(folder / _ABOUT, json.dumps(settings))


def _stretch(stream: Iterator[Rows], length: int) -> Rows:
    """The rows of the next `length` images, readable or not."""
    several: list[Rows] = []
    while sum(len(rows) + len(rows.bad) for rows in several) < length:
        several.append(next(stream))
    cells = [rows.patches for rows in several if rows.patches is not None]
    return Rows(
        [index for rows in several for index in rows.indices],
        [key for rows in several for key in rows.keys],
        torch.cat([rows.vectors for rows in several]),
        [size for rows in several for size in rows.sizes],
        torch.cat(cells) if cells else None,
        [bad for rows in several for bad in rows.bad],
    )


def _save(path: Path, rows: Rows) -> None:
    tensors = {
        "indices": torch.tensor(rows.indices, dtype=torch.int64),
        "vectors": rows.vectors,
        "sizes": torch.tensor(rows.sizes, dtype=torch.int32).reshape(-1, 2),
    }
    if rows.patches is not None:
        tensors["patches"] = rows.patches
    told = {"keys": json.dumps(rows.keys), "bad": json.dumps(rows.bad)}
    atomic_write.write(path, safetensors.torch.save(tensors, told))


def _read(path: Path) -> Rows:
    with _opened(path) as part:
        names = part.keys()
        return Rows(
            part.get_tensor("indices").tolist(),
            json.loads(part.metadata()["keys"]),
            part.get_tensor("vectors"),
            [(width, height) for width, height in part.get_tensor("sizes").tolist()],
            part.get_tensor("patches") if "patches" in names else None,
            _bad(part),
        )


def _bad(part: Any) -> Bad:
    return [(key, reason) for key, reason in json.loads(part.metadata()["bad"])]


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except FileNotFoundError:
        raise UserError(f"{path} is missing", "Processes on several machines need a file system they share") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}", "Remove it and give the same command again") from error


def _merge(paths: list[Path], out: Path, content: table_files.Content) -> Written:
    """All parts as one file, and beside it the list of what could not be read."""
    num_written, num_bad, examples, listed = 0, 0, [], out.with_suffix(".bad.csv")
    with atomic_write.replace_file(listed) as partial:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writerow(["key", "reason"])
            for path in paths:
                with _opened(path) as part:
                    num_written, bad = num_written + part.get_slice("indices").get_shape()[0], _bad(part)
                writer.writerows((cell(key), cell(reason)) for key, reason in bad)
                num_bad, examples = num_bad + len(bad), [*examples, *bad][:20]
        if not num_written:
            for path in paths:  # so that the next attempt looks at the images again
                path.unlink()
            raise UserError(
                f"None of the {num_bad} images can be read, e.g. {examples[0][0]}: {examples[0][1]}",
                "Check that DATA holds intact images",
            )
    if not num_bad:
        listed.unlink()
    with atomic_write.replace_file(out) as partial:
        table_files.write(partial, out.suffix.lower(), content)
    return Written(num_written, num_bad, examples, listed if num_bad else None, None)


def _remove(folder: Path) -> None:
    """Everything of ours in a folder of parts, and the folder if nothing else is in it."""
    for pattern in ("part-*", ".part-*", _ABOUT, f".{_ABOUT}.partial"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
