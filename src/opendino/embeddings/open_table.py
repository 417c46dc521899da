"""Open the embedding table that the user names as TABLE."""

from __future__ import annotations

from pathlib import Path

from opendino.core.errors import UsageError, UserError
from opendino.data.source_files import exists, is_folder
from opendino.embeddings.embedding_table import EmbeddingTable


def open_table(name: str) -> EmbeddingTable:
    """Open a `.lance` table or a `.parquet` file written by `opendino embed`.

    Raises:
        UsageError: The name has another suffix.
        UserError: The table does not exist, is damaged, or does not name its model.
    """
    name = str(Path(name).expanduser()) if "://" not in name else name.rstrip("/")
    kind = name.rpartition(".")[2].lower()
    if kind not in ("lance", "parquet"):
        raise UsageError(
            f"'{name}' is not the name of a table: it does not end in .parquet or .lance",
            f"Create one: opendino embed MODEL DATA --out {Path(name).stem}.parquet",
        )
    if "://" not in name and not exists(name):
        raise UserError(f"There is no table {name}", f"Create it: opendino embed MODEL DATA --out {name}")
    if kind == "lance":
        from opendino.embeddings.lance_table import LanceTable

        return LanceTable(name)
    if is_folder(name):
        raise UserError(f"{name} is a folder", "Name one .parquet file")
    from opendino.embeddings.parquet_table import ParquetTable

    return ParquetTable(name)
