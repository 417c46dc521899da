"""Train a model on unlabeled images: opendino train DATA [--recipe NAME] [--minutes M | --epochs N] [--out RUN]"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from opendino import config as configs
from opendino.cli import Outcome, flag_table, flags
from opendino.config import Config
from opendino.core import registry
from opendino.core.accuracy import baseline_text, format_accuracies, knn_title
from opendino.core.errors import UsageError

_RECIPES = "opendino.recipes"
_OWN_EVALUATION = "the run's own evaluation (a sample of old and new images together, with a higher bar) alone: "


def run(args: list[str]) -> Outcome | None:
    """Start a run."""
    if {"-h", "--help"} & set(args):
        print(brief_help(args))
        return None
    return report(start(parse(args)))


def start(config: Config) -> Any:
    """Train on the requested number of devices: in this process, or in one new process per device.

    Returns:
        The run's `training.Result`.
    """
    from opendino import existing_runs
    from opendino.engine import launch
    from opendino.engine.run_result import Result
    from opendino.start import check_sendable, train

    number = launch.number(config.devices, config.device)
    if number == 1:
        return train(config)
    check_sendable(config)
    # The folder is chosen here, so that all processes use the same one, and a restarted process resumes in it.
    config = replace(config, out=str(existing_runs.folder(config)), resume=True)
    return Result(**launch.together(number, _train, config))


def _train(config: Config) -> dict[str, Any]:
    from opendino.start import train

    return dict(train(config).__dict__)


def report(result: Any) -> Outcome:
    """Summary of a finished run, as text and as fields."""
    from opendino.comparison import decides

    found = dict(result.__dict__)
    lines = [
        f"{result.steps:,} steps, {result.seconds:.0f} s, {result.images_per_second:.3g} images/s, "
        f"waiting for images {result.data_wait:.0%}, {result.mfu:.0%} of peak FLOP/s (MFU), "
        f"{result.peak_memory_bytes / 2**30:.1f} GiB"
    ]
    if result.knn is not None:
        lines += [f"{knn_title(found)}, top-1"]
        lines += [f"{name:<12} {text}" for name, text in format_accuracies(found).items()]
    if result.accuracy is not None:
        lines += [f"{'classifier':<12} top-1"]
        lines += [f"{name:<12} {text}" for name, text in format_accuracies(found, "accuracy").items()]
    if comparison := baseline_text(found):
        lines.append(comparison)
        lines.append("of at most --eval-images images, as large as the crops; `eval knn` takes all, and other k")
    if result.effective_rank is not None:
        lines.append(f"effective rank of the features: {result.effective_rank:.1f}")
    if result.against_start is not None:
        lines.append(result.against_start["says"])
    lines += [
        f"{_OWN_EVALUATION if decides(result.against_start) else ''}{result.verdict}: {result.evidence}",
        *([f"cure: {result.cure}"] if result.cure else []),
        f"run folder: {result.run}{', with report.html' * (Path(result.run) / 'report.html').is_file()}",
        f"from Python: opendino.load('{result.run}').embed(images)",
    ]
    return Outcome("\n".join(lines), found)


def parse(args: list[str], recipe: str = "auto", data: str | None = None) -> Config:
    """Parse a command line into a Config. Flags override --config FILE, which overrides the recipe.

    Args:
        args: The words after the verb.
        recipe: Recipe to use without --recipe; auto: `continued` with --init, else `small`.
        data: Images to use if the command line names none; None makes DATA required.

    Raises:
        UsageError: An unknown flag or value, in one line.
    """
    args, base = _base(args, recipe, data)
    description = (
        f"Train a model on unlabeled images. Also: --recipe NAME ({', '.join(registry.names(_RECIPES))}), "
        f"--config FILE.yaml, --method NAME ({', '.join(registry.names('opendino.methods'))}), --json."
    )
    config = parse_from(base, args, "opendino train", description)
    if not config.data:
        raise UsageError("No images were named", "Give a folder: opendino train ~/photos")
    return config


def parse_from(base: Config, args: list[str], prog: str, description: str) -> Config:
    """Parse the flags of a Config, with `base` for those that are not given; a length replaces the one in `base`.

    Raises:
        UsageError: An unknown flag or value, in one line.
    """
    given = {name for name in configs.LENGTHS if any(arg.partition("=")[0] == f"--{name}" for arg in args)}
    if given:
        base = replace(base, **dict.fromkeys(set(configs.LENGTHS) - given))
    args = _view_flags(args, list(base.views))
    # Without the options of `base`: tyro would take them for flags of their own.
    config = flags.parse(Config, args, prog, description, replace(base, backbone_options={}), full_help="--help-all")
    if config.backbone_options or config.backbone != base.backbone:
        return config
    return replace(config, backbone_options=base.backbone_options)


def brief_help(
    args: list[str],
    usage: str = "opendino train DATA [OPTIONS]",
    summary: str = "Train a model on unlabeled images.",
    recipe: str = "auto",
) -> str:
    """The help of the main options and the names of the other groups, each in one line.

    Args:
        args: The words after the verb. The defaults shown are those of their --recipe, --config or --method.
        usage: The usage line, without "usage:".
        summary: What the verb does.
        recipe: As in `parse`.
    """
    _, base = _base(args, recipe, None)
    method = configs.method_name(base)
    length = "auto" if base.epochs == "auto" else f"{base.epochs} epochs" if base.epochs else f"{base.steps} steps"
    options = {
        "DATA": "Images: a folder, a video, a .tar or .zip, a list, .tar shards, .parquet, hf:NAME or toy:KIND",
        "--every 2s": "Time between the frames that videos in DATA give, or all; default: 1s",
        "--val DATA": f"Labeled images for the k-NN accuracy during training; default: {base.val or 'a part of DATA'}",
        "--out RUN": "Run folder to create; default: runs/NAME-DATE",
        "--recipe NAME": "Preset of all settings, e.g. microscopy or vits16_300ep; see: opendino list recipes",
        "--epochs N, --steps N": f"Length in epochs or in optimizer steps; default: {length}",
        "--minutes M": "Length in minutes instead, converted to steps by timing a few steps at the start",
        "--batch N": f"Images per optimizer step, summed over devices; default: {base.batch}",
        "--method NAME": f"{', '.join(registry.names('opendino.methods'))}; default: {method}",
        "--backbone NAME": f"vit_tiny|small|base/PATCH, or any timm name; default: {base.backbone}",
        "--init MODEL": "Pretrained weights to start from: a run, a model folder or timm:NAME",
        "--device NAME": f"auto, cuda, mps or cpu; default: {base.device}",
        "--devices N": f"Number of GPUs of this machine, or auto for all; default: {base.devices}",
        "--labels LABELS": f"none, folders (they are classes), a share such as 10%, or a CSV; default: {base.labels}",
        "--config FILE.yaml": "Settings from a file, e.g. the config.yaml of another run",
        "--json": "Print the result as JSON",
    }
    groups = {
        "--method.*": f"Settings of {method}: projection head, temperatures, teacher momentum",
        "--views.*": f"Size, number and augmentations of the views: {', '.join(base.views)}, or all of them",
        "--optim.*": "Optimizer, learning rate, weight decay, gradient clipping, gradient accumulation",
        "model": "Backbone options, drop path, activation checkpointing, compile, precision",
        "data": "Normalization, decoding workers, cache, unreadable images",
        "run": "Seed, evaluation, checkpoints, report, resume, profiling, several devices",
    }
    return flags.format_help(usage, summary, options, groups, "`opendino train --help-all` shows all options.")


def _view_flags(args: list[str], groups: list[str]) -> list[str]:
    """Replace each `--views.all.NAME VALUE...` by one per group of views, before the flags of single groups.

    DATA moves to the front: tyro would take it for another value of the flag before it.
    """
    for_all: list[str] = []
    data: list[str] = []
    rest: list[str] = []
    flag, values = "", 0
    for word in args:
        if word.startswith("--"):
            flag, values = word, int("=" in word)
        elif not flag or (
            flag.startswith("--views.") and values and not re.fullmatch(r"[-+.\deE]+|auto|True|False", word)
        ):
            data.append(word)
            continue
        else:
            values += 1
        (for_all if flag.startswith("--views.all.") else rest).append(word)
    every = [word.replace("--views.all.", f"--views.{group}.") for group in groups for word in for_all]
    return data + every + rest


def _base(args: list[str], recipe: str, data: str | None) -> tuple[list[str], Config]:
    """The Config of recipe, --config and --method, before the other flags, and the remaining arguments."""
    args, chosen = flag_table.take(args, "recipe", "config", "method")
    name = chosen["recipe"] or recipe
    if name == "auto":
        name = "continued" if any(arg.partition("=")[0] == "--init" for arg in args) else "small"
    base = registry.load(_RECIPES, name).config(data or "")
    if chosen["config"]:
        base = configs.from_tree(configs.read_tree(chosen["config"]), base)
    if chosen["method"] and chosen["method"] != configs.method_name(base):
        base = configs.with_method(base, chosen["method"])
    return args, base
