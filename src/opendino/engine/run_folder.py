"""Lock on a run's folder: created and locked before the run starts, deleted again if the run cannot start."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from opendino.core.errors import UserError

STARTUP_FILES = frozenset({".lock", "cache.bin", ".cache.bin.partial", ".config.yaml.partial"})
"""Files that a run killed before it wrote its settings may leave: a folder with only these counts as empty."""


class RunDirLock:
    """Context manager that creates a run's folder and locks it; deletes it if the run fails before its first step.

    The lock is held on the file `.lock` in the folder. The operating system releases it when the process ends, however
    it ends. (On file systems without locks there is none.)

    Args:
        folder: The run's folder. A folder that already holds a run is never deleted.
        leader: False on ranks that write nothing.
        resuming: Whether a run in this folder continues, instead of a new one starting.

    Raises:
        UserError: On entering, if another run has created the folder in the meantime or is training in it.
    """

    def __init__(self, folder: Path, leader: bool, resuming: bool = False) -> None:
        self._folder, self._leader, self._kept = folder, leader, not leader or resuming
        self._created = [path for path in (folder, *folder.parents) if not path.exists()]
        self._lock = -1

    def keep(self) -> None:
        """Do not delete the folder from now on."""
        self._kept = True

    def __enter__(self) -> RunDirLock:
        if self._leader:
            starts_new, self._kept = not self._kept, True  # never delete another run's folder
            try:
                self._folder.mkdir(parents=True, exist_ok=not self._created)
            except FileExistsError:
                raise self._in_use("was just created by another run") from None
            # lockf locks belong to one process and are not inherited: loader workers, which may outlive a killed run by
            # seconds, do not keep the folder locked.
            self._lock = os.open(self._folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise self._in_use("is in use by another run") from None
            except OSError:  # a file system without locks
                pass
            if starts_new and (self._folder / "config.yaml").exists():
                raise self._in_use("was just used by another run")  # it started and ended since we checked
            self._kept = not starts_new
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self._kept:
            self._delete()
        self._release()

    def _in_use(self, how: str) -> UserError:
        self._release()
        return UserError(f"'{self._folder}' {how}", "Choose another --out, or wait until that run has ended")

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _delete(self) -> None:
        for path in self._folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self._created:  # parents too, unless something else is in them
            try:
                path.rmdir()
            except OSError:  # not empty
                break
