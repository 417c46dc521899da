"""Images → vectors in a file: part by part, so that a crash costs one part, and memory does not grow with the set."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opendino.core import dist, files, log
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.decode import decode
from opendino.features.stream import Bad, ahead
from opendino.models.load import Model
from opendino.search import schema as schemas

FORMATS = (".parquet", ".csv", ".npz")
PART = 1000
"""Images of a part."""


@dataclass(frozen=True)
class Rows:
    """What became of some images, in the source's order.

    Attributes:
        indices: int, positions in the source, of the readable ones.
        keys: Their names.
        vectors: float32 `[B D]` on the host, not of unit length.
        sizes: (width, height) of each, upright, as stored.
        patches: float16 `[B N·D]` on the host, row by row of the grid; None unless asked for.
        bad: (key, reason) of those that could not be read.
    """

    indices: list[int]
    keys: list[str]
    vectors: Tensor
    sizes: list[tuple[int, int]]
    patches: Tensor | None
    bad: Bad


def vectors(
    model: Model, source: Source, indices: Sequence[int], *, batch: int = 64, workers: int = 4, patches: bool = False
) -> Iterator[Rows]:
    """The network's features of images, batch by batch, threads decoding ahead of it.

    Args:
        model: On any device.
        source: Images.
        indices: Which of them.
        batch: Images at a time.
        workers: Threads that read and decode.
        patches: Keep the features of all patches too.

    Raises:
        UserError: The network gives what is not a number, or has no patches.
    """
    weight = next(model.backbone.parameters())

    def look(place: int) -> tuple[Tensor, tuple[int, int]]:
        image = decode(source.read(indices[place]))
        return model.preprocess(Image.fromarray(image)), (image.shape[1], image.shape[0])

    for looked, bad in ahead(source, indices, look, batch, workers):
        found, kept = torch.empty(0, model.backbone.embed_dim), None
        if looked:
            images = torch.stack([image for _, (image, _) in looked]).to(weight.device, weight.dtype)
            if patches:
                features = model.features(images)
                found, kept = features.cls, features.patches.flatten(1).cpu().half()
            else:
                found = model.embed(images)
            found = found.float().cpu()
        if not found.isfinite().all():
            raise UserError(
                "The network's features are not finite numbers", "Its weights are broken; take an earlier one"
            )
        places = [place for place, _ in looked]
        yield Rows(
            indices=[indices[place] for place in places],
            keys=[source.key(indices[place]) for place in places],
            vectors=found,
            sizes=[size for _, (_, size) in looked],
            patches=kept,
            bad=bad,
        )


def about(model: Model, name: str, which: str | None, source: Source, data: str, patches: bool) -> dict[str, Any]:
    """What a table of these vectors remembers of their making, plain JSON.

    Args:
        model: What makes them.
        name, which: How the model was asked for.
        source, data: The images, and how they were asked for.
        patches: Whether it holds the patches' features.

    Raises:
        UserError: The network has no patches.
    """
    grid = None
    if patches:
        side = model.preprocessing["image_px"]
        try:
            grid = list(model.features(torch.zeros(1, 3, side, side)).grid)
        except NotImplementedError as error:
            raise UserError(str(error), "Leave --patches out") from error
    return {
        "format": 1, "model": name, "which": which, "fingerprint": model.fingerprint, "dim": model.backbone.embed_dim,
        "grid": grid, "preprocessing": model.preprocessing, "data": data, "images": len(source),
    }  # fmt: skip


@dataclass(frozen=True)
class Embedded:
    """What came of it.

    Attributes:
        written: Images in the file.
        bad: (key, reason) of those that could not be read.
        fresh: Images that this call looked at; the others were there from an earlier one.
        seconds: Of this call.
    """

    written: int
    bad: Bad
    fresh: int
    seconds: float


def embed(
    model: Model,
    source: Source,
    out: Path,
    facts: dict[str, Any],
    *,
    batch: int = 64,
    workers: int = 4,
    part: int = PART,
) -> Embedded:
    """Write the vectors of all images of a source into a file; the same call again goes on where one was cut off.

    Each part is written under a temporary name and renamed; at the end they become one file. Of several processes each
    takes its share of the parts, and the first puts them together. Unreadable images are listed in `NAME.bad.csv`.

    Args:
        model: On any device.
        source: Images.
        out: A .parquet, .csv or .npz that does not exist yet.
        facts: From `about`, of these.
        batch: Images at a time.
        workers: Threads that read and decode.
        part: Images of a part.

    Raises:
        UserError: What an earlier call left is of something else; nothing can be read; the disk is full.
    """
    began, pq = time.monotonic(), _parquet()
    home, schema = out.with_name(f"{out.name}.parts"), schemas.arrow(facts)
    job = facts | {"part": part, "keys": _checksum(source)}
    if dist.rank() == 0:
        _claim(home, json.dumps(job, sort_keys=True))
    dist.barrier()
    fresh, spoke = 0, began
    for number, start in enumerate(range(0, len(source), part)):
        path = home / f"{number:06d}.parquet"
        if number % dist.world() != dist.rank() or path.exists():
            continue
        indices, bad = range(start, min(start + part, len(source))), []
        partial = home / f".{path.name}.partial"
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for rows in vectors(model, source, indices, batch=batch, workers=workers, patches=bool(facts["grid"])):
                bad += rows.bad
                if rows.keys:
                    writer.write_batch(schemas.batch(rows, schema))
            writer.add_key_value_metadata({"bad": json.dumps(bad)})
        files.sync(partial)
        partial.replace(path)
        fresh += len(indices)
        if time.monotonic() - spoke > 10:
            spoke = time.monotonic()
            log.say(f"{indices.stop:,} of {len(source):,} images, {fresh / (spoke - began):.3g} images/s")
    dist.barrier()
    written, bad = 0, []
    if dist.rank() == 0:
        written, bad = _joined(home, out, schema, facts)
        shutil.rmtree(home)
    dist.barrier()
    return Embedded(written, bad, sum(dist.collected([fresh])), time.monotonic() - began)


def _claim(home: Path, job: str) -> None:
    """Begin a job, or go on with the same one."""
    note = home / "job.json"
    if note.exists() and note.read_text(encoding="utf-8") != job:
        raise UserError(
            f"'{home}' holds parts of another model, other images or other settings",
            "Remove it to begin anew, or choose another --out",
        )
    home.mkdir(parents=True, exist_ok=True)
    files.write(note, job)


def _joined(home: Path, out: Path, schema: Any, facts: dict[str, Any]) -> tuple[int, Bad]:
    """All parts as one file, in order; how many rows it has, and what could not be read."""
    pq = _parquet()
    parts = sorted(home.glob("[0-9]*.parquet"))
    opened = [pq.ParquetFile(path) for path in parts]
    bad = [tuple(pair) for each in opened for pair in json.loads(each.metadata.metadata[b"bad"])]
    written = sum(each.metadata.num_rows for each in opened)
    if not written:
        key, reason = bad[0]
        shutil.rmtree(home)
        raise UserError(f"None of the {len(bad)} images can be read, e.g. {key}: {reason}", "Check the folder")
    if bad:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("key", "reason"), *bad])
        files.write(out.with_name(f"{out.name}.bad.csv"), text.getvalue())
    partial = out.with_name(f".{out.name}.partial")
    batches = (batch for each in opened for batch in each.iter_batches(batch_size=PART))
    if out.suffix == ".parquet":
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
    elif out.suffix == ".csv":
        _write_csv(partial, batches, facts["dim"])
    else:
        _write_npz(partial, list(batches), facts)
    files.sync(partial)
    partial.replace(out)
    return written, bad


def _write_csv(path: Path, batches: Iterator[Any], dim: int) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["key", "width", "height", *(f"v{i}" for i in range(dim))])
        for batch in batches:
            rows = batch.column("vector").values.to_numpy(zero_copy_only=False).reshape(-1, dim)
            heads = zip(*(batch.column(name).to_pylist() for name in ("key", "width", "height")), strict=True)
            writer.writerows(
                [*head, *map(np.format_float_positional, row)] for head, row in zip(heads, rows, strict=True)
            )


def _write_npz(path: Path, batches: list[Any], facts: dict[str, Any]) -> None:
    columns: dict[str, Any] = {"about": np.array(json.dumps(facts))}
    columns["key"] = np.array([key for batch in batches for key in batch.column("key").to_pylist()], dtype=np.str_)
    for name in ("width", "height"):
        columns[name] = np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in batches])
    for name in ("vector", "patches") if facts["grid"] else ("vector",):
        flat = np.concatenate([batch.column(name).values.to_numpy(zero_copy_only=False) for batch in batches])
        columns[name] = flat.reshape(len(columns["key"]), -1)
    with open(path, "wb") as file:
        np.savez(file, **columns)


def _checksum(source: Source) -> int:
    """Of all names, so that a part never means other images than it did."""
    found = 0
    for index in range(len(source)):
        found = zlib.crc32(f"{source.key(index)}\0".encode("utf-8", "surrogateescape"), found)
    return found


def _parquet() -> Any:
    schemas.pyarrow()
    from pyarrow import parquet

    return parquet
