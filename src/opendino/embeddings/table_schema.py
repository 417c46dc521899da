"""Columns and metadata of an embedding table, the same in Parquet files and LanceDB tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from opendino.core.errors import UserError
from opendino.embeddings.embed_images import Rows

if TYPE_CHECKING:
    import pyarrow as pa

_KEY = b"opendino"
_FORMAT = 1


def arrow(dim: int, grid: tuple[int, int] | None, about: Mapping[str, Any]) -> pa.Schema:
    """The schema of a table: key, vector, width, height in pixels, and patches if there is a grid.

    Args:
        dim: D, the number of features of a vector.
        grid: (rows, columns) of the patches; None without patches.
        about: Metadata, see `embed_images.table_origin`.

    Raises:
        UserError: pyarrow is not installed.
    """
    pa = pyarrow()
    columns = {
        "key": pa.string(),
        "vector": pa.list_(pa.float32(), dim),
        "width": pa.int32(),
        "height": pa.int32(),
    }
    if grid is not None:
        columns["patches"] = pa.list_(pa.float16(), grid[0] * grid[1] * dim)
    return pa.schema(list(columns.items()), {_KEY: json.dumps(described(dim, grid, about)).encode()})


def described(dim: int, grid: tuple[int, int] | None, about: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a table in any file format: `about` with the format version and the shape of the vectors."""
    return {"format": _FORMAT, **about, "dim": dim, "grid": grid and list(grid)}


def about(schema: pa.Schema) -> dict[str, Any]:
    """Read the metadata of a table.

    Raises:
        UserError: opendino did not write the table, or it has another format version.
    """
    try:
        metadata = json.loads((schema.metadata or {})[_KEY])
        version = metadata["format"]
    except (KeyError, TypeError, ValueError):
        raise UserError("The table does not name the model of its vectors", "Create one with opendino embed") from None
    if version != _FORMAT:
        raise UserError(
            f"The table has format {version}, not {_FORMAT}", "Use the opendino version that wrote it, or a newer one"
        )
    return metadata


def batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    """Convert rows to a record batch without copying vectors and patches.

    From buffers: `pyarrow.array` imports pandas where it is installed, which takes half a second.
    """
    pa = pyarrow()
    sizes = np.array(rows.sizes, np.int32).reshape(-1, 2).T  # [2, rows]: widths, heights
    columns = {"key": _texts(rows.keys), "width": _numbers(sizes[0]), "height": _numbers(sizes[1])}
    wide = {"vector": rows.vectors}
    if "patches" in schema.names:
        assert rows.patches is not None
        wide["patches"] = rows.patches
    for name, values in wide.items():
        columns[name] = pa.FixedSizeListArray.from_arrays(
            _numbers(values.numpy().ravel()), type=schema.field(name).type
        )
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _numbers(values: np.ndarray) -> pa.Array:
    pa = pyarrow()
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def _texts(texts: Sequence[str]) -> pa.Array:
    pa = pyarrow()
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def pyarrow() -> Any:
    """Import pyarrow with its Parquet module.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Embedding tables need pyarrow", 'pip install "opendino[search]"') from None
    return pyarrow
