"""Train on images: opendino train DATA [--recipe NAME] [--epochs N | --steps N] [--out RUN]"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import tyro

from opendino import config as configs
from opendino.cli import Outcome
from opendino.config import Config
from opendino.core import registry
from opendino.core.errors import UsageError, nearest

_RECIPES = "opendino.recipes"


def run(args: list[str]) -> Outcome:
    """Start a run; prints nothing itself."""
    from opendino.train import train

    return report(train(parse(args)))


def report(result: Any) -> Outcome:
    """What a finished run says."""
    lines = [
        f"{result.steps:,} steps, {result.seconds:.0f} s, {result.images_per_second:.3g} images/s, "
        f"data wait {result.data_wait:.0%}"
    ]
    if result.knn is not None:
        lines += [f"{'k-NN on':<12}{'top-1':>8}"] + [f"{name:<12}{value:>7.1f}%" for name, value in result.knn.items()]
    if result.effective_rank is not None:
        lines.append(f"effective rank of the teacher's features: {result.effective_rank:.1f}")
    if result.collapse is not None:
        lines.append(f"collapsed: {result.collapse}; see the warnings in {result.run}/log.txt")
    lines += [f"run folder: {result.run}", f"from Python: opendino.load('{result.run}').embed(images)"]
    return Outcome("\n".join(lines), dict(result.__dict__))


def parse(args: list[str], recipe: str = "auto", data: str | None = None) -> Config:
    """The Config that a command line asks for: recipe, then --config FILE, then flags, the later one winning.

    Args:
        args: Without the verb.
        recipe: Where the command line names none.
        data: Where the command line names none; None makes it required.

    Raises:
        UsageError: An unknown flag or value, in one line.
    """
    args, chosen = _take(args, "recipe", "config", "method")
    name = chosen["recipe"] or recipe
    if name == "auto":
        name = "small"
    base = registry.load(_RECIPES, name).config(data or "")
    if chosen["config"]:
        base = configs.from_tree(configs.read_tree(chosen["config"]), base)
    if chosen["method"] and chosen["method"] != configs.method_name(base):
        base = replace(base, method=configs.method_config(chosen["method"]))
    if not base.data:
        base = replace(base, data=tyro.MISSING)
    given = {arg.partition("=")[0] for arg in args}
    if "--steps" in given and "--epochs" not in given:
        base = replace(base, epochs=None)
    if "--epochs" in given and "--steps" not in given:
        base = replace(base, steps=None)
    _check_flags(args, base)
    recipes = ", ".join(registry.names(_RECIPES))
    return _tyro(
        args, base, f"Train on images without labels. Also: --recipe NAME ({recipes}), --config FILE.yaml, "
        f"--method NAME ({', '.join(registry.names('opendino.methods'))}), --json.",
    )  # fmt: skip


def _tyro(args: list[str], base: Config, description: str) -> Config:
    """Let tyro parse; its framed error message becomes one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                Config,
                prog="opendino train",
                description=description,
                args=args,
                default=base,
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _one_line(errors.getvalue()) from None


def _one_line(framed: str) -> UsageError:
    """Tyro's framed complaint as one of ours."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", framed).split())
    if "Missing from opendino train: DATA" in text:
        return UsageError("No images were named", "Give a folder: opendino train ~/photos")
    if wrong := re.search(
        r"Error parsing (--\S+): no type matching (\S+) could be instantiated from \['(.*?)'\]", text
    ):
        return UsageError(
            f"{wrong[1]} is '{wrong[3]}', not of type {wrong[2].replace('{None}|', '').lower()}",
            "See opendino train --help",
        )
    text = re.split("For full helptext|Argument helptext", text)[0].strip(" .")
    if ours := re.search(r"Error parsing Config\w*: (.*)", text):  # raised by a Config itself, already in our words
        return UsageError(ours[1])
    text = re.sub(r"^(Parsing error|Value error|Invalid choice|Unrecognized options) ", "", text)
    return UsageError(text, "See opendino train --help")


def _take(args: list[str], *names: str) -> tuple[list[str], dict[str, str | None]]:
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


def _check_flags(args: list[str], base: Config) -> None:
    known = set(_flags(base, ""))
    for arg in args:
        flag = arg.partition("=")[0]
        if arg.startswith("--") and flag.replace("_", "-") not in known | {"--help"}:
            raise UsageError(f"Unknown option '{flag}'", nearest(flag, known))


def _flags(part: Any, prefix: str) -> list[str]:
    """Every flag of a Config and of the Configs inside it."""
    found = []
    for field in fields(part):
        value = getattr(part, field.name)
        name = f"{prefix}{field.name}"
        if is_dataclass(value):
            found += _flags(value, f"{name}.")
        elif name != "data":
            found.append("--" + name.replace("_", "-"))
    return found
