"""The columns of a table of vectors, and what the table remembers of their making. Made by pyarrow.

Columns: `key` (string: path or name in the source), `vector` (float32 `[D]`, as the network gives it, not of unit
length), `width` and `height` (int32: of the upright image), and where asked for `patches` (float16 `[N·D]`, by rows).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from opendino.core.errors import UserError

if TYPE_CHECKING:
    from opendino.search.embed import Rows

_KEY = b"opendino"


def pyarrow() -> Any:
    """The library.

    Raises:
        UserError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise UserError("Tables of vectors need pyarrow", 'Install it: pip install "opendino[search]"') from None
    return pyarrow


def arrow(about: dict[str, Any]) -> Any:
    """The schema of a table.

    Args:
        about: What it is to remember, from `embed.about`; `dim` and `grid` (None without patches) decide its columns.
    """
    pa = pyarrow()
    columns = [
        ("key", pa.string()),
        ("vector", pa.list_(pa.float32(), about["dim"])),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
    if about["grid"]:
        columns.append(("patches", pa.list_(pa.float16(), about["dim"] * about["grid"][0] * about["grid"][1])))
    return pa.schema(columns, metadata={_KEY: json.dumps(about)})


def about(schema: Any, name: str) -> dict[str, Any]:
    """What a table remembers of its making.

    Raises:
        UserError: It is none of ours.
    """
    try:
        found = json.loads((schema.metadata or {})[_KEY])
        assert found["format"] == 1
    except (KeyError, ValueError, TypeError, AssertionError):
        raise UserError(
            f"'{name}' is no table of opendino's", "Make one: opendino embed MODEL DATA --out x.parquet"
        ) from None
    return found


def batch(rows: Rows, schema: Any) -> Any:
    """Rows as a record batch."""
    pa = pyarrow()
    fields = [rows.vectors.flatten().numpy(), *([rows.patches.flatten().numpy()] if rows.patches is not None else [])]
    wide = [field.type for field in schema if pa.types.is_fixed_size_list(field.type)]
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind) for flat, kind in zip(fields, wide, strict=True)
    ]
    widths, heights = ([size[side] for size in rows.sizes] for side in (0, 1))
    columns = [pa.array(rows.keys, pa.string()), lists[0], pa.array(widths, pa.int32()), pa.array(heights, pa.int32())]
    return pa.RecordBatch.from_arrays([*columns, *lists[1:]], schema=schema)
