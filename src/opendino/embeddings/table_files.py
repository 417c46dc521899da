"""Embedding tables as Parquet, CSV or npz files, written part by part to bound memory."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opendino.core.errors import UsageError
from opendino.data.source_files import cell
from opendino.embeddings import table_schema
from opendino.embeddings.embed_images import Rows

_ROW_GROUP_BYTES = 2**25


@dataclass(frozen=True)
class Content:
    """Content of a table file.

    Attributes:
        parts: Starts a new pass over the rows.
        dim: D, the number of features of a vector.
        grid: (rows, columns) of the patches; None without patches.
        about: Metadata of the table, see `embed_images.table_origin`.
    """

    parts: Callable[[], Iterator[Rows]]
    dim: int
    grid: tuple[int, int] | None
    about: Mapping[str, Any]


def check(out: Path, patches: bool) -> None:
    """Check that a file of this name can be written, with or without patches.

    Raises:
        UsageError: The suffix is not supported, or the format cannot hold patches.
        UserError: A package that the format needs is not installed.
    """
    if out.suffix.lower() not in WRITERS:
        raise UsageError(f"'{out}' has no supported suffix", f"Use one of {', '.join(WRITERS)}, .lance")
    if out.suffix.lower() == ".csv" and patches:
        raise UsageError("A .csv file cannot hold patch features", "Use .parquet or .npz")
    if out.suffix.lower() == ".parquet":
        table_schema.pyarrow()


def write(path: Path, kind: str, content: Content) -> None:
    """Write a file in format `kind`, a key of `WRITERS`. The same content gives the same bytes."""
    WRITERS[kind](path, content)


def _parquet(path: Path, content: Content) -> None:
    """Columns as in `table_schema.arrow`, in row groups of about 32 MB."""
    pa = table_schema.pyarrow()
    columns = table_schema.arrow(content.dim, content.grid, content.about)
    waiting: list[Any] = []
    with open(path, "wb") as file, pa.parquet.ParquetWriter(file, columns, use_dictionary=False) as writer:
        for rows in content.parts():
            waiting.append(table_schema.batch(rows, columns))
            if sum(batch.nbytes for batch in waiting) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))


def _csv(path: Path, content: Content) -> None:
    """Columns key, width, height, v0, v1, ...: the shortest decimals that give the same float32 when read."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        # Quote all strings: an unquoted carriage return in a file name would end the line.
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(["key", "width", "height", *(f"v{i}" for i in range(content.dim))])
        for rows in content.parts():
            for key, size, vector in zip(rows.keys, rows.sizes, rows.vectors.numpy(), strict=True):
                writer.writerow([cell(key), *size, *vector])


def _npz(path: Path, content: Content) -> None:
    """One array per column, and the metadata as JSON in the array `opendino`; nothing is pickled."""
    lengths = [len(key) for rows in content.parts() for key in rows.keys]
    key_dtype, count = f"<U{max(lengths)}", len(lengths)
    arrays: dict[str, tuple[str, tuple[int, ...], Callable[[Rows], Any]]] = {
        "key": (key_dtype, (), lambda rows: np.array(rows.keys, key_dtype)),
        "vector": ("<f4", (content.dim,), lambda rows: np.asarray(rows.vectors)),
        "width": ("<i4", (), lambda rows: np.array([width for width, _ in rows.sizes], "<i4")),
        "height": ("<i4", (), lambda rows: np.array([height for _, height in rows.sizes], "<i4")),
    }
    if content.grid is not None:
        num_patches = content.grid[0] * content.grid[1]
        arrays["patches"] = ("<f2", (num_patches, content.dim), lambda rows: np.asarray(rows.patches))
    metadata = np.array(json.dumps(table_schema.described(content.dim, content.grid, content.about)))
    # np.savez would need whole arrays in memory: write each .npy header, then the rows part by part.
    with zipfile.ZipFile(path, "w") as archive:
        for name, (dtype, shape, column) in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                header = {"descr": dtype, "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
                for rows in content.parts():
                    file.write(column(rows).tobytes())
        with archive.open(zipfile.ZipInfo("opendino.npy"), "w") as file:
            np.lib.format.write_array(file, metadata, allow_pickle=False)


WRITERS = {".parquet": _parquet, ".csv": _csv, ".npz": _npz}
