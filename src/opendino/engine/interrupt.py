"""Ctrl-C and SIGTERM: once a run is under way finish the step, save, leave; before that leave at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from opendino.core.errors import UserError


class Interrupted(UserError):
    """The run was asked to stop and has saved its state (exit code 130)."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 130) -> None:
        super().__init__(message, hint, exit_code)


class Interrupt:
    """While entered, SIGINT and SIGTERM raise KeyboardInterrupt; when `patient`, the first one only sets `asked`.

    Attributes:
        patient: Whether there is a state to save first. A second Ctrl-C does not wait for it.
        asked: Whether the run should stop.
    """

    def __init__(self) -> None:
        self.finish_step = self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # the only thread that may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.finish_step or (self.asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.asked = True
