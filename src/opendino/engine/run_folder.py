"""A run's folder: claimed before the run can start, its own while it trains, given back if it cannot start."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from opendino.core.errors import UserError

STARTUP_FILES = frozenset({".lock", "cache.u8", ".cache.u8.partial", ".config.yaml.partial"})
"""All that is there of a run killed before it had settings: a folder with no more than that is as good as empty."""


class RunDirLock:
    """Makes a run's folder where there is none; takes it away again if the run fails before its first step.

    While entered a lock is held on the file `.lock` in it, which the system lets go of when the process ends in
    whatever way. (File systems without locks go without.)

    Args:
        folder: The run's folder. One that held a run already is never taken away.
        leader: False on ranks that write nothing.
        again: Whether a run goes on there, rather than begins.

    Raises:
        UserError: On entering, where another run made the folder in the meantime, or is under way in it.
    """

    def __init__(self, folder: Path, leader: bool, resuming: bool = False) -> None:
        self._folder, self._leader, self._kept = folder, leader, not leader or resuming
        self._created = [path for path in (folder, *folder.parents) if not path.exists()]
        self._lock = -1

    def keep(self) -> None:
        """From now on the folder stays."""
        self._kept = True

    def __enter__(self) -> RunDirLock:
        if self._leader:
            starts_new, self._kept = not self._kept, True  # others' folders stay
            try:
                self._folder.mkdir(parents=True, exist_ok=not self._created)
            except FileExistsError:
                raise self._in_use("was just made by another run") from None
            # Locks of this kind are a process's own: loader workers, which outlive a killed run for seconds, have none.
            self._lock = os.open(self._folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise self._in_use("is in use by a run under way") from None
            except OSError:
                pass
            if starts_new and (self._folder / "config.yaml").exists():
                raise self._in_use("was just used by another run")
            self._kept = not starts_new
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self._kept:
            self._delete()
        self._release()

    def _in_use(self, how: str) -> UserError:
        self._release()
        return UserError(f"'{self._folder}' {how}", "Choose another --out, or wait for its end")

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _delete(self) -> None:
        for path in self._folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self._created:  # parents too, as long as nobody else has put something there
            try:
                path.rmdir()
            except OSError:
                break
