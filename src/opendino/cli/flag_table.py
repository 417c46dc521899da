"""The flags of a command as plain data, and the check of a command line against them.

A table is made from a Config (`cli/flags.py`). Those of our own commands are also shipped, in flag_tables.json, because
importing a Config may import torch, which takes seconds: help and mistakes are answered from the shipped tables. `make
docs` writes them; a test compares them with the Configs.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from opendino.core import registry
from opendino.core.errors import UsageError, nearest, unknown
from opendino.core.ranges import OutOfRange, shown

SHIPPED = Path(__file__).with_name("flag_tables.json")
METHODS = Path(__file__).with_name("method_flags.json")
FULL_HELP = Path(__file__).with_name("train_help.txt")
_RECIPES = "opendino.recipes"
_OF_A_FOLDER = ("eval", "experiment", "visualize")  # their first word names a command of its own
OF_A_RUN = ("demo", "train")
_ALSO_OF_A_RUN = "visualize crops"  # takes the flags of `train` too
_MISSING = {
    "DATA": ("No images were named", "Give a folder of images, e.g. ~/photos"),
    "IMAGE": ("No image was named", "Give three: opendino search MODEL TABLE IMAGE"),
    "RUN": ("No run was named", "Give a run folder, e.g. runs/photos"),
    "RUN|DATA": ("No run and no images were named", "Give a run folder, or a folder of images, e.g. ~/photos"),
    "TABLE": ("No table was named", "Give a table that opendino embed has written"),
    "MODEL": (
        "No model was named",
        "Give a run folder, an imported or exported model folder, timm:NAME, or hf:USER/NAME",
    ),
}


@dataclass(frozen=True)
class Flag:
    """What one flag takes.

    Attributes:
        schema: JSON Schema of its value; empty if it takes several values, which only the parser can tell apart.
        advice: What to write instead of a wrong value.
        required: Whether the command needs it.
    """

    schema: dict[str, Any]
    advice: str
    required: bool = False

    @property
    def takes_boolean(self) -> bool:
        """Whether its value may be True or False."""
        return any(part.get("type") == "boolean" for part in self.schema.get("anyOf", [self.schema]))


@dataclass(frozen=True)
class Table:
    """What a command takes.

    Attributes:
        prog: "opendino VERB".
        words: Names of the words that the command needs, e.g. ["MODEL", "DATA"].
        most_words: How many words it takes at most; None for any number.
        flags: "--name" → what it takes.
        full_help: The flag that prints the help of every option; errors refer to it.
        help: What --help prints.
    """

    prog: str
    words: list[str]
    most_words: int | None
    flags: dict[str, Flag]
    full_help: str = "--help"
    help: list[str] = field(default_factory=list)


def shipped_help(verb: str, args: Sequence[str]) -> str | None:
    """Check the words of a command of ours without importing it.

    Args:
        verb: The first word after `opendino`.
        args: The words after it.

    Returns:
        The help, if `args` ask for it; None if the command has to run, or to judge the words itself.

    Raises:
        UsageError: A word that the command does not take.
    """
    name, args = _command(verb, list(args))
    table = _shipped().get(name)
    if verb in OF_A_RUN:
        assert table is not None
        table, args, chosen = _of_a_run(table, args)
        if table is None or (chosen and {"-h", "--help", table.full_help} & set(args)):
            return None  # a plug-in may add flags; the help shows the defaults that recipe or method set
        if verb == "train" and table.full_help in args:
            return FULL_HELP.read_text(encoding="utf-8").rstrip()
    if table is None and name.startswith("export --to"):
        prefix = "export --to "
        raise unknown(
            "--to", name.removeprefix(prefix), [each.removeprefix(prefix) for each in _shipped() if prefix in each]
        )
    if table is None:
        return None
    if {"-h", "--help"} & set(args):
        return "\n".join(table.help)
    if table.full_help not in args and name != _ALSO_OF_A_RUN:
        check(table, args)
    return None


def check(table: Table, args: Sequence[str]) -> None:
    """Check the words of a command line, as far as that is possible without its Config.

    Raises:
        UsageError: An unknown flag, a wrong value, or a word too few or too many; one line.
    """
    see_help = f"See {table.prog} {table.full_help}"
    given: set[str] = set()
    words: list[str] = []
    several = False
    rest = list(reversed(args))
    while rest:
        name, equals, value = rest.pop().partition("=")
        if not name.startswith("--"):
            words.append(name + equals + value)
            several = several or name.startswith("-")
            continue
        flag = table.flags.get(name.replace("_", "-"))
        if flag is None:
            raise UsageError(f"Unknown option '{name}'", nearest(name, table.flags))
        given.add(name.replace("_", "-"))
        if not flag.schema:
            several = True  # the words after it may be its values
            continue
        switch = flag.schema.get("type") == "boolean"
        if not equals and switch and (not rest or not is_boolean(rest[-1])):
            continue  # a switch without a value is True
        if not equals:
            if not rest or rest[-1].startswith("--"):
                raise UsageError(f"{name} lacks a value", see_help)
            value = rest.pop()
        if not _fits(value, flag.schema):
            raise OutOfRange(name, _number(value), flag.advice)
    if not several:
        _check_words(table, words, see_help)
    for name, flag in table.flags.items():
        if flag.required and name not in given:
            raise UsageError(f"{table.prog} lacks {name}", see_help)


def _check_words(table: Table, words: list[str], see_help: str) -> None:
    if len(words) < len(table.words):
        name = table.words[len(words)]
        raise UsageError(*_MISSING.get(name, (f"{table.prog} lacks {name}", see_help)))
    if table.most_words is not None and len(words) > table.most_words:
        raise UsageError(f"Unexpected argument {shown(words[table.most_words])}", see_help)


def _command(verb: str, args: list[str]) -> tuple[str, list[str]]:
    """Name of the table, and the words that it describes: for `eval knn MODEL` "eval knn" and ["MODEL"]."""
    if verb in _OF_A_FOLDER and args:
        return f"{verb} {args[0].replace('_', '-')}", args[1:]
    if verb == "export":
        for place, arg in enumerate(args):
            flag, equals, to = arg.partition("=")
            if flag == "--to":
                to = to if equals else "".join(args[place + 1 : place + 2])
                return f"export --to {to.replace('_', '-')}", args[:place] + args[place + 1 + (not equals) :]
    return verb, args


def _of_a_run(table: Table, args: list[str]) -> tuple[Table | None, list[str], bool]:
    """The flags of `opendino train` or `demo` with the method that the words name.

    Returns:
        The table, None if it is not known (plug-ins, a --config without a --method); the words without --recipe,
        --config and --method; whether there was one of them.

    Raises:
        UsageError: A recipe or method of an unknown name.
    """
    rest, chosen = take(args, "recipe", "config", "method")
    for flag, package in (("recipe", _RECIPES), ("method", registry.METHODS)):
        if (name := chosen[flag]) is not None and name not in registry.names(package):
            raise unknown(flag, name, registry.names(package))
    if any(registry.names(package) != registry.own_names(package) for package in registry.GROUPS):
        return None, rest, True
    if chosen["config"] and not chosen["method"]:
        return None, rest, True
    if not any(chosen.values()):
        return table, rest, False
    known = json.loads(METHODS.read_text(encoding="utf-8"))
    of_method = known["methods"][chosen["method"] or known["recipes"][chosen["recipe"]]]
    groups = tuple(f"--views.{group}." for group in (*of_method["groups"], "all"))
    flags = {flag: it for flag, it in table.flags.items() if not flag.startswith(("--method.", "--views."))}
    flags |= {flag: it for flag, it in table.flags.items() if flag.startswith(groups)}
    flags |= {flag: Flag(*values) for flag, values in of_method["flags"].items()}
    return replace(table, flags=flags, words=[] if chosen["config"] else table.words), rest, True


def take(args: list[str], *names: str) -> tuple[list[str], dict[str, str | None]]:
    """Remove the flags `--name VALUE` and `--name=VALUE` from the arguments, to read them before the others.

    Args:
        args: The words after the verb.
        names: Flags, without `--`, that decide which other flags exist.

    Returns:
        The remaining arguments, and the value of each name (None if not given; the last one if given twice).

    Raises:
        UsageError: A flag has no value.
    """
    rest, found = [], dict.fromkeys(names)
    words = iter(args)
    for arg in words:
        flag, equals, value = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and flag in names:
            found[flag] = value if equals else next(words, None)
            if not found[flag] or str(found[flag]).startswith("--"):
                raise UsageError(f"--{flag} lacks its value", f"Write --{flag} NAME")
        else:
            rest.append(arg)
    return rest, found


def is_boolean(word: str) -> bool:
    """Whether a word is True or False, in any case."""
    return word.lower() in ("true", "false")


def _fits(word: str, schema: dict[str, Any]) -> bool:
    """Whether a word is a value that a JSON Schema allows: the part of JSON Schema that msgspec writes."""
    if "anyOf" in schema:
        return any(_fits(word, part) for part in schema["anyOf"])
    if "enum" in schema:
        return word in map(str, schema["enum"])
    match schema.get("type"):
        case "null":
            return word == "None"
        case "boolean":
            return is_boolean(word)
        case "string":
            return "\0" not in word and re.search(schema.get("pattern", ""), word) is not None
        case "integer" | "number" as kind:
            value = _number(word)
            return (
                isinstance(value, (int,) if kind == "integer" else (int, float))
                and schema.get("minimum", value) <= value <= schema.get("maximum", value)
                and not value <= schema.get("exclusiveMinimum", float("-inf"))
                and not value >= schema.get("exclusiveMaximum", float("inf"))
            )
        case _:
            return True


def _number(word: str) -> int | float | str:
    """A word as the number that it is, or as it is."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            if word.lstrip("+-").isdigit():  # more digits than Python reads
                return word
    return word


@functools.cache
def _shipped() -> dict[str, Table]:
    tables = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return {
        name: Table(**table | {"flags": {flag: Flag(*values) for flag, values in table["flags"].items()}})
        for name, table in tables.items()
    }
