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
import time
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import safe_open

from opendino.core import atomic_write, distributed, log
from opendino.core.errors import UserError
from opendino.data import fingerprint
from opendino.data.source_files import cell
from opendino.embeddings import table_files
from opendino.embeddings.embed_images import Embedder, Rows, concatenate
from opendino.features.image_stream import Bad, none_readable

_PART_IMAGES = 512
_MANY_BAD = 0.1  # of a part's images
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


def write(out: Path, embedder: Embedder, *, overwrite: bool = False, part_images: int = _PART_IMAGES) -> Written | None:
    """Embed every image of a source into one file; continues after an interruption. Ranks share the work.

    Unreadable images are skipped and listed in a `.bad.csv` file next to the table. Memory holds a few batches, a part
    and a row group for any number of images.

    Args:
        out: Output file with a suffix of `table_files.WRITERS`; replaced atomically at the end.
        embedder: Embeds the images, on the device of this rank; the source is the same on every rank.
        overwrite: Delete unfinished parts of another model or other images.
        part_images: Maximum number of images per part; wide rows reduce it.

    Returns:
        The result on rank 0, None on other ranks.

    Raises:
        UserError: No image can be read, or the folder holds parts made with other settings.
    """
    parts = _Parts.plan(out, embedder, part_images)
    try:
        _prepare_folder(parts.folder, embedder, parts.size, overwrite)
        began = time.monotonic()
        num_embedded = _embed_missing(parts, embedder)
        seconds = time.monotonic() - began
        if distributed.rank():
            return None
        content = table_files.Content(lambda: map(_read, parts.paths), embedder.dim, embedder.grid, embedder.origin)
        result = _merge(parts.paths, out, content)
        _remove(parts.folder)
    finally:
        # Leave no empty folder behind, e.g. if the first image fails.
        if not distributed.rank() and not any(parts.folder.glob("part-*")):
            _remove(parts.folder)
    return replace(result, images_per_second=num_embedded / seconds if num_embedded else None)


@dataclass(frozen=True)
class _Parts:
    """How the images are split into parts.

    Attributes:
        folder: Folder of the files.
        size: Images per part; the last part may be smaller.
        spans: Indices of each part's images.
        paths: File of each part.
    """

    folder: Path
    size: int
    spans: list[range]
    paths: list[Path]

    @classmethod
    def plan(cls, out: Path, embedder: Embedder, part_images: int) -> _Parts:
        """Parts of at most `part_images` images and `_PART_BYTES` bytes, at least one image."""
        size = max(1, min(part_images, _PART_BYTES // embedder.row_bytes))
        whole = range(len(embedder.source))
        spans = [whole[start : start + size] for start in whole[::size]]
        folder = out.with_name(f"{out.name}.parts")
        names = [f"part-{number:05d}-of-{len(spans):05d}.safetensors" for number in range(len(spans))]
        return cls(folder, size, spans, [folder / name for name in names])


def _embed_missing(parts: _Parts, embedder: Embedder) -> int:
    """Write the parts that do not exist; returns their number of images, over all ranks."""
    paths = parts.paths
    missing = distributed.broadcast_object(
        [number for number, path in enumerate(paths) if not path.is_file() or _many_bad(path, len(parts.spans[number]))]
    )
    if len(missing) < len(paths):
        log.say(f"{len(paths) - len(missing)} of {len(paths)} parts exist already, continuing")
    # Ranks take the missing parts in turn.
    mine = missing[distributed.rank() :: distributed.world_size()]
    indices = array("q", itertools.chain.from_iterable(parts.spans[number] for number in mine))
    with contextlib.closing(embedder.parts(indices, parts.size)) as embedded:
        for number, batches in zip(mine, embedded, strict=True):
            _save(paths[number], concatenate(batches))
    distributed.barrier()
    return sum(len(parts.spans[number]) for number in missing)


def _prepare_folder(folder: Path, embedder: Embedder, part_images: int, overwrite: bool) -> None:
    """Create the folder of parts, or check that its parts have the same settings; rank 0 does it for all ranks."""
    failure: UserError | None = None
    if not distributed.rank():
        settings = {
            "format": _FORMAT,
            "fingerprint": embedder.origin["fingerprint"],
            "images": len(embedder.source),
            "source": fingerprint.whole(embedder.source),
            "patches": embedder.patches,
            "part_images": part_images,
        }
        try:
            _check_folder(folder, settings, overwrite)
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


def _many_bad(path: Path, num: int) -> bool:
    """Whether so many of a part's images could not be read that their disk may have been away."""
    with _open(path) as part:
        return len(_read_bad(part)) > _MANY_BAD * num


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
            raise none_readable(num_bad, examples)
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
