"""Messages to the user: to stderr, and to the run's log.txt once the run folder exists."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_file: Path | None = None
_muted = False
_said: set[str] = set()
_pending: list[str] = []  # messages from before the run folder exists


@functools.cache
def console() -> Any:
    """The Rich console on stderr that messages and progress bars share."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Context manager in which no message is printed or logged."""
    global _muted
    before, _muted = _muted, True
    try:
        yield
    finally:
        _muted = before


def say(text: str, style: str = "") -> None:
    """Print one line and append it to the log file; only rank 0 prints."""
    if _muted or os.environ.get("RANK", "0") != "0":
        return
    console().print(text, style=style or None, markup=False)
    _pending.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    _write()


def say_once(text: str) -> None:
    """The same, unless this line was already printed since the last run began: for messages about opened images."""
    if text not in _said and not _muted:
        _said.add(text)
        say(text)


def warn(text: str) -> None:
    """Print one line as a warning."""
    say(f"warning: {text}", style="yellow")


def write_to(path: Path | None) -> None:
    """Also append messages to this file from now on, first those since the last file was closed; None stops it."""
    global _file
    _file = path
    if path:
        _write()
    else:
        _pending.clear()
        _said.clear()


def _write() -> None:
    if _file is not None:
        with open(_file, "a", encoding="utf-8") as file:
            file.writelines(_pending)
        _pending.clear()
