"""The command line: one file per verb, imported only when that verb runs.

The file of a verb is VERB_command.py. It has a docstring (its first line is the help text) and `run(args) -> Outcome`.
`run` returns None if the verb has already printed everything, e.g. its help.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from select import POLLERR, poll
from typing import Any, TextIO

from opendino.cli import flag_table, own_parts
from opendino.core import log, registry, slurm
from opendino.core.errors import UserError, to_user_error, unknown

_SUFFIX = "_command"
_ALIASES = {"show": "visualize"}
_LONG = ("app", "continue", "demo", "finetune", "resume", "train")
EXTRAS = {
    "app": "app",
    "explore": "explore",
    "export": "export to other libraries, push",
    "finetune": "finetune with low-rank adapters",
    "medical": "DICOM and NIfTI images",
    "remote": "images at s3://, gs://, abfs://",
    "science": "compressed TIFF images",
    "search": "tables in .parquet and .lance: embed, search, duplicates, select, outliers, drift",
    "serve": "serve",
    "sklearn": "opendino.sklearn.Embedder, for pipelines of scikit-learn",
    "streams": "hf:NAME as images",
    "umap": "map --projection umap",
    "video": "visualize video, and video files elsewhere",
}
"""Extra of the package → verbs and images that need it."""


@dataclass(frozen=True)
class Outcome:
    """Result of a verb: `text` is printed by default, `fields` as one JSON document with --json."""

    text: str
    fields: dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after `opendino`; None for those of this process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted (state saved).
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # otherwise a broken pipe fails at the interpreter's exit, where it cannot be caught
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not closed:  # the broken pipe is one between our own processes: a real error
            raise
        for stream in closed:  # e.g. `| head` has exited: discard the rest of the output
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 0


def _run(argv: list[str] | None) -> int:
    args = [*(sys.argv[1:] if argv is None else argv)]
    as_json = "--json" in args
    args = [arg for arg in args if arg != "--json"]
    slurm.adopt_slurm_environment(os.environ)  # first, because it sets RANK: only rank 0 prints
    # torch's OpenMP reads this when it is loaded. Threads that busy-wait would keep other processes off the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(_help())
            return 0
        if args[0] == "--version":
            print(version("opendino"))
            return 0
        verb = _ALIASES.get(args[0], args[0])
        if verb not in verbs():
            raise unknown("verb", verb, verbs())
        args, files = own_parts.take(args)
        with _saying_that_torch_is_imported(verb):
            own_parts.add(files)
        if (text := flag_table.shipped_help(verb, args[1:])) is not None:
            print(text)
            return 0
        with _saying_that_torch_is_imported(verb):
            outcome: Outcome | None = importlib.import_module(_module(verb)).run(args[1:])
    except KeyboardInterrupt:
        return _failed(UserError("Interrupted before there was anything to save", exit_code=130), as_json)
    except Exception as error:
        known = to_user_error(error)
        if known is None:
            raise
        return _failed(known, as_json)
    if outcome is not None and _is_rank_zero():
        print(json.dumps(outcome.fields) if as_json else outcome.text)
    return 0


@contextlib.contextmanager
def _saying_that_torch_is_imported(verb: str) -> Iterator[None]:
    """Say at the first import of torch why nothing happens for some seconds: in a terminal; of long verbs anywhere."""

    class Finder:  # asked for every module before it is imported; finds none
        said = False

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "torch" and not self.said:
                self.said = True
                log.say(f"opendino {verb}: importing PyTorch ...")

    finder = Finder()
    if "torch" not in sys.modules and (verb in _LONG or sys.stderr.isatty()):
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:  # not earlier: a list that is being searched must not change
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


def _has_no_reader(stream: TextIO) -> bool:
    """Whether the reading end of a stream's pipe is closed."""
    try:
        poller = poll()
        poller.register(stream.fileno(), 0)  # errors are always reported, so no event needs to be named
        return any(event & POLLERR for _, event in poller.poll(0))
    except (OSError, ValueError):  # the stream is closed, or has no file descriptor
        return False


def verbs() -> list[str]:
    """Names of the verbs, from the files of this package."""
    files = registry.names("opendino.cli")
    return [name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)]


def _module(verb: str) -> str:
    return f"opendino.cli.{verb}{_SUFFIX}"


def _failed(error: UserError, as_json: bool) -> int:
    if _is_rank_zero():
        if as_json:
            print(json.dumps({"error": {"message": error.message, "hint": error.hint}}))
        line = str(error).replace("\n", "\\n")  # a file name may contain a line break; an error is one line
        print(f"opendino: {line}", file=sys.stderr)
    return error.exit_code


def _help() -> str:
    lines = [
        "opendino: train a vision model on a folder of unlabeled images.",
        "",
        "usage: opendino VERB ... [--json] [--import FILE.py]",
        "",
    ]
    lines += [f"  {verb:<11} {registry.summary('opendino.cli', verb + _SUFFIX)}" for verb in verbs()]
    lines += ["", "Some need an extra, e.g. pip install 'opendino[app]':", ""]
    lines += [f"  {name:<11} {what}" for name, what in EXTRAS.items()]
    lines += ["", "--import FILE.py runs a file of yours, for the networks, method and augmentation that it defines."]
    return "\n".join([*lines, "", "`opendino VERB --help` shows the options of a verb. Start with: opendino demo"])


def _is_rank_zero() -> bool:
    return os.environ.get("RANK", "0") == "0"
