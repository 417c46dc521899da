"""The columns of a table of vectors, the same in Parquet files and LanceDB tables, and what it remembers."""

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
    """The schema of a table: key, vector, width, height in pixels, and patches where there is a grid of them.

    Args:
        dim: D, the width of a vector.
        grid: (rows, columns) of the patches that are kept; None for none.
        about: What to remember, as from `embed.origin`.

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
    """What a table remembers, whatever its format: `about` with the version of this form and the vectors' shape."""
    return {"format": _FORMAT, **about, "dim": dim, "grid": grid and list(grid)}


def about(schema: pa.Schema) -> dict[str, Any]:
    """What a table remembers.

    Raises:
        UserError: It is none of ours, or from a later version.
    """
    try:
        told = json.loads((schema.metadata or {})[_KEY])
        version = told["format"]
    except (KeyError, TypeError, ValueError):
        raise UserError("The table does not say which model made it", "Make one with opendino embed") from None
    if version != _FORMAT:
        raise UserError(f"The table has format {version}, not {_FORMAT}", "Use the opendino that wrote it, or a newer")
    return told


def batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    """Rows as a record batch; vectors and patches are not copied."""
    pa = pyarrow()
    columns = {
        "key": pa.array(rows.keys, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(rows.vectors.numpy().ravel(), type=schema.field("vector").type),
        "width": pa.array(np.array([width for width, _ in rows.sizes], np.int32)),
        "height": pa.array(np.array([height for _, height in rows.sizes], np.int32)),
    }
    if "patches" in schema.names:
        assert rows.patches is not None
        cells = pa.array(rows.patches.numpy().ravel())
        columns["patches"] = pa.FixedSizeListArray.from_arrays(cells, type=schema.field("patches").type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def pyarrow() -> Any:
    """The package, with its Parquet part.

    Raises:
        UserError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Tables of vectors need pyarrow", 'pip install "opendino[search]"') from None
    return pyarrow
