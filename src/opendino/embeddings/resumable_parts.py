"""Resumable embedding: the table is computed in parts, and finished parts are reused after an interruption.

Each part is a file for a contiguous range of the source, `TABLE.parts/part-00003-of-00020.safetensors`; it is complete
or absent. The images of a part depend only on the source and the row size, not on the number of processes: 1 process
can finish the work of 4. When all parts exist they are merged into the table and removed.
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
    "format": "another format version",
    "fingerprint": "another model",
    "images": "another number of images",
    "source": "other images",
    "patches": "another value of --patches",
}


@dataclass(frozen=True)
class Written:
    """Result of embedding a source.

    Attributes:
        written: Number of rows in the table.
        skipped: Number of images that could not be read.
        bad: (key, reason) of the first 20 skipped images.
        listed: CSV file with all skipped images; None if there are none.
        images_per_second: Throughput of all processes in this call; None if all parts existed already.
    """

    written: int
    skipped: int
    bad: Bad
    listed: Path | None
    images_per_second: float | None


def check(out: Path, overwrite: bool) -> None:
    """Check that a table can be written here, before anything is computed.

    Raises:
        UserError: The parent folder does not exist, or `out` exists already.
    """
    if not out.absolute().parent.is_dir():
        raise UserError(f"There is no folder to write {out} into", "Create the folder, or choose another --out")
    if out.is_dir():
        raise UserError(f"{out} is a folder", "Choose another --out")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already", "Choose another --out, or replace it with --overwrite")


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
    """Embed every image of a source into one file; continues after an interruption. Ranks share the work.

    Unreadable images are skipped and listed in a `.bad.csv` file next to the table. Memory holds a few batches, a part
    and a row group for any number of images.

    Args:
        model: On the device of this rank.
        source: The same on every rank.
        out: Output file with a suffix of `table_files.WRITERS`; replaced atomically at the end.
        about: Metadata of the table, see `embed_images.table_origin`.
        patches: Whether to keep patch features.
        batch: Images per batch.
        workers: Number of threads that decode images.
        overwrite: Delete unfinished parts of another model or other images.
        part_images: Maximum number of images per part; wide rows reduce it.

    Returns:
        The result on rank 0, None on other ranks.

    Raises:
        UserError: No image can be read, or the folder holds parts made with other settings.
    """
    grid = embed_images.grid(model) if patches else None
    dim = model.backbone.embed_dim
    # A row has D float32 values and, with patches, N * D float16 values; a part stays below _PART_BYTES.
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
        _prepare_folder(folder, settings, source, overwrite)
        missing = distributed.broadcast_object([number for number, path in enumerate(paths) if not path.is_file()])
        if len(missing) < len(paths):
            log.say(f"{len(paths) - len(missing)} of {len(paths)} parts exist already, continuing")
        began = time.monotonic()
        # Ranks take the missing parts in turn. One stream serves all parts of a rank, so decoding never pauses between
        # parts; `within=size` keeps batches from crossing the end of a part.
        mine = missing[distributed.rank() :: distributed.world_size()]
        indices = array("q", itertools.chain.from_iterable(spans[number] for number in mine))
        stream = embed_images.vectors(
            model, source, indices, batch=batch, workers=workers, patches=patches, within=size
        )
        with contextlib.closing(stream):
            for number in mine:
                _save(paths[number], _next_rows(stream, len(spans[number])))
        distributed.barrier()
        seconds = time.monotonic() - began
        if distributed.rank():
            return None
        result = _merge(paths, out, table_files.Content(lambda: map(_read, paths), dim, grid, about))
        _remove(folder)
    finally:
        # Leave no empty folder behind, e.g. if the first image fails.
        if not distributed.rank() and not any(folder.glob("part-*")):
            _remove(folder)
    num_seen = sum(len(spans[number]) for number in missing)
    return replace(result, images_per_second=num_seen / seconds if missing else None)


def _prepare_folder(folder: Path, settings: dict[str, Any], source: Source, overwrite: bool) -> None:
    """Create the folder of parts, or check that its parts have the same settings; rank 0 does it for all ranks."""
    failure: UserError | None = None
    if not distributed.rank():
        try:
            _check_folder(folder, settings | {"source": fingerprint.whole(source)}, overwrite)
        except UserError as error:
            failure = error
    if failure := distributed.broadcast_object(failure):
        raise failure


def _check_folder(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot create the folder {folder}: {error.strerror}", "Choose another --out") from error
    try:
        found = json.loads((folder / _ABOUT).read_bytes())
    except (OSError, ValueError):
        found = {}
    if found == settings:
        return
    if any(folder.glob("part-*")):
        if not overwrite:
            differences = [words for name, words in _DIFFERENCES.items() if found.get(name) != settings[name]]
            raise UserError(
                f"{folder} holds parts made with {differences[0] if differences else 'other settings'}",
                "Finish them with the original command, choose another --out, or delete them with --overwrite",
            )
        _remove(folder)
        folder.mkdir(exist_ok=True)
    atomic_write.write(folder / _ABOUT, json.dumps(settings))


def _next_rows(stream: Iterator[Rows], length: int) -> Rows:
    """Concatenate the batches of the next `length` images, readable or not."""
    batches: list[Rows] = []
    while sum(len(rows) + len(rows.bad) for rows in batches) < length:
        batches.append(next(stream))
    patch_features = [rows.patches for rows in batches if rows.patches is not None]
    return Rows(
        [index for rows in batches for index in rows.indices],
        [key for rows in batches for key in rows.keys],
        torch.cat([rows.vectors for rows in batches]),
        [size for rows in batches for size in rows.sizes],
        torch.cat(patch_features) if patch_features else None,
        [bad for rows in batches for bad in rows.bad],
    )


def _save(path: Path, rows: Rows) -> None:
    """Write a part atomically."""
    tensors = {
        "indices": torch.tensor(rows.indices, dtype=torch.int64),
        "vectors": rows.vectors,
        "sizes": torch.tensor(rows.sizes, dtype=torch.int32).reshape(-1, 2),
    }
    if rows.patches is not None:
        tensors["patches"] = rows.patches
    metadata = {"keys": json.dumps(rows.keys), "bad": json.dumps(rows.bad)}
    atomic_write.write(path, safetensors.torch.save(tensors, metadata))


def _read(path: Path) -> Rows:
    """Read a part."""
    with _open(path) as part:
        names = part.keys()
        return Rows(
            part.get_tensor("indices").tolist(),
            json.loads(part.metadata()["keys"]),
            part.get_tensor("vectors"),
            [(width, height) for width, height in part.get_tensor("sizes").tolist()],
            part.get_tensor("patches") if "patches" in names else None,
            _read_bad(part),
        )


def _read_bad(part: Any) -> Bad:
    return [(key, reason) for key, reason in json.loads(part.metadata()["bad"])]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing", "Processes on several machines need --out on a shared file system"
        ) from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}", "Remove it and run the same command again") from error


def _merge(paths: list[Path], out: Path, content: table_files.Content) -> Written:
    """Merge all parts into one file, and list the unreadable images in a CSV file next to it."""
    num_written, num_bad, examples, listed = 0, 0, [], out.with_suffix(".bad.csv")
    with atomic_write.replace_file(listed) as partial:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writerow(["key", "reason"])
            for path in paths:
                with _open(path) as part:
                    num_written, bad = num_written + part.get_slice("indices").get_shape()[0], _read_bad(part)
                writer.writerows((cell(key), cell(reason)) for key, reason in bad)
                num_bad, examples = num_bad + len(bad), [*examples, *bad][:20]
        if not num_written:
            for path in paths:  # so that the next attempt reads the images again
                path.unlink()
            raise UserError(
                f"None of the {num_bad} images can be read, e.g. {examples[0][0]}: {examples[0][1]}",
                "Check that DATA contains intact images",
            )
    if not num_bad:
        listed.unlink()
    with atomic_write.replace_file(out) as partial:
        table_files.write(partial, out.suffix.lower(), content)
    return Written(num_written, num_bad, examples, listed if num_bad else None, None)


def _remove(folder: Path) -> None:
    """Remove our files from a folder of parts, and the folder if it is then empty."""
    for pattern in ("part-*", ".part-*", _ABOUT, f".{_ABOUT}.partial"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
