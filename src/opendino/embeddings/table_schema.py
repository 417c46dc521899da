"""Columns and metadata of an embedding table, the same in Parquet files and LanceDB tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    """Convert rows to a record batch without copying vectors and patches."""
    pa = pyarrow()
    columns = {
        "key": pa.array(rows.keys, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(rows.vectors.numpy().ravel(), type=schema.field("vector").type),
        "width": pa.array(np.array([width for width, _ in rows.sizes], np.int32)),
        "height": pa.array(np.array([height for _, height in rows.sizes], np.int32)),
    }
    if "patches" in schema.names:
        assert rows.patches is not None
        patch_values = pa.array(rows.patches.numpy().ravel())
        columns["patches"] = pa.FixedSizeListArray.from_arrays(patch_values, type=schema.field("patches").type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


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
