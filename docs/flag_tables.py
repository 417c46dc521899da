"""Writes the tables of flags in src/opendino/cli from the commands themselves: python docs/flag_tables.py [--check]"""

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

from opendino import config
from opendino.cli import flag_table, flags, verbs
from opendino.core import registry
from opendino.core.errors import UsageError

RECIPES = "opendino.recipes"
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


def of_methods() -> dict[str, Any]:
    """The flags and the groups of views of each method, and the method of each recipe."""
    methods: dict[str, Any] = {}
    for name in registry.own_names(registry.METHODS):
        module = registry.load(registry.METHODS, name)
        own = flags.describe(module.Config, "").flags
        found = {flag.replace("--", "--method.", 1): [*asdict(value).values()] for flag, value in own.items()}
        methods[name] = {"groups": [*module.VIEWS], "flags": found}
    recipes = {name: registry.load(RECIPES, name).config("") for name in registry.own_names(RECIPES)}
    return {"methods": methods, "recipes": {name: config.method_name(made) for name, made in recipes.items()}}


def full_help() -> str:
    """What `opendino train --help-all` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        import_module("opendino.cli.train_command").run(["--help-all"])
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().rstrip().splitlines())


def tables() -> str:
    """The flags of every command, one per line."""
    every = {" ".join([verb, *words]).replace("_", "-"): table(verb, words) for verb, words in commands()}
    return written({name: found for name, found in every.items() if found}) + "\n"


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
    files = {
        flag_table.SHIPPED: tables(),
        flag_table.METHODS: written(of_methods(), depth=-1) + "\n",
        flag_table.FULL_HELP: full_help(),
    }
    for path, text in files.items():
        if sys.argv[1:] != ["--check"]:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            sys.exit(f"src/opendino/cli/{path.name} is not what the commands take: run `make docs`")
