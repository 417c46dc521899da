"""From what a user writes as TABLE to a table of vectors."""

from __future__ import annotations

from pathlib import Path

from opendino.core.errors import UsageError, UserError
from opendino.data.source_files import exists, is_folder
from opendino.embeddings.embedding_table import EmbeddingTable


def open_table(name: str) -> EmbeddingTable:
    """Open a `.lance` table or a `.parquet` file that `opendino embed` wrote.

    Raises:
        UsageError: Another ending.
        UserError: There is none, it is damaged, or it does not say which model made it.
    """
    name = str(Path(name).expanduser()) if "://" not in name else name.rstrip("/")
    kind = name.rpartition(".")[2].lower()
    if kind not in ("lance", "parquet"):
        raise UsageError(f"'{name}' is no table", "A table ends in .lance or .parquet; opendino embed makes them")
    if "://" not in name and not exists(name):
        raise UserError(f"There is no table {name}", f"Make it with: opendino embed MODEL DATA --out {name}")
    if kind == "lance":
        from opendino.embeddings.lance_table import LanceTable

        return LanceTable(name)
    if is_folder(name):
        raise UserError(f"{name} is a folder", "Give one .parquet file")
    from opendino.embeddings.parquet_table import ParquetTable

    return ParquetTable(name)
