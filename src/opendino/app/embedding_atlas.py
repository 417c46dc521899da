"""A map of a table's vectors in the browser, by embedding-atlas, which is handed the Parquet file as it is."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from opendino.core import child_process
from opendino.core.errors import UserError
from opendino.embeddings import table_schema
from opendino.embeddings.open_table import open_table

_PROGRAM = "embedding-atlas"


def explore(name: str, host: str = "127.0.0.1", port: int = 5055) -> int:
    """Show a table until the program is ended; its exit code.

    Args:
        name: A .parquet or .lance table of `opendino embed`; the latter is copied into a temporary Parquet file.
        host, port: Where the map listens.

    Raises:
        UserError: There is no such table, or embedding-atlas is not installed.
    """
    table = open_table(name)
    beside = shutil.which(_PROGRAM, path=str(Path(sys.executable).parent))  # of an environment that is not activated
    program = beside or shutil.which(_PROGRAM)
    if program is None:
        raise UserError("The map needs embedding-atlas", 'pip install "opendino[explore]"')
    with tempfile.TemporaryDirectory(prefix="opendino-") as folder:
        path = Path(name).expanduser()
        if path.suffix != ".parquet":
            path = Path(folder) / f"{path.stem}.parquet"
            batches = table.batches()
            first = next(batches)
            with table_schema.pyarrow().parquet.ParquetWriter(path, first.schema) as writer:
                for batch in (first, *batches):
                    writer.write_batch(batch)
        command = [program, str(path), "--vector", "vector", "--text", "key", "--host", host, "--port", str(port)]
        return child_process.run(command, remove=folder)
