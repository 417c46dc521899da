"""What a run says to people: to stderr, and into the run's log.txt once it has a folder."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

_file: Path | None = None
_earlier: list[str] = []  # said before the run had a folder


@functools.cache
def console() -> Any:
    """The terminal (stderr) that every message and progress line shares."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """One line to people; of several processes that train together only the first speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    console().print(text, style=style or None, markup=False)
    _earlier.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    _write()


def warn(text: str) -> None:
    """One line that asks for attention."""
    say(f"warning: {text}", style="yellow")


def write_to(path: Path | None) -> None:
    """From now on also append to this file, with what was said since the last one; None stops."""
    global _file
    _file = path
    _write() if path else _earlier.clear()


def _write() -> None:
    if _file is not None:
        with open(_file, "a", encoding="utf-8") as file:
            file.writelines(_earlier)
        _earlier.clear()
