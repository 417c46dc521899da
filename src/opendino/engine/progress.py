"""Progress of a run: a live bar on a terminal, elsewhere one line every 15 seconds."""

from __future__ import annotations

import time
from typing import Any

from opendino.core import log

_EVERY_SECONDS = 15.0


class Progress:
    """Shows the step, a line of metrics and the time left. Writes to stderr only.

    Args:
        total: Steps of the run.
        done: Steps already done.
        show: False on ranks that print nothing.
    """

    def __init__(self, total: int, done: int, show: bool = True) -> None:
        self._total, self._first, self._done = total, done, done
        self._start = self._last_printed = time.monotonic()
        self._bar: Any = None
        if show and log.console().is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=log.console(), refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=total, completed=done)
            self._bar.start()
        self._show = show

    def update(self, done: int, text: str) -> None:
        """Show progress after `done` steps with a line of metrics."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif self._show and (time.monotonic() - self._last_printed > _EVERY_SECONDS or done == self._total):
            self._last_printed = time.monotonic()
            log.say(f"step {done}/{self._total}  {text}  {self._time_left()} left")

    def close(self) -> None:
        """Stop the live bar and restore the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def _time_left(self) -> str:
        rate = (time.monotonic() - self._start) / max(1, self._done - self._first)
        seconds = round(rate * (self._total - self._done))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}h{minutes:02d}" if hours else f"{minutes}m{seconds % 60:02d}"
