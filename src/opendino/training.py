"""Training, from top to bottom: resolve the config, build the networks, restore the checkpoint, run the loop.

`run` is called by `opendino.train` and `opendino.resume` (start.py), `_train` holds the loop, `step` is one step.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opendino import config as configs
from opendino import existing_runs, report, resolve, snapshots
from opendino.config import Config, ResolvedConfig
from opendino.core import atomic_write, compilation, distributed, duration, log, metrics_log
from opendino.core.contracts import Callback, Source
from opendino.core.progress import Progress, waiting
from opendino.core.types import Clock, Views, ViewSpec
from opendino.data import fingerprint, loader
from opendino.data.held_out import with_held_out
from opendino.engine import checkpoint, learning_rate, optim, parallel, precision, profiler, threads, verdict
from opendino.engine.background import BackgroundWriter
from opendino.engine.interrupt import Interrupt, Interrupted
from opendino.engine.metric_writer import MetricWriter
from opendino.engine.profiler import Profiler
from opendino.engine.run_folder import RunDirLock
from opendino.engine.run_monitor import Limits, RunMonitor
from opendino.engine.run_result import Result
from opendino.engine.throughput import Throughput
from opendino.online_eval import OnlineEval
from opendino.run_parts import MakeViews, Networks, TrainingData, build_networks, open_data, with_views
from opendino.snapshots import RunState


@dataclass(frozen=True)
class Start:
    """How a run starts.

    Attributes:
        request: The settings as the user gave them, "auto" included; None if they are not known.
        callbacks: Called during the run, on rank 0.
        checkpoint: Checkpoint to continue from, None to start.
        resuming: Whether the folder already holds this run.
    """

    request: Config | None
    callbacks: Sequence[Callback] = ()
    checkpoint: Path | None = None
    resuming: bool = False


_DAY, _STEPS_TO_ESTIMATE = 86_400, 10  # seconds; the first steps are slow


@dataclass(frozen=True)
class _Run:
    """What a run works with. Only `state` holds values that change and are saved."""

    config: ResolvedConfig
    folder: Path
    device: torch.device
    spec: ViewSpec
    networks: Networks
    data: TrainingData
    online_eval: OnlineEval | None
    state: RunState
    throughput: Throughput
    monitor: RunMonitor
    metric_writer: MetricWriter | None  # None on all ranks but the first, which alone writes
    background: BackgroundWriter
    callbacks: Sequence[Callback]  # none on other ranks


def run(config: ResolvedConfig, source: Source, folder: Path, device: torch.device, start: Start) -> Result:
    """Train from a checkpoint, or from the beginning if there is none."""
    began, new, is_main = time.monotonic(), start.checkpoint is None, distributed.rank() == 0
    request = start.request
    spec = configs.views(config)
    with waiting("building the networks"):
        networks = build_networks(config, spec, source, device, new)
    with contextlib.ExitStack() as closing:
        interrupt = closing.enter_context(Interrupt())
        closing.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.threads)
        lock = closing.enter_context(RunDirLock(folder, is_main, start.resuming))
        background = closing.enter_context(BackgroundWriter())
        data = open_data(config, spec, source, folder, device)
        with waiting("reading the images to evaluate on"):
            online_eval = OnlineEval(config, data.images, spec, device) if config.eval_images else None

        state = RunState(fingerprint=fingerprint.sample(source))
        if start.checkpoint:
            state = snapshots.restore(start.checkpoint, networks.method, networks.optimizer)
        state.world = distributed.world_size()
        # The number of threads may change during the run only if the user did not give it.
        state.threads = threads.to_state(config.threads) if request is None or request.threads == "auto" else None

        stream = closing.enter_context(contextlib.closing(with_views(config, data, spec, state.step, device)))
        # The first batch proves that the images can be read; before that nothing is written.
        first_batch = [next(stream)] if state.step < config.steps else []
        if is_main:
            _write_settings(folder, config, request)
            if new:
                existing_runs.save_keys(folder, fingerprint.key_digests(with_held_out(source)))
            closing.callback(log.write_to, None)
        metric_writer = MetricWriter(folder, -1 if new else state.step) if is_main else None
        if metric_writer:
            closing.enter_context(contextlib.closing(metric_writer))
        dtype = getattr(torch, config.precision)
        throughput = Throughput(config.batch, config.batch // distributed.world_size(), device, dtype, state.flops)
        limits = Limits(config.batch, config.steps, config.max_bad_frac, config.max_nonfinite)
        monitor = RunMonitor(folder, metric_writer, source, state.bad, limits, throughput, config.method.cures)
        parts = _Run(
            config, folder, device, spec, networks, data, online_eval, state, throughput, monitor, metric_writer,
            background, start.callbacks if is_main else (),
        )  # fmt: skip
        if new:
            _evaluate_and_save(parts, 0, evaluating=True, saving=True)
        _train(parts, itertools.chain(first_batch, stream), interrupt, lock)
        return _finish(parts, began)


def _write_settings(folder: Path, config: ResolvedConfig, request: Config | None) -> None:
    atomic_write.write(folder / "config.yaml", configs.dump(config))
    if request:
        existing_runs.save_request(folder, request)
    log.write_to(folder / "log.txt")


def _train(run: _Run, stream: Iterator[tuple[loader.Batch, MakeViews]], interrupt: Interrupt, lock: RunDirLock) -> None:
    """The training loop, from the step of `run.state` to the last one.

    Raises:
        Interrupted: A signal asked to stop; the state is saved.
    """
    config, networks, state, total, first_step = run.config, run.networks, run.state, run.config.steps, run.state.step
    start = Clock(first_step, total, run.data.batches.steps_per_epoch)
    eval_every, save_every = (_interval(every, start) for every in (config.eval_every, config.checkpoint_every))
    evaluated_on = f", evaluated on {run.online_eval.origin}" if run.online_eval else ""
    log.say(f"run folder {run.folder}, from step {first_step}{evaluated_on}")
    slowdown = threads.Slowdown() if state.threads and threads.may_change(run.device) else None
    dtype, unreadable, estimated = getattr(torch, config.precision), list[tuple[str, str]](), False
    with (
        Progress("step", total, first_step, patience=0) as progress,
        Profiler(run.folder if config.profile and distributed.rank() == 0 else None, run.device) as step_profiler,
    ):
        interrupt.finish_step = True
        for clock in (Clock(n, total, start.steps_per_epoch) for n in range(first_step, total)):
            with run.throughput.waiting(), profiler.section("wait for images"):
                batches, makers = zip(*itertools.islice(stream, config.optim.grad_accum_steps), strict=True)
            # Stochastic depth draws from torch's generator: seeding it per step makes a resumed run identical.
            torch.manual_seed(_step_seed(config.seed, clock.step, distributed.rank()))
            with compilation.compiling(config.compile), run.throughput.counting():
                # A generator, so that the crops of only one micro-batch take memory at a time.
                views = (make_views() for make_views in makers)
                tensors, numbers = step(
                    networks.model, networks.optimizer, config.optim, config.batch, clock, views, dtype
                )
            step_profiler.step()
            done = clock.step + 1
            run.monitor.step(done, tensors, numbers, [batch.indices for batch in batches])
            unreadable += [pair for batch in batches for pair in batch.bad]
            # Everything below may wait for the device, so it runs about once a second and not in every step.
            evaluating, saving = (done % every == 0 or done == total for every in (eval_every, save_every))
            if not (evaluating or saving or run.monitor.due()):
                continue
            run.background.check()
            lock.keep()
            run.monitor.record_bad_images(distributed.all_gather_object(unreadable))
            unreadable.clear()
            for row in run.monitor.flush():
                for callback in run.callbacks:
                    callback.on_step(row["step"], row)
            stopping = distributed.any_true(interrupt.asked)
            if slowdown and distributed.broadcast_object(slowdown(run.monitor.rates)):
                _measure_threads(run)
                saving = True  # so that steps computed with the new number are also resumed with it
            _evaluate_and_save(run, done, evaluating, saving or stopping)
            progress.update(done, run.monitor.line())
            if done >= first_step + _STEPS_TO_ESTIMATE and not estimated:
                estimated = True
                _warn_of_days(progress.seconds_left(), run.device)
            if stopping and done < total:
                run.background.wait()
                raise Interrupted(
                    f"Stopped at step {done} of {total}, state saved",
                    f"Continue with: {existing_runs.how_to_resume(config, run.folder)}",
                )


def _warn_of_days(seconds: float, device: torch.device) -> None:
    """Say how a run on a CPU that takes more than a day can be made shorter."""
    if device.type == "cpu" and seconds > _DAY:
        log.warn(
            f"{seconds / _DAY:.1f} days are left on this cpu. Ctrl-C stops the run. Shorter: --minutes 60, a smaller "
            f"--views.global.size or --backbone, or pretrained weights by --init"
        )


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: optim.ResolvedConfig,
    batch: int,
    clock: Clock,
    views: Iterable[Views],
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Run one optimizer step. The host never waits for the device.

    Args:
        model: The method, or its data-parallel wrapper.
        optimizer: From `engine.optim.build`.
        settings: Learning rate, weight decay, clipping.
        batch: Images per step over all ranks; scales the learning rate.
        clock: The step to run.
        views: `settings.grad_accum_steps` micro-batches of views, whose gradients are accumulated.
        dtype: Autocast dtype of the forward pass.

    Returns:
        Scalars on the device (the method's metrics averaged over ranks, "grad_norm" before clipping, "ok": False if the
        step was skipped), and scalars on the host (the method's schedules, "lr", "weight_decay").
    """
    method, num_micro_batches = parallel.unwrap(model), settings.grad_accum_steps
    lr, weight_decay = learning_rate.set_lr_and_weight_decay(optimizer, settings, clock, batch)
    outputs, buffers = [], optim.BatchNormBuffers(method)
    for number, micro_batch in enumerate(views, start=1):
        with parallel.accumulating(model, last=number == num_micro_batches):
            with profiler.section("forward"), precision.autocast(micro_batch.labels.device, dtype):
                output = model(micro_batch, clock)  # student and teacher forward passes, and the loss
            with profiler.section("backward"):
                loss = output.loss / num_micro_batches  # so that accumulated gradients are those of the mean loss
                loss.backward()
        outputs.append(output)
    with profiler.section("optimizer"):
        method.before_step(clock)
        norm = optim.clip(method.student, settings.clip, settings.clip_by)
        finite = torch.stack([output.loss.detach() for output in outputs]).isfinite().all() & norm.isfinite()
        ok = distributed.all_true(finite)  # if one rank's loss is not finite, all ranks skip the step and stay equal
        optim.step(optimizer, ok)  # updates the student
    with profiler.section("teacher EMA"):
        buffers.restore(ok)
        method.after_step(clock, ok)  # updates the teacher
    names = list(outputs[0].metrics)
    # [micro-batches, metrics]: one stacked tensor, so that one all-reduce averages all metrics over the ranks
    metrics = torch.stack([torch.stack([output.metrics[name] for name in names]) for output in outputs])
    means = distributed.all_reduce_mean(metrics.mean(0))
    tensors = dict(zip(names, means, strict=True)) | {"grad_norm": norm, "ok": ok}
    return tensors, outputs[0].numbers | {"lr": lr, "weight_decay": weight_decay}


