"""Errors that a user can act on.

A user's mistake is a `UserError`: one line that says what was wrong, with the value, and what to do next.
Our own mistakes are assertions and show a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def nearest(name: str, choices: Iterable[str]) -> str:
    """The hint for an unknown name: the nearest of `choices`, then all of them (or the nearest few)."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    lead = f"Did you mean {' or '.join(close)}? " if close else ""
    if len(choices) > 40 and close:
        return lead.strip()
    return f"{lead}Available: {', '.join(choices)}"


def unknown(what: str, name: str, choices: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list: the value, the nearest, the list."""
    return UsageError(f"Unknown {what} '{name}'", nearest(name, choices))
