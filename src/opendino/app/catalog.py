"""What the page may open: the runs, models and tables that were named, and nothing beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from opendino.core.errors import UserError
from opendino.data.source_files import is_hidden
from opendino.data.sources import archive
from opendino.models.load import DESCRIPTION

_TABLES = (".parquet", ".lance")


class Catalog:
    """Runs, models and tables by name.

    Args:
        names: Run folders, model folders, tables (.parquet, .lance), timm:NAME, or folders that hold such; the last are
            looked through again each time, so that new runs turn up. Folders and archives of images too: those of a
            table are shown only where they were named.

    Raises:
        UserError: One of them is none of these.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._timm = [name for name in names if name.startswith("timm:")]
        self._paths = [Path(name).expanduser() for name in names if not name.startswith("timm:")]
        for path in self._paths:
            if not path.exists():
                raise UserError(f"There is no '{path}'", "Name runs, models, tables, or a folder that holds some")
            if not path.is_dir() and path.suffix not in _TABLES and not archive.matches(str(path)):
                raise UserError(
                    f"'{path}' is no run, model, table or archive of images",
                    "Tables end in .parquet or .lance, archives in .tar or .zip",
                )

    def runs(self) -> dict[str, Path]:
        """Name → folder, the newest first."""
        found = [path for path in self._all() if is_run(path)]
        found.sort(key=lambda path: (path / "metrics.jsonl").stat().st_mtime, reverse=True)
        return {str(path): path for path in found}

    def models(self) -> dict[str, str]:
        """Name → what `models.load.load` takes."""
        folders = [path for path in self._all() if (path / DESCRIPTION).is_file()]
        return {name: name for name in [*(str(path) for path in folders), *self._timm]}

    def tables(self) -> dict[str, str]:
        """Name → what `search.open.open_table` takes."""
        return {str(path): str(path) for path in self._all() if path.suffix in _TABLES}

    def images(self, data: str) -> str | None:
        """Where the images of a table are, if that is within what was named; None if not, whatever the table says."""
        path = Path(data).expanduser().resolve()
        within = any(path.is_relative_to(place.resolve()) for place in self._paths if place.suffix not in _TABLES)
        # no list of paths: it could name files anywhere
        return str(path) if within and (path.is_dir() or archive.matches(str(path))) else None

    def _all(self) -> Iterator[Path]:
        for path in self._paths:
            yield path
            if path.is_dir() and path.suffix not in _TABLES and not is_run(path) and not (path / DESCRIPTION).is_file():
                root = path.resolve()
                with os.scandir(path) as entries:  # may be a folder of very many images
                    inside = [each.name for each in entries if each.is_dir() or each.name.endswith(_TABLES)]
                children = (path / name for name in sorted(inside) if not is_hidden(name))
                yield from (child for child in children if child.resolve().is_relative_to(root))


def is_run(path: Path) -> bool:
    """Whether a folder is a run that has begun."""
    return (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file()
