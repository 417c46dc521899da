"""The command line: one verb a file, imported only when that verb runs.

The file of a verb is VERB_command.py. It has a docstring (its first line is the help text) and `run(args) -> Outcome`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from select import POLLERR, poll
from typing import Any, TextIO

from opendino.core import registry, slurm
from opendino.core.errors import UserError, to_user_error, unknown

_SUFFIX = "_command"
_ALIASES = {"show": "visualize"}


@dataclass(frozen=True)
class Outcome:
    """What a verb came to: `text` for people, `fields` for scripts."""

    text: str
    fields: dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted (state saved)."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # what is left would fail at the interpreter's exit, where nobody can catch it
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not gone:  # a pipe between processes of our own
            raise
        for stream in gone:  # e.g. `| head`, which has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 0


def _run(argv: list[str] | None) -> int:
    args = [*(sys.argv[1:] if argv is None else argv)]  # not list(): that is a verb here
    as_json = "--json" in args
    args = [arg for arg in args if arg != "--json"]
    slurm.adopt_slurm_environment(os.environ)  # first of all: only one process of a run speaks
    # Read when torch loads its OpenMP: threads that wait by spinning keep others from the cores they need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(_help())
            return 0
        if args[0] == "--version":
            print(version("opendino"))
            return 0
        verb = _ALIASES.get(args[0], args[0])
        if verb not in _verbs():
            raise unknown("verb", verb, _verbs())
        outcome: Outcome | None = importlib.import_module(_module(verb)).run(args[1:])
    except KeyboardInterrupt:
        return _failed(UserError("Interrupted before there was anything to save", exit_code=130), as_json)
    except Exception as error:
        known = to_user_error(error)
        if known is None:
            raise
        return _failed(known, as_json)
    if outcome is not None and _is_leader():
        print(json.dumps(outcome.fields) if as_json else outcome.text)
    return 0


def _has_no_reader(stream: TextIO) -> bool:
    try:
        asked = poll()
        asked.register(stream.fileno(), 0)  # of errors it tells in any case
        return any(event & POLLERR for _, event in asked.poll(0))
    except (OSError, ValueError):  # closed, or no file of the system's
        return False


def _verbs() -> list[str]:
    """The verbs, by their files."""
    files = registry.names("opendino.cli")
    return [name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)]


def _module(verb: str) -> str:
    return f"opendino.cli.{verb}{_SUFFIX}"


def _failed(error: UserError, as_json: bool) -> int:
    if _is_leader():
        if as_json:
            print(json.dumps({"error": {"message": error.message, "hint": error.hint}}))
        line = str(error).replace("\n", "\\n")  # a file name may hold anything; an error is one line
        print(f"opendino: {line}", file=sys.stderr)
    return error.exit_code


def _help() -> str:
    lines = [
        "opendino: a folder of unlabeled images in, a vision model out.",
        "",
        "usage: opendino VERB ... [--json]",
        "",
    ]
    lines += [f"  {verb:<11} {registry.summary('opendino.cli', verb + _SUFFIX)}" for verb in _verbs()]
    return "\n".join([*lines, "", "`opendino VERB --help` says more. Start with: opendino demo"])


def _is_leader() -> bool:
    return os.environ.get("RANK", "0") == "0"
