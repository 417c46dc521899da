"""Converts a length in minutes to epochs, by timing a few steps before the run; on a CPU minutes are the default."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from opendino import config as configs
from opendino import resolve
from opendino.config import Config, ResolvedConfig
from opendino.core import auto_values, compilation, distributed, log
from opendino.core.contracts import Source
from opendino.core.types import Clock
from opendino.data.loader import Batch
from opendino.engine import sizing
from opendino.engine.throughput import synchronize
from opendino.run_parts import MakeViews, build_networks, open_data, views_of, with_views
from opendino.training import step

CPU_MINUTES = 20.0
"""Length of a run on a CPU that was given none: enough for small images, and nobody waits for days unasked."""
_WARM_UP_STEPS = 2  # the first ones allocate memory and compile
_KEPT_STEPS = 2  # whose images are trained on again, to time steps without decoding
_MEASURED_FRAC, _MEASURED_SECONDS = 0.05, (2.0, 20.0)  # of the run, at least and at most
_TRAINING_FRAC = 0.9  # of the time; the rest is for evaluations, checkpoints and the report
_MANY_STEPS = 1500  # from which a network of twice the width learns more in the same time (docs/log.md)
_LEAST_TRAINING_FRAC = 0.5  # in runs so short that evaluations take more than a tenth
_MOST_EPOCHS = 1e6  # as the setting allows: of a handful of images overnight
_LONGER, _SLOWER = 1.1, 0.9  # of what was planned, from which the end of a run says so


@dataclass(frozen=True)
class Planned:
    """A run whose length is known.

    Attributes:
        config: Its settings, with a length in epochs or steps.
        minutes: How long it should take; None if that was not asked.
        images_per_second: Mean speed of training with which that was computed.
        began: When, on `time.monotonic`.
    """

    config: Config
    minutes: float | None = None
    images_per_second: float = 0.0
    began: float = 0.0

    def overtime(self, images_per_second: float, now: float) -> str:
        """That a finished run took longer than planned, and why; empty if it did not.

        Args:
            images_per_second: Mean speed with which it has trained.
            now: On `time.monotonic`.
        """
        taken = (now - self.began) / 60
        if self.minutes is None or taken < _LONGER * self.minutes:
            return ""
        why = "evaluations, checkpoints and the report took longer than planned"
        if images_per_second < _SLOWER * self.images_per_second:
            speeds = f"{images_per_second:,.0f} instead of {self.images_per_second:,.0f} images/s"
            why = f"it trained at {speeds}, as timed before the run: did other programs use this machine?"
        return f"the run took {taken:.1f} instead of {self.minutes:g} min: {why}"


def in_epochs(config: Config, device: torch.device) -> Planned:
    """Replace a length in minutes, or "auto" on a CPU, by one in epochs; the same on every rank.

    Args:
        config: As the user gave it; another length stays as it is.
        device: This process's device.

    Raises:
        UserError: The run cannot start.
    """
    minutes = CPU_MINUTES if config.epochs == "auto" and device.type == "cpu" else config.minutes
    if minutes is None:
        return Planned(config)
    began, asked = time.monotonic(), config.eval_images
    default = "" if config.minutes else ", the default on a cpu; --minutes changes it"
    low, high = _MEASURED_SECONDS
    with log.muted():
        trial, source = resolve.resolve_config(replace(config, minutes=None, epochs="auto"), device)
    log.say(f"timing a few steps, to train for {minutes:g} min{default}")
    limit = min(high, max(low, _MEASURED_FRAC * 60 * minutes))
    with log.muted():
        computing, waiting = seconds_per_image(trial, source, device, limit)
    seen = distributed.broadcast_object(_TRAINING_FRAC * 60 * minutes / computing)
    timed, trial = trial, _of_that_length(trial, config, seen, len(source), device)
    steps = seen / trial.batch
    small = config.backbone == "auto" and trial.backbone == "conv4" and not config.init
    if small and "width" not in config.backbone_options and steps > _MANY_STEPS:
        width = 2 * auto_values.CONV4_WIDTH
        why = f"there is time for {steps:,.0f} steps of width {width // 2}, more than it learns from"
        log.say(f"  backbone_options.width = {width}: {why}")
        config = replace(config, backbone_options={**config.backbone_options, "width": width})
        trial = replace(trial, backbone_options={**trial.backbone_options, "width": width})
    if trial != timed:
        with log.muted():
            computing, waiting = seconds_per_image(trial, source, device, limit)
    left, cached = 60 * minutes - (time.monotonic() - began), trial.cache != "off"
    seconds = _TRAINING_FRAC * left
    epochs = _epochs(seconds, computing, waiting, len(source), cached)
    num_trained = round(max(0, epochs) * len(source))
    wanted, _ = sizing.eval_images(config.eval_images, len(source), num_trained)
    num_eval, cost = sizing.affordable_eval_images(wanted, num_trained)
    if config.eval_images == "auto" and num_eval < wanted:
        seconds = max(_LEAST_TRAINING_FRAC * left, min(_TRAINING_FRAC * left, left - cost * computing))
        epochs = _epochs(seconds, computing, waiting, len(source), cached)
        config = replace(config, eval_images=num_eval)
    config = replace(config, minutes=None, epochs=min(max(epochs, trial.batch / len(source)), _MOST_EPOCHS))
    config = distributed.broadcast_object(config)
    log.say(
        f"  epochs = {config.epochs:.3g}: {minutes:g} min at {1 / computing:,.0f} images/s "
        f"({1 / (computing + waiting):,.0f} while they are decoded), the rest for evaluations and checkpoints"
    )
    if config.eval_images != asked:
        log.say(
            f"  eval_images = {config.eval_images} instead of {wanted:,}: evaluations take about "
            f"{cost * computing:.0f} s in all, more would leave little of so short a run. Accuracies have larger "
            f"standard errors, and the verdict is more often open; --eval-images {wanted} takes the time"
        )
    return Planned(config, minutes, max(0, epochs) * len(source) / max(1e-9, seconds), began)


def _of_that_length(
    trial: ResolvedConfig, config: Config, seen: float, num_images: int, device: torch.device
) -> ResolvedConfig:
    """The settings of a trial with the batch and the compiler of a run that sees `seen` images, where they are auto."""
    batch, _ = sizing.batch(config.batch, num_images, seen, device)
    compiled, _ = compilation.choose(config.compile, device, round(seen / batch))
    accumulated = max(1, trial.optim.grad_accum_steps * batch // trial.batch)
    if config.optim.grad_accum_steps != "auto":
        accumulated = trial.optim.grad_accum_steps
    return replace(trial, batch=batch, compile=compiled, optim=replace(trial.optim, grad_accum_steps=accumulated))


def _epochs(seconds: float, computing: float, waiting: float, num_images: int, cached: bool) -> float:
    """Epochs in a time, from seconds per image to compute and to wait for decoding: in a cache only the first waits."""
    first = num_images * (computing + waiting)
    if not cached or seconds <= first:
        return seconds / first
    return 1 + (seconds - first) / (num_images * computing)


def seconds_per_image(
    config: ResolvedConfig, source: Source, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Time some steps of a run that are then discarded: on images as they are decoded, and again on the first of them.

    Decoding may take the time of the processor that trains, so that what a step takes later, from a cache, cannot be
    told from the first ones.

    Args:
        config: Settings of the run.
        source: The training images.
        device: This process's device.
        seconds: How long to measure, after the warm-up.

    Returns:
        Seconds per image of a step, and how many more while images are decoded; 0 without a cache, where they always
        are.
    """
    spec, before = configs.views(config), torch.get_num_threads()
    networks = build_networks(config, spec, source, device, new=False)  # random weights take the same time
    data = open_data(replace(config, cache="off"), spec, source, Path(), device)

    def timed(stream: Iterator[tuple[Batch, MakeViews]], ready: int = 0) -> float:
        """Seconds per image in the faster one of two parts: other programs, or a computer that sleeps, delay one.

        The first `ready` steps do not count, unless they take as long as a part: their images are decoded already.
        """
        began, num, parts, warm = time.monotonic(), 0, list[float](), False
        for number in range(config.steps):
            late = number >= ready or time.monotonic() - began > seconds / 4
            if not warm and distributed.any_true(number >= _WARM_UP_STEPS and late):
                synchronize(device)
                began, num, warm = time.monotonic(), 0, True
            views = (make_views() for _, make_views in itertools.islice(stream, config.optim.grad_accum_steps))
            clock = Clock(number, config.steps, data.batches.steps_per_epoch)
            with compilation.compiling(config.compile):
                step(networks.model, networks.optimizer, config.optim, config.batch, clock, views,
                     getattr(torch, config.precision))  # fmt: skip
            num += config.batch
            synchronize(device)
            if distributed.any_true(warm and time.monotonic() - began > seconds / 4):
                parts.append((time.monotonic() - began) / num)
                if len(parts) == 2:
                    break
                began, num = time.monotonic(), 0
        return min(parts or [(time.monotonic() - began) / num])

    torch.set_num_threads(config.threads)
    try:
        with contextlib.closing(with_views(config, data, spec, 0, device)) as stream:
            first = list(itertools.islice(stream, _KEPT_STEPS * config.optim.grad_accum_steps))
            ready = 2 * config.workers // config.optim.grad_accum_steps  # that the workers have decoded ahead
            decoding = timed(itertools.chain(first, stream), _KEPT_STEPS + ready)
        if config.cache == "off":
            return decoding, 0.0
        decoded = itertools.cycle([batch for batch, _ in first])
        with contextlib.closing(views_of(decoded, config, data, spec, device)) as stream:
            computing = timed(stream)
        return computing, max(0.0, decoding - computing)
    finally:
        torch.set_num_threads(before)
