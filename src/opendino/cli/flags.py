"""Command-line flags from a Config dataclass. tyro parses them; each of its errors becomes one line."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import msgspec
import tyro
from tyro import _errors  # private, but documented; no public part of tyro tells a mistake otherwise than as drawn text

from opendino.cli import flag_table
from opendino.cli.flag_table import Flag, Table
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import OutOfRange, advice, shown

T = TypeVar("T")


def parse(
    kind: type[T],
    args: list[str],
    prog: str,
    description: str,
    default: T | None = None,
    full_help: str = "--help",
) -> T:
    """Parse a command line into a Config.

    Args:
        kind: A dataclass whose fields are flags or Positional.
        args: The words after the verb.
        prog: "opendino VERB", for the help.
        description: First line of the help.
        default: Values for the flags that are not given; None for the defaults of the dataclass.
        full_help: The flag that prints the help of every option; errors refer to it.

    Raises:
        UsageError: An unknown flag or value, in one line.
    """
    table = describe(kind, prog, default, full_help)
    wants_help = bool({"-h", "--help", full_help} & set(args))
    if not wants_help:
        flag_table.check(table, args)
    args = ["--help"] if wants_help else with_booleans(args, table)
    options: dict[str, Any] = {} if default is None else {"default": default}

    def refuse(event: _errors.ParseErrorEvent) -> None:
        raise _one_line(event, args, f"See {prog} {full_help}")

    with _errors.on_parse_error(refuse):
        return tyro.cli(
            kind, prog=prog, description=description, args=args, config=(tyro.conf.FlagConversionOff,), **options
        )


def with_booleans(args: list[str], table: Table) -> list[str]:
    """Write true and false as tyro reads them, and add True after a boolean flag without a value.

    Args:
        args: The words after the verb.
        table: The flags; others are left as they are.
    """
    words, before = [], None
    for arg, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        name, equals, value = arg.partition("=")
        flag = table.flags.get(name.replace("_", "-"))
        if before and before.takes_boolean and flag_table.is_boolean(arg):
            arg = arg.capitalize()
        elif flag and flag.takes_boolean and flag_table.is_boolean(value):
            arg = f"{name}={value.capitalize()}"
        words.append(arg)
        if flag and not equals and flag.schema.get("type") == "boolean" and not flag_table.is_boolean(following):
            words.append("True")
        before = None if equals else flag
    return words


def format_help(usage: str, summary: str, options: Mapping[str, str], groups: Mapping[str, str], footer: str) -> str:
    """A short help with one line per option and one line per group of further options.

    Args:
        usage: The usage line, without "usage:".
        summary: What the verb does.
        options: Option with the form of its value → what it does.
        groups: Group of options → what they are about.
        footer: The last line.
    """
    width = max(map(len, [*options, *groups]))
    lines = [f"usage: {usage}", "", summary, ""]
    lines += [f"  {option:<{width}}  {text}" for option, text in options.items()]
    lines += ["", "groups of further options:", ""]
    lines += [f"  {group:<{width}}  {text}" for group, text in groups.items()]
    return "\n".join([*lines, "", footer])


def _one_line(event: _errors.ParseErrorEvent, args: list[str], see_help: str) -> UserError:
    """The error for a mistake that tyro has found, in one line."""
    failure = cause = sys.exception()
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__context__
    if isinstance(cause, OutOfRange):
        # where a nested Config failed, "method" for example, tyro names it
        config = getattr(failure, "arg", None)
        return cause.named(_as_typed(f"{config}.{cause.field}" if isinstance(config, str) else cause.field, args))
    if isinstance(cause, UserError):  # raised by a Config: already one line
        return cause
    match event:
        case _errors.MissingArgs():
            missing = event.missing_arguments[0].arg
            name = missing.lowered.metavar if missing.is_positional() else missing.lowered.name_or_flags[-1]
            return UsageError(f"{event.prog} lacks {name}", see_help)
        case _errors.UnrecognizedArgs():
            return UsageError(f"Unexpected argument {shown(event.tokens[0])}", see_help)
        case _errors.InvalidChoice():
            choices = sorted(choice for choice in event.choices if choice != "None")  # tyro has a set
            flag = event.argument.lowered.name_or_flags[-1]
            return UsageError(f"{flag} is {shown(event.value)}", f"Choose from {', '.join(choices)}")
        case _errors.BadValue(argument=argument):
            number = argument.lowered.nargs
            hint = see_help if number == 1 else f"Expected {number} values"
            return UsageError(f"{argument.lowered.name_or_flags[-1]} lacks a value", hint)
        case _errors.InstantiationFailure(argument=argument) if argument is not None:
            return _of_wrong_type(argument.lowered.name_or_flags, str(argument.lowered.metavar), args, see_help)
        case _:
            return UsageError(shown(getattr(event, "message", type(event).__name__)), see_help)


def _of_wrong_type(flags: tuple[str, ...], metavar: str, args: list[str], see_help: str) -> UsageError:
    """The error for a value that cannot be converted to the type of its flag.

    Args:
        flags: Spellings of the flag.
        metavar: Its type as tyro writes it, e.g. `{None}|INT` or `{FLOAT FLOAT}|{auto}`.
        args: The words after the verb.
        see_help: The hint if there is no better one.
    """
    kind = metavar.replace("{None}|", "").lower()
    any_number = "..." in kind
    number = len(args) if any_number else max(len(option.split()) for option in kind.split("|"))
    flag, value = flags[-1], ""
    for place, arg in enumerate(args):
        name, equals, attached = arg.partition("=")
        if name.replace("_", "-") in flags:
            following = itertools.takewhile(lambda word: not word.startswith("--"), args[place + 1 :][:number])
            flag, value = name, attached if equals else " ".join(following)
    if "[...]" in kind:  # a dict: tyro writes the types of its keys and values
        return UsageError(f"{flag} is {shown(value)}", "Expected pairs of NAME VALUE")
    or_auto = ", or auto" * ("{auto}" in kind)
    many = "one or more" if any_number else number
    hint = f"Expected {many} values{or_auto}" if number > 1 else see_help
    return UsageError(f"{flag} is {shown(value)}, not of type {kind}", hint)


def _as_typed(field: str, args: list[str]) -> str:
    """The flag of a Config field as the user typed it, e.g. `-k` or `--method.out-dim`."""
    flag = "--" + field.replace("_", "-")
    short = flag[1:]
    return short if len(field) == 1 and short in [arg.partition("=")[0] for arg in args] else flag


def describe(kind: Any, prog: str, default: Any = None, full_help: str = "--help") -> Table:
    """The table of flags of a Config; the arguments are those of `parse`."""
    words, flags = _parts(kind if default is None else default)
    many = any(several for _, _, several in words)
    return Table(prog, [name for name, needed, _ in words if needed], None if many else len(words), flags, full_help)


def _parts(config: Any, prefix: str = "") -> tuple[list[tuple[str, bool, bool]], dict[str, Flag]]:
    """The words (name, whether it is required, whether there may be several) and flags of a Config and those in it.

    Args:
        config: An instance or a class.
        prefix: Start of the names of the flags, e.g. "method.".
    """
    annotations = get_type_hints(config if isinstance(config, type) else type(config), include_extras=True)
    words: list[tuple[str, bool, bool]] = []
    found: dict[str, Flag] = {}
    for field in fields(config):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value, hint = getattr(config, field.name, default), annotations[field.name]
        if isinstance(value, dict) and value and all(map(is_dataclass, value.values())):
            nested = {f"{prefix}{field.name}.{name}.": part for name, part in value.items()}
        else:
            nested = {f"{prefix}{field.name}.": value} if is_dataclass(value) else {}
        for start, part in nested.items():
            found |= _parts(part, start)[1]
        if nested:
            continue
        schema, required = msgspec.json.schema(hint), value is MISSING
        several = _takes_several(schema)
        notes = getattr(hint, "__metadata__", ())
        if tyro.conf.Positional in notes:
            name = next((note.metavar for note in notes if getattr(note, "metavar", None)), field.name.upper())
            words.append((name, required or value == "", several))
        else:
            flag = "--" + f"{prefix}{field.name}".replace("_", "-")
            schema.pop("description", None)
            found[flag] = Flag({} if several else schema, "" if several else advice("", hint), required)
    return words, found


def _takes_several(schema: dict[str, Any]) -> bool:
    """Whether a flag may take several words, or words of which only the parser knows the type."""
    kinds = {part.get("type", "enum" if "enum" in part else "") for part in schema.get("anyOf", [schema])}
    return not kinds <= {"integer", "number", "string", "boolean", "null", "enum"}
