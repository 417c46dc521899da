"""Parquet files of vectors, read a stretch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from opendino.search import schema
from opendino.search.table import STRETCH, Table, readable

if TYPE_CHECKING:
    import pyarrow as pa


@final
class ParquetTable(Table):
    """A Parquet file that `opendino embed` wrote.

    Args:
        name: Its path.

    Raises:
        UserError: It cannot be read or is none of ours, or pyarrow is not installed.
    """

    def __init__(self, name: str) -> None:
        pyarrow = schema.pyarrow()
        with readable(name):
            self._file = pyarrow.parquet.ParquetFile(name)
            super().__init__(name, schema.about(self._file.schema_arrow))

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See `Table`."""
        return self._file.iter_batches(STRETCH, columns=["key", "vector"])
