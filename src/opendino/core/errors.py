"""Errors with a message that tells the user what to do.

A `UserError` is a mistake that the user can fix: one line with what is wrong and the value, one with what to do next.
Mistakes in this code are assertions and show a traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

_RESUME = "then continue from the last checkpoint: opendino resume RUN"
_OTHER_PATH = "Choose a folder that you can write to; for a run: --out FOLDER"
_ADVICE = {
    errno.ENOSPC: ("The disk is full", f"Free some space, {_RESUME}"),
    errno.EDQUOT: ("Your disk quota is used up", f"Free some space, {_RESUME}"),
    errno.EFBIG: ("A file would exceed the size limit", f"Raise the limit (ulimit -f), {_RESUME}"),
    errno.EIO: ("Disk I/O error", f"Check the disk, {_RESUME}"),
    errno.EMFILE: ("Too many files are open", f"Raise the limit (ulimit -n) or use fewer --workers, {_RESUME}"),
    errno.EROFS: ("Cannot write", _OTHER_PATH),
    errno.EACCES: ("Not allowed", _OTHER_PATH),
    errno.EPERM: ("Not allowed", _OTHER_PATH),
}
"""errno → (message, hint)."""


class UserError(ValueError):
    """A mistake that the user can fix.

    Args:
        message: What is wrong, with the offending value; one line without a final period.
        hint: What to do next; one line, may be empty.
        exit_code: 1 for something that failed, 2 for wrong usage.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(f"{message}. {hint}" if hint else message)
        self.message, self.hint, self.exit_code = message, hint, exit_code

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, int]]:  # pickled by loader workers
        return type(self), (self.message, self.hint, self.exit_code)


class UsageError(UserError):
    """An invalid option or value on the command line or in a config file (exit code 2)."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 2) -> None:
        super().__init__(message, hint, exit_code)


class BadImage(Exception):
    """An image that cannot be read or decoded; `str(error)` is the reason, one line. Does not stop a run by itself."""


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message, or the name of its class if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def lost(error: BaseException) -> bool:
    """Whether an error is a lost connection to another rank, not a failure in this process."""
    names = {kind.__name__ for kind in type(error).__mro__}  # torch's classes, without importing torch
    return "DistError" in names or ("RuntimeError" in names and ("gloo" in str(error) or "Connection" in str(error)))


def to_user_error(error: BaseException) -> UserError | None:
    """Turn an error of the system or of torch into a `UserError` with a hint; None if it is not a user's mistake."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in _ADVICE:
        message, hint = _ADVICE[error.errno]
        return UserError(f"{message}: {error}", hint)
    if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
        hint = "Use a smaller --batch, or several micro-batches per step: --optim.grad-accum-steps 4"
        return UserError("The device is out of memory", hint)
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        hint = "Use a larger --batch, larger crops, or fewer micro-batches (--optim.grad-accum-steps)"
        return UserError("BatchNorm needs more than one value per channel, and a micro-batch has only one", hint)
    if lost(error):
        return UserError("Another process of this run exited", "Continue from the last checkpoint: opendino resume RUN")
    return None


def nearest(name: str, choices: Iterable[str]) -> str:
    """Hint for an unknown name: the closest `choices`, then all of them (only the closest if there are over 40)."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    lead = f"Did you mean {' or '.join(close)}? " if close else ""
    if len(choices) > 40 and close:
        return lead.strip()
    return f"{lead}Available: {', '.join(choices)}"


def unknown(what: str, name: object, choices: Iterable[str]) -> UsageError:
    """Error for a name that is not in `choices`: the name, the closest matches, the list."""
    return UsageError(f"Unknown {what} '{name}'", nearest(str(name), choices))
