"""Ctrl-C and SIGTERM: during training finish the step, save and exit; before that exit at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from opendino.core.errors import UserError


class Interrupted(UserError, SystemExit):
    """The run was interrupted and has saved its state (exit code 130).

    A script that does not catch it ends with the message, without a traceback.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = 130) -> None:
        super().__init__(message, hint, exit_code)
        self.code = str(self)  # Python prints the code of a SystemExit if it is text


class Interrupt:
    """Context manager for SIGINT and SIGTERM: raise KeyboardInterrupt, or with `finish_step` only set `asked` first.

    Attributes:
        finish_step: Set to True once there is a state to save. A second Ctrl-C raises KeyboardInterrupt anyway.
        asked: Whether a signal has arrived and the run should stop.
    """

    def __init__(self) -> None:
        self.finish_step = self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python lets only this thread set handlers
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
