"""Progress of everything that takes more than two seconds: a bar on a terminal, elsewhere a line every ten seconds.

Written to stderr only. Bars of nested loops are shown below each other.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from opendino.core import log

T = TypeVar("T")

_PATIENCE_SECONDS = 2.0
_LINE_SECONDS = 10.0
_REFRESH_SECONDS = 0.25


class Progress:
    """Shows how much is done, the rate and the time left.

    Args:
        what: What is counted, e.g. "images".
        total: How many there are; None if that is not known.
        done: How many were done before.
        patience: Seconds before anything is shown; 0 also shows the end.
    """

    def __init__(self, what: str, total: int | None, done: int = 0, patience: float = _PATIENCE_SECONDS) -> None:
        self._what, self._total, self._first, self._patience = what, total, done, patience
        self._start = self._last_line = self._last_shown = time.monotonic()
        self._done, self._task = done, None
        self._show = os.environ.get("RANK", "0") == "0"
        if not patience:
            self._open("starting")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, done: int, text: str = "") -> None:
        """Say how many are done by now, counted from the very first; `text` is shown instead of the rate."""
        self._done, now = done, time.monotonic()
        at_end = done == self._total and not self._patience
        if now - self._last_shown < _REFRESH_SECONDS and self._patience:
            return
        self._last_shown = now
        text = text or f"{self._what}, {self._rate(now):,.1f}/s"
        if self._task is None and now - self._start >= self._patience:
            self._open(text)
        if self._task is not None:
            _bars.update(self._task, done, text)
        elif self._show and (at_end or now - self._last_line > _LINE_SECONDS):
            self._last_line = now
            of = f"/{self._total}  {text}  {self._time_left(now)} left" if self._total else f"  {text}"
            log.say(f"{self._what} {done}{of}")

    def close(self) -> None:
        """Take the bar down; with patience 0 it stays, at its last value."""
        if self._task is not None:
            _bars.remove(self._task, keep=not self._patience)
            self._task = None

    def _open(self, text: str) -> None:
        if self._show and log.console().is_terminal:
            self._task = _bars.add(self._total, self._done, text)

    def _rate(self, now: float) -> float:
        return (self._done - self._first) / max(1e-9, now - self._start)

    def _time_left(self, now: float) -> str:
        assert self._total is not None
        seconds = round((self._total - self._done) / max(1e-9, self._rate(now)))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}h{minutes:02d}" if hours else f"{minutes}m{seconds % 60:02d}"


def track(items: Iterable[T], what: str, total: int | None = None, step: int = 1) -> Iterator[T]:
    """The items, with their progress.

    Args:
        items: Anything to loop over.
        what: What is counted, e.g. "images".
        total: How many there are; None for the length of `items`, if it has one.
        step: How many one item counts.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items) * step  # pyright: ignore[reportArgumentType]
    with Progress(what, total) as shown:
        for number, item in enumerate(items, 1):
            yield item
            shown.update(number * step if total is None else min(total, number * step))


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show after two seconds that something without a countable progress runs, e.g. "writing ONNX"."""
    shown: list[int] = []

    def show() -> None:
        if log.console().is_terminal:
            shown.append(_bars.add(None, 0, what))
        else:
            log.say(f"{what} ...")

    timer = threading.Timer(_PATIENCE_SECONDS, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for task in shown:
            _bars.remove(task, keep=False)


class _Bars:
    """The bars on the terminal: Rich draws several only if they are of one display."""

    def __init__(self) -> None:
        self._lock, self._display, self._tasks = threading.Lock(), None, set[int]()

    def add(self, total: int | None, done: int, text: str) -> int:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with self._lock:
            if self._display is None:
                columns = (MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"), TimeRemainingColumn())
                self._display = Progress(*columns, console=log.console(), refresh_per_second=4)
                self._display.start()
            task = self._display.add_task(text, total=total, completed=done)
            self._tasks.add(task)
            return task

    def update(self, task: int, done: int, text: str) -> None:
        display: Any = self._display
        display.update(task, completed=done, description=text)

    def remove(self, task: int, keep: bool) -> None:
        with self._lock:
            display: Any = self._display
            self._tasks.remove(task)
            if not keep:
                display.remove_task(task)
            if not self._tasks:
                display.stop()
                self._display = None


_bars = _Bars()
