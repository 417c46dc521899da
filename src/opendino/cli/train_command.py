"""Train on images: opendino train DATA [--recipe NAME] [--epochs N | --steps N] [--out RUN]"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from opendino import config as configs
from opendino.cli import Outcome, flags
from opendino.config import Config
from opendino.core import registry
from opendino.core.accuracy import shown, yardstick
from opendino.core.errors import UsageError

_RECIPES = "opendino.recipes"


def run(args: list[str]) -> Outcome:
    """Start a run; prints nothing itself."""
    return report(start(parse(args)))


def start(config: Config) -> Any:
    """Train on as many devices as asked for: here, or in processes that are started for it.

    Returns:
        The run's `train.Result`.
    """
    from opendino import resolve
    from opendino.engine import launch
    from opendino.training import Result, train

    number = launch.number(config.devices, config.device)
    if number == 1:
        return train(config)
    # A folder that all agree on, and that a process that is started again goes on in.
    config = replace(config, out=str(resolve.folder(config)), resume=True)
    return Result(**launch.together(number, _train, config))


def _train(config: Config) -> dict[str, Any]:
    from opendino.training import train

    return dict(train(config).__dict__)


def report(result: Any) -> Outcome:
    """What a finished run says."""
    found = dict(result.__dict__)
    lines = [
        f"{result.steps:,} steps, {result.seconds:.0f} s, {result.images_per_second:.3g} images/s, "
        f"data wait {result.data_wait:.0%}, MFU {result.mfu:.0%}, {result.peak_memory_bytes / 2**30:.1f} GiB"
    ]
    if result.knn is not None:
        lines += [f"{'k-NN on':<12} top-1"] + [f"{name:<12} {told}" for name, told in shown(found).items()]
    if result.accuracy is not None:
        lines += [f"{'classifier':<12} top-1"]
        lines += [f"{name:<12} {told}" for name, told in shown(found, "accuracy").items()]
    if told := yardstick(found):
        lines.append(told)
    if result.effective_rank is not None:
        lines.append(f"effective rank of the features: {result.effective_rank:.1f}")
    if result.against_start is not None:
        lines.append(result.against_start["says"])
    more = f"; see the warnings in {result.run}/log.txt" if result.collapse is not None else ""
    lines += [
        f"{result.verdict}: {result.evidence}{more}",
        f"run folder: {result.run}{', with report.html' * (Path(result.run) / 'report.html').is_file()}",
        f"from Python: opendino.load('{result.run}').embed(images)",
    ]
    return Outcome("\n".join(lines), found)


def parse(args: list[str], recipe: str = "auto", data: str | None = None) -> Config:
    """The Config that a command line asks for: recipe, then --config FILE, then flags, the later one winning.

    Args:
        args: Without the verb.
        recipe: Where the command line names none.
        data: Where the command line names none; None makes it required.

    Raises:
        UsageError: An unknown flag or value, in one line.
    """
    args, chosen = flags.take(args, "recipe", "config", "method")
    name = chosen["recipe"] or recipe
    if name == "auto":
        name = "continued" if any(arg.partition("=")[0] == "--init" for arg in args) else "small"
    base = registry.load(_RECIPES, name).config(data or "")
    if chosen["config"]:
        base = configs.from_tree(configs.read_tree(chosen["config"]), base)
    if chosen["method"] and chosen["method"] != configs.method_name(base):
        base = replace(base, method=configs.method_config(chosen["method"]))
    given = {arg.partition("=")[0] for arg in args}
    if "--steps" in given and "--epochs" not in given:
        base = replace(base, epochs=None)
    if "--epochs" in given and "--steps" not in given:
        base = replace(base, steps=None)
    recipes = ", ".join(registry.names(_RECIPES))
    description = (
        f"Train on images without labels. Also: --recipe NAME ({recipes}), --config FILE.yaml, "
        f"--method NAME ({', '.join(registry.names('opendino.methods'))}), --json."
    )
    config = flags.parse(Config, args, "opendino train", description, base)
    if not config.data:
        raise UsageError("No images were named", "Give a folder: opendino train ~/photos")
    return config
