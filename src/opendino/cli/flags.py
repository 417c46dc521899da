"""Flags from a Config: tyro parses them, and what it complains about becomes one line."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
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


def parse(kind: type[T], args: list[str], prog: str, description: str, default: T | None = None) -> T:
    """A Config from the words of a command line.

    Args:
        kind: A dataclass whose fields are flags, or Positional.
        args: Without the verb.
        prog: "opendino VERB", for the help.
        description: First line of the help.
        default: Values where no flag is given; the dataclass's own where None.

    Raises:
        UsageError: An unknown flag or value, in one line.
    """
    flags = _flags(default if default is not None else kind)
    known = set(flags)
    for arg in args:
        flag = arg.partition("=")[0]
        if arg.startswith("--") and flag.replace("_", "-") not in known | {"--help"}:
            raise UsageError(f"Unknown option '{flag}'", nearest(flag, known))
    args = _spelled_out(args, flags)
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
        raise _one_line(errors.getvalue(), prog, stop, args) from None


def take(args: list[str], *names: str) -> tuple[list[str], dict[str, str | None]]:
    """Pull `--name VALUE` and `--name=VALUE` out of the arguments: these decide what the other flags are."""
    rest, found = [], dict.fromkeys(names)
    waiting = iter(args)
    for arg in waiting:
        flag, equals, value = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and flag in names:
            found[flag] = value if equals else next(waiting, None)
            if not found[flag] or str(found[flag]).startswith("--"):
                raise UsageError(f"--{flag} lacks its value", f"Write --{flag} NAME")
        else:
            rest.append(arg)
    return rest, found


def _one_line(framed: str, prog: str, stop: BaseException, args: list[str]) -> UserError:
    """Tyro's framed complaint as one of ours."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", framed).split())
    told, cause = re.search(r"Error parsing (\S+):", text), stop.__context__
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__context__
    if isinstance(cause, OutOfRange):
        part = f"{told[1]}." if told and told[1][0].islower() else ""
        return cause.named(_written(part + cause.field, args))
    if isinstance(cause, UserError):  # raised by a Config itself, already in our words
        return cause
    if missing := re.search(rf"Missing from {prog}: ([A-Z]+|--[a-z-]+)", text):
        return UsageError(*_MISSING.get(missing[1], (f"{prog} lacks {missing[1]}", f"See {prog} --help")))
    kind = re.search(r"no type matching (.+?) could be instantiated from", text)
    if told and (kind or "digits" in text):
        flag, words = told[1], [word.partition("=") for word in args]
        given = [word[2] or follow[0] for word, follow in itertools.pairwise([*words, ("", "", "")]) if word[0] == flag]
        types = kind[1].replace("{None}|", "").lower() if kind else ""
        several = next((each for each in re.findall(r"\{(.*?)\}", types) if " " in each), "")
        hint = f"Expected {len(several.split())} values, or auto" if several else f"See {prog} --help"
        of = f"of type {types}" if kind else "a number that short"
        return UsageError(f"{flag} is {shown(given[-1] if given else '')}, not {of}", hint)
    if choice := re.search(r"invalid choice '(.*?)' for argument '(\S+)'. Expected one of \((.*?)\)", text):
        choices = ", ".join(word.strip("'") for word in choice[3].split(", ") if word != "'None'")
        return UsageError(f"{choice[2]} is {shown(choice[1])}", f"Choose from {choices}")
    text = re.split("For full helptext|Argument helptext", text)[0].strip(" .")
    text = re.sub(r"^(Parsing error|Value error|Invalid choice|Unrecognized options) ", "", text)
    return UsageError(text, f"See {prog} --help")


def _written(field: str, args: list[str]) -> str:
    """A setting as the user wrote it: `-k` or `--method.out-dim`."""
    flag = "--" + field.replace("_", "-")
    short = flag[1:]
    return short if len(field) == 1 and short in [arg.partition("=")[0] for arg in args] else flag


def _spelled_out(args: list[str], flags: dict[str, Any]) -> list[str]:
    """A switch without a value means True; tyro wants the word."""
    words = []
    for arg, following in itertools.zip_longest(args, args[1:]):
        words.append(arg)
        if flags.get(arg.replace("_", "-")) is bool and following not in ("True", "False"):
            words.append("True")
    return words


def _flags(part: Any, prefix: str = "") -> dict[str, Any]:
    """Every flag of a Config (an instance, or a class) and of the Configs inside it, with its type."""
    hints = get_type_hints(part if isinstance(part, type) else type(part), include_extras=True)
    found = {}
    for field in fields(part):
        made = field.default_factory() if field.default_factory is not MISSING else None
        value = getattr(part, field.name, made)
        if is_dataclass(value):
            found |= _flags(value, f"{prefix}{field.name}.")
        elif tyro.conf.Positional not in getattr(hints[field.name], "__metadata__", ()):
            found["--" + f"{prefix}{field.name}".replace("_", "-")] = hints[field.name]
    return found
