"""Spaces out what the page draws, so that watching a training takes little time from it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

SHARE = 0.02
"""Part of one core that all drawings of a kind may take, in all browsers together."""


class Pace:
    """How soon something may be drawn again: an expensive drawing waits longer for the next one."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        """Whether it may be drawn now."""
        return time.monotonic() >= self._next

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Context in which it is drawn; the processor time of this thread counts."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._next = max(self._next, time.monotonic()) + (time.thread_time() - began) / SHARE
