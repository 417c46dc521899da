"""Progress of everything that takes more than two seconds: a bar on a terminal or in a notebook, elsewhere a line every
ten seconds.

Written to stderr only. Bars of nested loops are shown below each other.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, ClassVar, TypeVar

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
        self._done = done
        self._task: _TerminalBar | _NotebookBar | None = None
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
        rate = f"{self._rate(now):,.1f}/s"
        on_bar, text = text or f"{self._what}, {rate}", text or rate  # a line names what is counted before the number
        if self._task is None and now - self._start >= self._patience:
            self._open(on_bar)
        if self._task is not None:
            self._task.update(done, on_bar)
        elif self._show and (at_end or now - self._last_line > _LINE_SECONDS):
            self._last_line = now
            of = f"/{self._total}  {text}  {self._time_left()} left" if self._total else f"  {text}"
            log.say(f"{self._what} {done}{of}")

    def close(self) -> None:
        """Take the bar down; with patience 0 it stays, at its last value."""
        if self._task is not None:
            self._task.close(keep=not self._patience)
            self._task = None

    def _open(self, text: str) -> None:
        if self._show:
            self._task = _open_bar(self._total, self._done, text)

    def _rate(self, now: float) -> float:
        return (self._done - self._first) / max(1e-9, now - self._start)

    def seconds_left(self) -> float:
        """Time until the total, at the mean rate so far."""
        assert self._total is not None
        return (self._total - self._done) / max(1e-9, self._rate(time.monotonic()))

    def _time_left(self) -> str:
        seconds = round(self.seconds_left())
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
    """Show after two seconds that something without a countable progress runs, e.g. "writing ONNX"; only on rank 0."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    shown: list[_TerminalBar | _NotebookBar] = []

    def show() -> None:
        if bar := _open_bar(None, 0, what):
            shown.append(bar)
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
        for bar in shown:
            bar.close(keep=False)


def _open_bar(total: int | None, done: int, text: str) -> _TerminalBar | _NotebookBar | None:
    console = log.console()
    if console.is_jupyter:
        return _NotebookBar(total, done, text)
    return _TerminalBar(total, done, text) if console.is_terminal else None


class _NotebookBar:
    """A bar below a cell. Rich draws one only where ipywidgets is installed."""

    def __init__(self, total: int | None, done: int, text: str) -> None:
        from IPython.display import display  # there is one in every notebook

        self._total = total
        self._display: Any = display(self._drawn(done, text), display_id=True)

    def update(self, done: int, text: str) -> None:
        self._display.update(self._drawn(done, text))

    def close(self, keep: bool) -> None:
        if not keep:
            self._display.update({"text/plain": ""}, raw=True)

    def _drawn(self, done: int, text: str) -> Any:
        from IPython.display import HTML

        value = f'value="{done}" max="{self._total}"' if self._total else ""
        of = f"{done:,}/{self._total:,} " if self._total else f"{done:,} "
        return HTML(f"<progress {value}></progress> {of}{escape(text)}")


class _TerminalBar:
    """A bar on the terminal; all are of one display, because Rich draws only one display at a time."""

    _lock = threading.Lock()
    _display: ClassVar[Any] = None
    _open: ClassVar[set[int]] = set()

    def __init__(self, total: int | None, done: int, text: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with self._lock:
            if _TerminalBar._display is None:
                columns = (MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"), TimeRemainingColumn())
                _TerminalBar._display = Progress(*columns, console=log.console(), refresh_per_second=4)
                self._display.start()
            self._task = self._display.add_task(text, total=total, completed=done)
            self._open.add(self._task)

    def update(self, done: int, text: str) -> None:
        self._display.update(self._task, completed=done, description=text)

    def close(self, keep: bool) -> None:
        with self._lock:
            self._open.remove(self._task)
            if not keep:
                self._display.remove_task(self._task)
            if not self._open:
                self._display.stop()
                _TerminalBar._display = None