def _evaluate_and_save(run: _Run, done: int, evaluating: bool, saving: bool) -> None:
    """Evaluate the networks, write a checkpoint, or both; collective: all ranks share the evaluation."""
    if not (evaluating or saving):
        return
    with run.throughput.paused():
        method = run.networks.full_method()
        if run.online_eval and evaluating:
            quality, run.state.baselines = run.online_eval(method, run.state.baselines)
            run.monitor.record_evaluation(done, quality)
            for callback in run.callbacks:
                callback.on_evaluate(done, quality)
        if saving:
            tensors = checkpoint.snapshot(method, run.networks.optimizer)
            run.state.step, run.state.flops = done, run.throughput.flops
            if run.metric_writer:
                run.metric_writer.sync()  # metrics.jsonl must hold all rows up to the checkpoint
                classes = run.data.images.source.classes
                run.background.submit(
                    snapshots.prepare_write(run.folder, run.config, method, tensors, run.spec, classes, run.state)
                )
                if run.callbacks:
                    run.background.wait()
                for callback in run.callbacks:
                    callback.on_checkpoint(done, run.folder)
        distributed.barrier()


def _measure_threads(run: _Run) -> None:
    """Measure the fastest number of threads again, and use it from now on."""
    with run.throughput.paused():
        number = resolve.measured_threads(run.config, torch.get_num_threads(), run.device)
    torch.set_num_threads(number)
    run.state.threads = threads.to_state(number)


