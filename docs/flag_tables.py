"""Writes src/opendino/cli/flag_tables.json from the commands themselves: python docs/flag_tables.py [--check]"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from typing import Any
from unittest import mock

from opendino.cli import flag_table, flags, verbs
from opendino.core import registry
from opendino.core.errors import UsageError

FOLDERS = {
    "eval": "opendino.evals",
    "experiment": "opendino.experiments",
    "visualize": "opendino.visualize",
    "export --to": "opendino.interop.formats",
}


class Described(Exception):
    """Raised where a command would parse its words; holds its table."""


def commands() -> Iterator[tuple[str, list[str]]]:
    """Verb and the words that choose one of its commands."""
    for verb in verbs():
        yield verb, []
    for words, package in FOLDERS.items():
        verb, *option = words.split()
        for name in registry.own_names(package):
            yield verb, [*option, name.replace("_", "-") if verb != "visualize" else name]


def table(verb: str, words: list[str]) -> dict[str, Any] | None:
    """What a command takes, and its help; None for a command without a Config."""

    def describe(
        kind: Any, args: list[str], prog: str, description: str, default: Any = None, full_help: str = "--help"
    ) -> None:
        raise Described(flags.describe(kind, prog, default, full_help))

    run, found = import_module(f"opendino.cli.{verb}_command").run, dict[str, Any]()
    try:
        with mock.patch.object(flags, "parse", describe):
            run(words)
    except UsageError:
        return None
    except Described as described:
        found = asdict(described.args[0])
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        run([*words, "--help"])
    found["help"] = [line.rstrip() for line in printed.getvalue().rstrip().splitlines()]
    if verb in flag_table.OF_A_RUN:  # `--views.all.NAME` stands for a flag of every group of views
        shared = {
            flag.replace(".global.", ".all."): value for flag, value in found["flags"].items() if ".global." in flag
        }
        found["flags"] |= shared
    if (verb, words) == ("export", []):
        found["flags"]["--to"] = asdict(flag_table.Flag({"type": "string"}, "", required=True))
    found["flags"] = {flag: [*value.values()] for flag, value in found["flags"].items()}
    return found


def text() -> str:
    """The whole file, one flag per line."""
    tables = {" ".join([verb, *words]).replace("_", "-"): table(verb, words) for verb, words in commands()}
    return written({name: found for name, found in tables.items() if found}) + "\n"


def written(value: Any, depth: int = 0) -> str:
    """JSON with one line per entry, down to the third level."""
    if depth == 3 or not value or not isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        rows, (start, end) = [f"{json.dumps(key)}: {written(part, depth + 1)}" for key, part in value.items()], "{}"
    else:
        rows, (start, end) = [written(part, depth + 1) for part in value], "[]"
    indent = "\n" + " " * (depth + 1)
    return start + indent + f",{indent}".join(rows) + indent[:-1] + end


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    if sys.argv[1:] != ["--check"]:
        flag_table.SHIPPED.write_text(text(), encoding="utf-8")
    elif flag_table.SHIPPED.read_text(encoding="utf-8") != text():
        sys.exit("src/opendino/cli/flag_tables.json is not what the commands take: run `make docs`")
