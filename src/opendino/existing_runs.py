"""Run folders: which one a new run takes, the settings of an existing run, and its length, all a command may change."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from opendino import config as configs
from opendino.config import Config, ResolvedConfig
from opendino.core import atomic_write, distributed, duration, metrics_log, registry
from opendino.core.contracts import Source
from opendino.core.errors import UsageError, UserError
from opendino.data import fingerprint
from opendino.data.held_out import with_held_out
from opendino.data.sources import python
from opendino.engine import optim, verdict
from opendino.engine.run_folder import STARTUP_FILES

_REQUEST = "request.yaml"
_KEYS = "image_keys.npy"
_OF_THE_MACHINE = (
    "device", "devices", "parallel", "precision", "compile", "workers", "threads", "cache", "eval_images",
)  # fmt: skip
_HOLD_OUT = 0.2  # of the images: a day's hundred new ones give twenty to compare on
_SHORTER = 5
_OF_THE_CALL = ("out", "resume", "devices")  # a run continues on any number of devices


def folder(config: Config) -> Path:
    """Path of the run's folder, which is created later, once the run can start.

    Only rank 0 checks the path, because the other ranks might check after rank 0 has created the folder.

    Raises:
        UserError: The path exists, and is not a run to continue (`config.resume`).
    """
    path = distributed.broadcast_object(_folder(config) if distributed.rank() == 0 else None)
    if isinstance(path, UserError):
        raise path
    assert path
    return path


def cures(settings: Mapping[str, Any]) -> Mapping[str, str]:
    """What the method of a run says against a collapse, see `MethodConfig.cures`; nothing if it is not installed.

    Args:
        settings: The run's config.yaml.
    """
    method = settings.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    try:
        return configs.method_config(name).cures if name in registry.names(registry.METHODS) else {}
    except UserError:  # a plug-in that cannot be imported
        return {}


def verdict_on(folder: Path, settings: Mapping[str, Any]) -> verdict.Verdict:
    """The verdict on a run, finished or not.

    Args:
        folder: The run folder.
        settings: Its config.yaml.

    Raises:
        OSError: It has no metrics.jsonl.
    """
    return verdict.of_rows(metrics_log.sampled(folder / "metrics.jsonl"), settings["steps"], cures(settings))


def _folder(config: Config) -> Path | UserError:
    if config.out is None:
        name = Path(config.data.partition("?")[0].rstrip("/:")).name.replace(":", "-") or "images"
        path = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    else:
        path = Path(config.out).expanduser()
    is_run = (path / "config.yaml").exists()
    taken = path.is_dir() and any(file.name not in STARTUP_FILES for file in path.iterdir())
    if path.is_file() or (taken and not (is_run and config.resume)):
        hint = f"Continue with: {how_to_resume(config, path)}; or choose" if is_run else "Choose"
        return UserError(f"'{path}' exists already", f"{hint} another --out")
    return path


def read_run_config(run: str | Path) -> ResolvedConfig:
    """Read the settings of an existing run.

    Raises:
        UserError: There is no such run, or its settings were changed to "auto".
    """
    path = Path(run).expanduser() / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{run}' is no run folder: it has no config.yaml", "Start one with: opendino train DATA")
    return configs.resolved(configs.from_tree(configs.read_tree(path)))


def how_to_resume(config: Config, folder: Path) -> str:
    """The command that resumes a run; the calls in Python if its images were given there, or a part without a file."""
    images = "".join(f", {name}=..." for name in ("data", "val") if python.matches(getattr(config, name) or ""))
    parts = given_in_python(config)
    files = [
        registry.source_file(package, name) if name in registry.names(package) else None for package, name in parts
    ]
    if not images and all(files):
        options = dict.fromkeys(f" --import {shlex.quote(str(file))}" for file in files)
        return f"opendino resume {folder}{''.join(options)}"
    calls = []
    for package, name in parts:
        kind, bare = registry.GROUPS[package].rpartition(".")[2].rstrip("s"), name.removeprefix("python:")
        calls.append(f'opendino.register_{kind}("{bare}", {bare})')
    return "; ".join([*calls, f'opendino.resume("{folder}"{images})'])


def given_in_python(config: Config) -> list[tuple[str, str]]:
    """(package of `core.registry`, name) of the network, method and augmentations of a run that Python objects gave."""
    tree = configs.to_tree(config)
    network = [(registry.BACKBONES, config.backbone)] if config.backbone.startswith("python:") else []
    used = [(registry.METHODS, tree["method"]["name"])]
    names = {name for view in tree["views"].values() for name, value in view.items() if isinstance(value, dict)}
    used += [(registry.AUGMENTATIONS, name) for name in sorted(names)]
    return network + [each for each in used if registry.is_from_python(registry.origin(*each))]


def save_request(folder: Path, request: Config) -> None:
    """Save the settings as the user gave them, "auto" included, to compare them with later commands."""
    atomic_write.write(folder / _REQUEST, configs.dump(request))


def read_request(folder: Path) -> Config | None:
    """Read the settings of a run as the user gave them; None if they were not saved."""
    path = folder / _REQUEST
    return configs.from_tree(configs.read_tree(path)) if path.is_file() else None


def save_keys(folder: Path, keys: np.ndarray) -> None:
    """Save which images a run trains on.

    Args:
        folder: The run's folder.
        keys: From `data.fingerprint.key_digests`.
    """
    with atomic_write.replace_file(folder / _KEYS) as partial, open(partial, "wb") as file:
        np.save(file, keys, allow_pickle=False)


def read_keys(folder: Path) -> np.ndarray | None:
    """Digests of the keys of the images that a run trained on, uint64 `[N]`; None if they were not saved."""
    path = folder / _KEYS
    return np.load(path, allow_pickle=False) if path.is_file() else None


def check_images(folder: Path, config: Config, source: Source, then: dict[str, Any]) -> None:
    """Check that a run's images are those it was started with.

    Args:
        folder: The run's folder.
        config: Settings of the run.
        source: Its images now.
        then: The `fingerprint` of its last checkpoint.

    Raises:
        UserError: Images were added, removed or replaced.
    """
    hint = (
        f"Train on from it with the images of today: opendino continue {folder} {config.data}; "
        f"start a new run from its weights: opendino train {config.data} --init {folder}; or restore the folder"
    )

    def counted() -> str:
        keys, now = read_keys(folder), fingerprint.key_digests(with_held_out(source))
        if keys is None:
            return ""
        num_new, num_gone = (~np.isin(now, keys)).sum(), (~np.isin(keys, now)).sum()
        return f": {num_new:,} new, {num_gone:,} gone" if num_new or num_gone else ", with other labels"

    fingerprint.check(source, then, f"'{folder}' was started", hint, counted)


def continued(run: str | Path) -> Config:
    """Settings of a new run that trains on from the networks of a run: teacher, student and heads.

    A fifth of the steps at a fifth of the learning rate, without the phases in which new networks settle (frozen
    prototypes, temperature warm-up). A run that was continued itself is continued with its own length and learning
    rate. What depends on the machine is chosen again.

    Raises:
        UserError: There is no such run.
    """
    before = read_run_config(run)
    request = read_request(Path(run).expanduser()) or before
    again = before.init_networks == "all"
    settled = {"freeze_last_layer": "0", "teacher_temp_warmup": "0", "consistency_rampup": "0"}
    known = {field.name for field in fields(before.method)}
    optimizer = optim.Config(**{field.name: getattr(before.optim, field.name) for field in fields(optim.Config)})
    return Config(
        **{field.name: getattr(before, field.name) for field in fields(Config)}
        | {name: getattr(request, name) for name in _OF_THE_MACHINE}
        | {
            "init": str(run), "init_networks": "all", "hold_out": before.hold_out or _HOLD_OUT, "out": None,
            "resume": False, "steps": before.steps if again else max(1, before.steps // _SHORTER),
            "method": replace(before.method, **{name: value for name, value in settled.items() if name in known}),
            "optim": replace(
                optimizer, lr=before.optim.lr / (1 if again else _SHORTER), lr_warmup="10%", freeze_backbone="0",
                weight_decay=before.optim.weight_decay_end, grad_accum_steps=request.optim.grad_accum_steps,
            ),
        },
    )  # fmt: skip


def requested_length(folder: Path, request: Config) -> dict[str, Any]:
    """The new length that a command gives for an existing run.

    Args:
        folder: The run's folder.
        request: The command's settings.

    Returns:
        {"steps": N}, {"epochs": N}, or {} to keep the length.

    Raises:
        UsageError: The command changes other settings.
    """
    before = read_request(folder)
    if before is None:
        return {}
    changed = _differences(configs.to_tree(before), configs.to_tree(request))
    if request.minutes != before.minutes and request.minutes is not None:
        raise UsageError(
            f"'{folder}' holds a run already, and --minutes is only for a new one", "Use --steps or --epochs"
        )
    other = [f"{name} {new!r} (the run's: {old!r})" for name, old, new in changed if name not in configs.LENGTHS]
    if other:
        raise UsageError(
            f"'{folder}' holds a run with other settings: {', '.join(other)}",
            f"Continue it as it is: {how_to_resume(before, folder)}; or start a new run with another --out",
        )
    lengths = {name: getattr(request, name) for name in ("steps", "epochs")} if changed else {}
    return {name: value for name, value in lengths.items() if value not in (None, "auto")}


def change_length(
    config: ResolvedConfig, num_images: int, done: int, steps: int | None = None, epochs: float | None = None
) -> tuple[ResolvedConfig, str]:
    """Change the length of an existing run.

    Learning rate, weight decay and teacher momentum are functions of step and length: after step `done` they follow the
    schedules of a run of the new length. Durations given in percent of the run (warm-ups, freezes) may already be over,
    so they keep their length in steps; in a run that becomes shorter those that are not over shrink with it.

    Args:
        config: Settings of the run.
        num_images: Size of the dataset.
        done: Steps done.
        steps, epochs: New length of the whole run; at most one of them.

    Returns:
        The new settings, and a message for the log, empty if nothing changes.

    Raises:
        UsageError: Both were given, or the length is not a positive number.
        UserError: The run has already done more steps.
    """
    if steps is not None and epochs is not None:
        raise UsageError(f"--steps {steps} and --epochs {epochs:g} were both given", "Give one of them")
    if epochs is not None:
        if not 0 < epochs < 1e9:
            raise UsageError(f"--epochs is {epochs:g}", "Use a number above 0")
        steps = max(1, round(epochs * (num_images // config.batch)))
    if steps is None or steps == config.steps:
        return config, ""
    if steps < max(1, done):
        raise UserError(
            f"The run has already done {done:,} steps, more than {steps:,}", f"Give more than {done:,} steps"
        )
    before, per_epoch = config.steps, num_images // config.batch
    method, optim = (_shares_to_steps(part, before, per_epoch) for part in (config.method, config.optim))
    if steps < before:
        method, optim = (_shorter(part, steps, before, per_epoch, done) for part in (method, optim))
    message = (
        f"{steps:,} steps (was {before:,}): from step {done:,} on learning rate, weight decay and the teacher's "
        f"momentum follow the schedules of a run of {steps:,} steps; warm-ups "
        + ("keep their length" if steps > before else "that are not over become shorter in proportion")
    )
    return replace(config, steps=steps, method=method, optim=optim), message


def _durations(part: Any) -> list[str]:
    """Names of the settings of a Config that are durations."""
    return [field.name for field in dataclasses.fields(part) if str(field.type).startswith("Duration")]


def _shorter(part: Any, steps: int, before: int, steps_per_epoch: int, done: int) -> Any:
    """A Config whose durations that are not over after `done` steps are shorter by as much as the run."""
    found = {}
    for name in _durations(part):
        length = duration.steps(getattr(part, name), total_steps=before, steps_per_epoch=steps_per_epoch)
        if length > done:
            found[name] = str(max(done, length * steps // before))
    return replace(part, **found)


def _shares_to_steps(part: Any, total_steps: int, steps_per_epoch: int) -> Any:
    """Convert a Config's durations in percent of the run to steps."""
    found = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, str) and value.endswith("%"):
            found[field.name] = str(duration.steps(value, total_steps=total_steps, steps_per_epoch=steps_per_epoch))
    return replace(part, **found)


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, before, after) of each setting that differs; names of nested settings are joined by dots."""
    found = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if (not prefix and name in _OF_THE_CALL) or name == "from":
            continue
        if isinstance(old, dict) and isinstance(new, dict) and name != "backbone_options":
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append((f"{prefix}{name}", old, new))
    return found
