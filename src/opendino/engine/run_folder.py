"""A run's folder: claimed before the run can start, given back if it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

from opendino.core.errors import UserError


class Claim:
    """Makes a run's folder where there is none; takes it away again if the run fails before its first step.

    Args:
        folder: The run's folder. One that holds a run already (`config.yaml`) is never touched.
        leader: False on ranks that write nothing.

    Raises:
        UserError: On entering, where another run made the folder in the meantime.
    """

    def __init__(self, folder: Path, leader: bool) -> None:
        self._folder, self._kept = folder, not leader or (folder / "config.yaml").exists()
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]

    def keep(self) -> None:
        """From now on the folder stays."""
        self._kept = True

    def __enter__(self) -> Claim:
        if not self._kept:
            try:
                self._folder.mkdir(parents=True, exist_ok=not self._made)
            except FileExistsError:
                self._kept = True
                raise UserError(f"'{self._folder}' was just made by another run", "Choose another --out") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self._kept:
            return
        for path in self._folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self._made:  # parents too, as long as nobody else has put something there
            try:
                path.rmdir()
            except OSError:
                break
