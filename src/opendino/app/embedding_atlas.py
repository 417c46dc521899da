"""A 2-D map of a table's vectors in the browser: runs embedding-atlas on the Parquet file."""

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
    """Show a table until the program exits.

    Args:
        name: A .parquet or .lance table of `opendino embed`; a .lance table is copied into a temporary Parquet file.
        host, port: Address and port to listen on.

    Returns:
        The exit code of embedding-atlas.

    Raises:
        UserError: There is no such table, or embedding-atlas is not installed.
    """
    table = open_table(name)
    # first next to this Python: its environment need not be activated
    program = shutil.which(_PROGRAM, path=str(Path(sys.executable).parent)) or shutil.which(_PROGRAM)
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