def _finish(run: _Run, began: float) -> Result:
    """Write the report and return the result, once all steps are done."""
    run.background.wait()
    quality, online_eval = run.monitor.quality, run.online_eval
    if not quality and online_eval:  # resumed after the last step
        quality = online_eval(run.networks.full_method(), run.state.baselines)[0]
    run.data.images.discard()
    is_main, metrics = distributed.rank() == 0, run.folder / "metrics.jsonl"
    if run.config.report and is_main:
        _report(run.folder)
    cures = run.config.method.cures
    found = distributed.broadcast_object(
        verdict.of_rows(metrics_log.sampled(metrics), run.config.steps, cures) if is_main else None
    )
    assert found is not None
    names = ("knn", "accuracy", "effective_rank", "balanced_accuracy", "standard_error", "accuracy_balanced")
    scores: dict[str, Any] = {name: quality.get(name) for name in (*names, "majority", "num_queries", "judged_on")}
    return Result(
        run=str(run.folder),
        steps=run.config.steps,
        seconds=time.monotonic() - began,
        **run.throughput.summary(),
        **scores,
        collapse=found.collapse,
        against_start=None,
        verdict=found.name,
        evidence=found.evidence,
        cure=found.cure,
    )


def _report(folder: Path) -> None:
    """Write report.html. An error is only a warning, because the run itself is complete."""
    try:
        with distributed.single_process():
            log.say(f"report: {report.write(folder)}")
    except Exception as error:
        log.warn(f"no report was written: {error}")


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a step's stochastic depth, a function of the step and not of how often the run was resumed."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def _interval(every: str, clock: Clock) -> int:
    """Steps between two evaluations or checkpoints; a percentage of the run gives at least ten steps."""
    return max(clock.in_steps(every), 10 if duration.parse(every)[1] == "%" else 1)
