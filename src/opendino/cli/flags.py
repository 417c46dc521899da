"""Command-line flags from a Config dataclass. tyro parses them; its framed errors become one line each."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import tyro

from opendino.core.errors import UsageError, UserError, nearest
from opendino.core.ranges import OutOfRange, shown

T = TypeVar("T")

_MISSING = {
    "DATA": ("No images were named", "Give a folder of images"),
    "MODEL": ("No model was named", "Give a run folder, an imported or exported model folder, or timm:NAME"),
}


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
    flags = _flags(default if default is not None else kind)
    known = set(flags)
    for arg in args:
        flag = arg.partition("=")[0]
        if arg.startswith("--") and flag.replace("_", "-") not in known | {"--help", full_help}:
            raise UsageError(f"Unknown option '{flag}'", nearest(flag, known))
    args = _with_true(["--help" if arg == full_help else arg for arg in args], flags)
    errors = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind, prog=prog, description=description, args=args, config=(tyro.conf.FlagConversionOff,), **options
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _one_line(errors.getvalue(), prog, stop, args, full_help) from None


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


def _one_line(framed: str, prog: str, stop: BaseException, args: list[str], full_help: str) -> UserError:
    """Turn tyro's framed error message into a one-line UserError."""
    see_help = f"See {prog} {full_help}"
    # without colors, frame and line breaks
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", framed).split())
    failed_flag, cause = re.search(r"Error parsing (\S+):", text), stop.__context__
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__context__
    if isinstance(cause, OutOfRange):
        # tyro names a nested Config ("method") where its __post_init__ failed, and a flag ("--batch") otherwise
        prefix = f"{failed_flag[1]}." if failed_flag and failed_flag[1][0].islower() else ""
        return cause.named(_as_typed(prefix + cause.field, args))
    if isinstance(cause, UserError):  # raised by a Config: already one line
        return cause
    if missing := re.search(rf"Missing from {prog}: ([A-Z]+|--[a-z-]+)", text):
        return UsageError(*_MISSING.get(missing[1], (f"{prog} lacks {missing[1]}", see_help)))
    kind = re.search(r"no type matching (.+?) could be instantiated from", text)
    if failed_flag and (kind or "digits" in text):
        flag, words = failed_flag[1], [word.partition("=") for word in args]
        given = [
            word[2] or following[0] for word, following in itertools.pairwise([*words, ("", "", "")]) if word[0] == flag
        ]
        types = kind[1].replace("{None}|", "").lower() if kind else ""
        tuple_type = next((each for each in re.findall(r"\{(.*?)\}", types) if " " in each), "")  # e.g. {FLOAT FLOAT}
        hint = f"Expected {len(tuple_type.split())} values, or auto" if tuple_type else see_help
        expected = f"of type {types}" if kind else "a number that short"  # Python limits the digits of an int
        return UsageError(f"{flag} is {shown(given[-1] if given else '')}, not {expected}", hint)
    if choice := re.search(r"invalid choice '(.*?)' for argument '(\S+)'. Expected one of \((.*?)\)", text):
        choices = sorted(word.strip("'") for word in choice[3].split(", ") if word != "'None'")  # tyro has a set
        return UsageError(f"{choice[2]} is {shown(choice[1])}", f"Choose from {', '.join(choices)}")
    text = re.split("For full helptext|Argument helptext", text)[0].strip(" .")
    text = re.sub(r"^(Parsing error|Value error|Invalid choice|Unrecognized options) ", "", text)
    return UsageError(text, see_help)


def _as_typed(field: str, args: list[str]) -> str:
    """The flag of a Config field as the user typed it, e.g. `-k` or `--method.out-dim`."""
    flag = "--" + field.replace("_", "-")
    short = flag[1:]
    return short if len(field) == 1 and short in [arg.partition("=")[0] for arg in args] else flag


def _with_true(args: list[str], flags: dict[str, Any]) -> list[str]:
    """Add True after a boolean flag without a value, because tyro requires one."""
    words = []
    for arg, following in itertools.zip_longest(args, args[1:]):
        words.append(arg)
        if flags.get(arg.replace("_", "-")) is bool and following not in ("True", "False"):
            words.append("True")
    return words


def _flags(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every flag of a Config (an instance or a class) and of its nested Configs → its type."""
    hints = get_type_hints(config if isinstance(config, type) else type(config), include_extras=True)
    found = {}
    for field in fields(config):
        default = field.default_factory() if field.default_factory is not MISSING else None
        value = getattr(config, field.name, default)
        if isinstance(value, dict) and value and all(map(is_dataclass, value.values())):
            for name, part in value.items():
                found |= _flags(part, f"{prefix}{field.name}.{name}.")
        elif is_dataclass(value):
            found |= _flags(value, f"{prefix}{field.name}.")
        elif tyro.conf.Positional not in getattr(hints[field.name], "__metadata__", ()):
            found["--" + f"{prefix}{field.name}".replace("_", "-")] = hints[field.name]
    return found
