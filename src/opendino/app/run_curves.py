"""Reads the settings of runs and their metrics as they grow, and gives each run one color in all charts of the page."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opendino.config import read_tree
from opendino.core import metrics_log
from opendino.core.errors import UserError
from opendino.engine.verdict import EXAMINED
from opendino.visualize.drawing import panels, style

_TICK_BYTES = 2**25
"""Bytes read per run and update; a long run is complete after a few updates."""
_NAMES = [*dict.fromkeys([*(metric for panel in panels.PANELS for metric in panel.metrics), *EXAMINED])]
Columns = Mapping[str, metrics_log.Column]


def settings(run: Path) -> dict[str, Any]:
    """The settings of a run; they are read again only if the file has changed.

    Raises:
        UserError: They cannot be read.
        OSError: There are none.
    """
    return _settings(run, (run / "config.yaml").stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _settings(run: Path, changed_ns: int) -> dict[str, Any]:
    return read_tree(run / "config.yaml")


@dataclass
class _Read:
    course: metrics_log.Course
    color: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    columns: Columns | None = None
    changes: int = 0
    left: int = 0


@dataclass
class Reader:
    """Reads the metrics of runs incrementally, for all sessions. Each run keeps its color."""

    _read: dict[Path, _Read] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def columns(self, run: Path) -> Columns:
        """The metrics of a run so far, see `metrics_log.Course`.

        Raises:
            UserError: The run folder was deleted.
        """
        known = self._known(run)
        if not known.lock.acquire(blocking=known.columns is None):
            assert known.columns is not None
            return known.columns  # another session is reading this run: use what was read before
        try:
            known.left = known.course.read(_TICK_BYTES)
            if known.columns is None or known.changes != known.course.changes:
                known.columns, known.changes = known.course.columns(), known.course.changes
            return known.columns
        except OSError:
            with self._lock:
                self._read.pop(run, None)
            raise UserError(f"{run} was deleted", "Choose another run") from None
        finally:
            known.lock.release()

    def color(self, run: Path) -> str:
        """The color of a run, the same in all charts until the server stops."""
        return self._known(run).color

    def left(self, run: Path) -> int:
        """Number of bytes of a run that are not read yet."""
        return self._known(run).left

    def _known(self, run: Path) -> _Read:
        with self._lock:
            if run not in self._read:
                taken = {each.color for each in self._read.values()}
                free = [color for n in range(16) if (color := style.color(n)) not in taken]
                course = metrics_log.Course(run / "metrics.jsonl", _NAMES, others=True)
                self._read[run] = _Read(course, free[0] if free else style.color(len(self._read)))
            return self._read[run]
