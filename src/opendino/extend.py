"""What a command that meets a run already begun may change: nothing, or the run's length."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

from opendino import config as configs
from opendino.config import Config
from opendino.core import atomic_write, duration
from opendino.core.errors import UsageError, UserError

_REQUEST = "request.yaml"
_LENGTH = ("steps", "epochs")
_OF_THE_CALL = ("out", "resume", "devices")  # a run continues on any number of devices


def remember(folder: Path, request: Config) -> None:
    """Keep the settings that were asked for, "auto" included, to compare later requests with."""
    atomic_write.write(folder / _REQUEST, configs.dump(request))


def remembered(folder: Path) -> Config | None:
    """The settings that the run in `folder` was asked for."""
    path = folder / _REQUEST
    return configs.from_tree(configs.read_tree(path)) if path.is_file() else None


def asked_length(folder: Path, request: Config) -> dict[str, Any]:
    """The length that a request for a run already begun asks for: {"steps": N}, {"epochs": N}, or {} as it was.

    Raises:
        UsageError: It asks for other settings than the run's.
    """
    before = remembered(folder)
    if before is None:
        return {}
    changed = _differences(configs.to_tree(before), configs.to_tree(request))
    other = [f"{name} {new!r} (the run's: {old!r})" for name, old, new in changed if name not in _LENGTH]
    if other:
        raise UsageError(
            f"'{folder}' holds a run with other settings: {', '.join(other)}",
            f"Continue it by its own settings: opendino resume {folder}; or start a new run with another --out",
        )
    given = {name: getattr(request, name) for name in _LENGTH} if changed else {}
    return {name: value for name, value in given.items() if value not in (None, "auto")}


def longer(
    config: Config, num_images: int, done: int, steps: int | None = None, epochs: float | None = None
) -> tuple[Config, str]:
    """A run's settings for another length, and what that means for its schedules.

    Learning rate, weight decay and momentum are functions of step and length: from step `done` on they follow the
    curves of a run of the new length. What was stated as a share of the run and may be over (warm-ups, freezes) keeps
    its length in steps.

    Args:
        config: The run's, without "auto".
        num_images: In its set.
        done: Steps done.
        steps, epochs: The new length of the whole run, in one of the two.

    Raises:
        UsageError: Both were given, or the run has done more already.
    """
    if steps is not None and epochs is not None:
        raise UsageError(f"--steps {steps} and --epochs {epochs:g} were both given", "Give one of them")
    assert config.steps and isinstance(config.batch, int)
    if epochs is not None:
        if not 0 < epochs < 1e9:
            raise UsageError(f"--epochs is {epochs:g}", "Use a number above 0")
        steps = max(1, round(epochs * (num_images // config.batch)))
    if steps is None or steps == config.steps:
        return config, ""
    if steps < max(1, done):
        raise UserError(f"The run has done {done:,} steps, more than the {steps:,} asked for", "Ask for more")
    before, per_epoch = config.steps, num_images // config.batch
    method, optim = (_pinned(part, before, per_epoch) for part in (config.method, config.optim))
    said = (
        f"{steps:,} steps in place of {before:,}: from step {done:,} on learning rate, weight decay and the teacher's "
        f"momentum follow the curves of a run of {steps:,} steps; warm-ups keep their length"
    )
    return replace(config, steps=steps, epochs=None, method=method, optim=optim), said


def _pinned(part: Any, total_steps: int, steps_per_epoch: int) -> Any:
    """A Config whose durations stated as a share of the run are steps."""
    found = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, str) and value.endswith("%"):
            found[field.name] = str(duration.steps(value, total_steps=total_steps, steps_per_epoch=steps_per_epoch))
    return replace(part, **found)


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, before, after) of each setting that differs."""
    found = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if not prefix and name in _OF_THE_CALL:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and name != "backbone_options":
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append((f"{prefix}{name}", old, new))
    return found
