"""Tables of vectors as files: Parquet, CSV, NumPy's npz. Each is written a part at a time, never held as a whole."""

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
    """What goes into a file.

    Attributes:
        parts: Begins a pass over the rows.
        dim: D, the width of a vector.
        grid: (rows, columns) of the patches; None for none.
        about: What the table remembers, as from `embed.origin`.
    """

    parts: Callable[[], Iterator[Rows]]
    dim: int
    grid: tuple[int, int] | None
    about: Mapping[str, Any]


def check(out: Path, patches: bool) -> None:
    """Whether a file of this name can be written, and with patches.

    Raises:
        UsageError: An ending of no format, or of one without room for patches.
        UserError: A package that the format needs is not installed.
    """
    if out.suffix.lower() not in WRITERS:
        raise UsageError(f"'{out}' is of no format for vectors", f"End its name in {', '.join(WRITERS)}, .lance")
    if out.suffix.lower() == ".csv" and patches:
        raise UsageError("A .csv has no room for patch features", "Write a .parquet or .npz")
    if out.suffix.lower() == ".parquet":
        table_schema.pyarrow()


def write(path: Path, kind: str, content: Content) -> None:
    """Write a file of the format that `kind`, a key of `WRITERS`, stands for. The same content gives the same bytes."""
    WRITERS[kind](path, content)


def _parquet(path: Path, content: Content) -> None:
    """Columns as in `schema.arrow`, in row groups of some 32 MB."""
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
    """Columns key, width, height, v0, v1, ...: each number in as few digits as give the same float32 again."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        # Words in quotes: else a lone carriage return in a file's name would end the line.
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(["key", "width", "height", *(f"v{i}" for i in range(content.dim))])
        for rows in content.parts():
            for key, size, vector in zip(rows.keys, rows.sizes, rows.vectors.numpy(), strict=True):
                writer.writerow([cell(key), *size, *vector])


def _npz(path: Path, content: Content) -> None:
    """Arrays of the columns' names, and what the table remembers as JSON in `opendino`; nothing is pickled."""
    lengths = [len(key) for rows in content.parts() for key in rows.keys]
    words, count = f"<U{max(lengths)}", len(lengths)
    arrays: dict[str, tuple[str, tuple[int, ...], Callable[[Rows], Any]]] = {
        "key": (words, (), lambda rows: np.array(rows.keys, words)),
        "vector": ("<f4", (content.dim,), lambda rows: np.asarray(rows.vectors)),
        "width": ("<i4", (), lambda rows: np.array([width for width, _ in rows.sizes], "<i4")),
        "height": ("<i4", (), lambda rows: np.array([height for _, height in rows.sizes], "<i4")),
    }
    if content.grid is not None:
        num_patches = content.grid[0] * content.grid[1]
        arrays["patches"] = ("<f2", (num_patches, content.dim), lambda rows: np.asarray(rows.patches))
    told = np.array(json.dumps(table_schema.described(content.dim, content.grid, content.about)))
    with zipfile.ZipFile(path, "w") as archive:
        for name, (dtype, shape, column) in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                header = {"descr": dtype, "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
                for rows in content.parts():
                    file.write(column(rows).tobytes())
        with archive.open(zipfile.ZipInfo("opendino.npy"), "w") as file:
            np.lib.format.write_array(file, told, allow_pickle=False)


WRITERS = {".parquet": _parquet, ".csv": _csv, ".npz": _npz}
