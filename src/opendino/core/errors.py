"""Errors that a user can act on.

A user's mistake is a `UserError`: one line that says what was wrong, with the value, and what to do next.
Our own mistakes are assertions and show a traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

_GO_ON = "then: opendino resume RUN, which goes on from the last checkpoint"
_ELSEWHERE = "Give a place that you may write to; a run's is chosen by --out"
_ADVICE = {
    errno.ENOSPC: ("The disk is full", f"Make room, {_GO_ON}"),
    errno.EDQUOT: ("Your share of the disk is full", f"Make room, {_GO_ON}"),
    errno.EFBIG: ("A file would become larger than allowed", f"Raise the limit (ulimit -f), {_GO_ON}"),
    errno.EIO: ("The disk fails", f"Look after it, {_GO_ON}"),
    errno.EMFILE: ("Too many files are open", f"Raise the limit (ulimit -n) or use fewer --workers, {_GO_ON}"),
    errno.EROFS: ("Cannot write", _ELSEWHERE),
    errno.EACCES: ("Not allowed", _ELSEWHERE),
    errno.EPERM: ("Not allowed", _ELSEWHERE),
}
"""What the system refuses → what to say of it."""


class UserError(ValueError):
    """Something the user can put right.

    Args:
        message: What was wrong, with the offending value; one line, no final full stop needed.
        hint: What to do next; one line, may be empty.
        exit_code: 1 for something that failed, 2 for wrong usage.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(f"{message}. {hint}" if hint else message)
        self.message, self.hint, self.exit_code = message, hint, exit_code

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, int]]:  # comes back whole from a loader worker
        return type(self), (self.message, self.hint, self.exit_code)


class UsageError(UserError):
    """A wrong word on the command line or in a config file (exit code 2)."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 2) -> None:
        super().__init__(message, hint, exit_code)


class BadImage(Exception):
    """One image that cannot be used; `str(error)` is the reason, one line. Never ends a run by itself."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line: the first that is not empty, else the kind of error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone, rather than what is wrong in this one."""
    names = {kind.__name__ for kind in type(error).__mro__}  # torch's classes, without importing torch
    return "DistError" in names or ("RuntimeError" in names and ("gloo" in str(error) or "Connection" in str(error)))


def to_user_error(error: BaseException) -> UserError | None:
    """What of the errors of others a user can act on, in our words; None for a mistake of our own."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in _ADVICE:
        message, hint = _ADVICE[error.errno]
        return UserError(f"{message}: {error}", hint)
    if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
        hint = "Use a smaller --batch, or work it off in parts with --optim.grad-accum-steps 4"
        return UserError("The device has too little memory for a step", hint)
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        hint = "Use a larger --batch, larger crops, or fewer parts (--optim.grad-accum-steps)"
        return UserError("BatchNorm needs more than one value of a channel, and a step's crops give it one", hint)
    if lost(error):
        return UserError("Another process of this run is gone", "Go on with: opendino resume RUN")
    return None


def nearest(name: str, choices: Iterable[str]) -> str:
    """The hint for an unknown name: the nearest of `choices`, then all of them (or the nearest few)."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    lead = f"Did you mean {' or '.join(close)}? " if close else ""
    if len(choices) > 40 and close:
        return lead.strip()
    return f"{lead}Available: {', '.join(choices)}"


def unknown(what: str, name: object, choices: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list: the value, the nearest, the list."""
    return UsageError(f"Unknown {what} '{name}'", nearest(str(name), choices))
