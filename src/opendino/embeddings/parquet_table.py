"""Embedding tables in Parquet files, read and searched in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from opendino.embeddings import table_schema
from opendino.embeddings.embedding_table import STRETCH, EmbeddingTable, SearchResult, readable
from opendino.features import nearest_neighbors

if TYPE_CHECKING:
    import pyarrow as pa


@final
class ParquetTable(EmbeddingTable):
    """A Parquet file written by `opendino embed`.

    Args:
        name: Path of the file.

    Raises:
        UserError: The file cannot be read, opendino did not write it, or pyarrow is not installed.
    """

    def __init__(self, name: str) -> None:
        pyarrow = table_schema.pyarrow()
        with readable(name):
            self._file = pyarrow.parquet.ParquetFile(name)
            super().__init__(name, table_schema.about(self._file.schema_arrow))

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See `EmbeddingTable`."""
        return self._file.iter_batches(STRETCH, columns=["key", "vector"])

    def search(self, queries: Tensor, k: int, exact: bool) -> SearchResult:
        """See `EmbeddingTable`. Compares all rows chunk by chunk; ties are in table order."""
        values, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        names: dict[int, str] = {}
        first, left_out = 0, 0
        # Merge the top k of each chunk into the running top k; a stable sort keeps ties in table order.
        for keys, vectors in self.chunks():
            cosines, found = nearest_neighbors.nearest(vectors, queries, min(k, len(keys)))
            names.update((first + row, keys[row]) for row in found.unique().tolist())
            values, rows = torch.cat([values, cosines], 1), torch.cat([rows, found + first], 1)
            values, order = values.sort(dim=1, descending=True, stable=True)
            values, rows = values[:, :k], rows.gather(1, order[:, :k])
            first += len(keys)
            left_out += int((~nearest_neighbors.directed(vectors)).sum())
        num_kept = min(k, first - left_out)  # vectors that cannot be normalized come last
        found = [[names[row] for row in each] for each in rows[:, :num_kept].tolist()]
        return SearchResult(found, values[:, :num_kept].clamp(-1, 1).tolist(), True, left_out)
