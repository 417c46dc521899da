"""Training, from top to bottom: resolve the config, build the networks, restore the checkpoint, run the loop.

`train` and `resume` are the entry points, `_run` holds the loop, `step` is one optimizer step.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opendino import config as configs
from opendino import extend, report, resolve, snapshots
from opendino.config import Config
from opendino.core import atomic_write, compilation, distributed, duration, log, metrics_log
from opendino.core.contracts import Method, Source
from opendino.core.errors import UserError
from opendino.core.types import Clock, Views, ViewSpec
from opendino.data import fingerprint, loader
from opendino.data.cache import DecodedImages
from opendino.data.decode import working_area_px
from opendino.data.device_cache import DeviceCache
from opendino.engine import checkpoint, launch, optim, parallel, precision, profiler, threads
from opendino.engine.background import BackgroundWriter
from opendino.engine.collapse_detection import COLLAPSES, examine, outcome
from opendino.engine.interrupt import Interrupt, Interrupted
from opendino.engine.metric_writer import MetricWriter
from opendino.engine.profiler import Profiler
from opendino.engine.progress import Progress
from opendino.engine.run_folder import RunDirLock
from opendino.engine.run_monitor import RunMonitor
from opendino.engine.throughput import Throughput
from opendino.online_eval import OnlineEval
from opendino.views.multi_crop import multi_crop


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        run: The run's folder.
        steps: Optimizer steps of the whole run.
        seconds: Wall time of this call.
        images_per_second: Training throughput of this call, without evaluations and checkpoints.
        data_wait: Fraction of that time spent waiting for images, 0 to 1.
        mfu: Model FLOPs utilization, 0 to 1, see `Throughput.summary`.
        peak_memory_bytes: Peak memory of the GPU, or else of this process.
        knn: k-NN accuracy in percent of "teacher", "student", raw "pixels", and of the "untrained" network or, with
            `init`, the network at the "start"; None without labels. The first entry is the network to use.
        accuracy: Accuracy of the classifiers in percent, for methods that train them.
        effective_rank: Effective rank of the features of the network to use.
        collapse: Name of the collapse at the end, None for a healthy run.
        against_start: With `init`: whether the network is better than before, see `OnlineEval.against_start`.
        balanced_accuracy, standard_error: For each entry of `knn`, in percent, see `core.accuracy`.
        accuracy_balanced: Balanced accuracy for each entry of `accuracy`, in percent.
        majority: Percentage of the most frequent class among the query images.
        num_queries: Number of query images.
        verdict: "learned", "not shown to have learned" or "collapsed: NAME".
        evidence: The metrics the verdict is based on, one sentence.
    """

    run: str
    steps: int
    seconds: float
    images_per_second: float
    data_wait: float
    mfu: float
    peak_memory_bytes: int
    knn: dict[str, float] | None
    accuracy: dict[str, float] | None
    effective_rank: float | None
    collapse: str | None
    against_start: dict[str, Any] | None
    balanced_accuracy: dict[str, float] | None
    standard_error: dict[str, float] | None
    accuracy_balanced: dict[str, float] | None
    majority: float | None
    num_queries: int | None
    verdict: str
    evidence: str


def train(config: Config) -> Result:
    """Start a training run; with several devices (`config.devices`) in one new process per device.

    If the run folder already holds a run, `config.resume` continues it, up to a new length if one is given.

    Args:
        config: Settings of the run; "auto" values are resolved from the data and the device.

    Returns:
        Result of the run; models, metrics and checkpoints are in its folder.

    Raises:
        UserError: The run cannot start (nothing is left behind), or had to stop (its last state is saved).
    """
    log.write_to(None)  # a run that did not start leaves no messages to the next one
    if launch.number(config.devices, config.device) > 1:
        with tempfile.TemporaryDirectory() as home:
            (Path(home) / "settings.yaml").write_text(configs.dump(config), encoding="utf-8")
            return Result(**launch.command("train", "--config", f"{home}/settings.yaml"))
    with parallel.process_group(config.device) as device:
        folder, request = resolve.folder(config), resolve.absolute_paths(config)
        if distributed.broadcast_object((folder / "config.yaml").is_file()):
            return _resume(folder, device, request=request, **extend.requested_length(folder, request))
        config, source = resolve.resolve_config(request, device)
        return _run(config, source, folder, device, None, request)


def resume(
    run: str | Path, *, steps: int | None = None, epochs: float | None = None, devices: int | str | None = None
) -> Result:
    """Resume a run exactly where it stopped (weights, order of images, random choices), on any number of devices.

    Args:
        run: The run's folder.
        steps, epochs: New length of the whole run; give at most one, see `extend.change_length`. None keeps the length.
        devices: Number of devices of this machine, or "auto"; None keeps the number.

    Raises:
        UserError: There is no such run, its data has changed, or it had to stop again.
    """
    config = resolve.read_run_config(run)
    if launch.number(config.devices if devices is None else devices, config.device) > 1:
        given = {"--steps": steps, "--epochs": epochs, "--devices": devices}
        flags = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
        return Result(**launch.command("resume", str(run), *flags))
    with parallel.process_group(config.device) as device:
        return _resume(Path(run).expanduser(), device, steps, epochs)


def _resume(
    folder: Path,
    device: torch.device,
    steps: int | None = None,
    epochs: float | None = None,
    request: Config | None = None,
) -> Result:
    config, request = resolve.read_run_config(folder), request or extend.read_request(folder)
    checkpoint_path, state = distributed.broadcast_object(checkpoint.newest(folder)), dict[str, Any]()
    if checkpoint_path is not None:
        state = checkpoint.state(checkpoint_path)
        config = resolve.rescale(config, state.get("world", 1), device)
    elif any((folder / "checkpoints").glob("step_*")):
        raise UserError(f"'{folder}' has no readable checkpoint", "Start a new run with another --out")
    source = resolve.images(config)
    config, message = extend.change_length(config, len(source), state.get("step", 0), steps, epochs)
    if message:
        log.say(message)
    config = resolve.resumed_threads(config, state.get("threads"), device)
    assert config.steps
    compilation.choose(config.compile, device, config.steps)  # another machine may have no compiler
    # A run that was killed before its first checkpoint starts from the beginning.
    return _run(config, source, folder, device, checkpoint_path, request, resuming=True)


def _run(
    config: Config,
    source: Source,
    folder: Path,
    device: torch.device,
    checkpoint_path: Path | None,
    request: Config | None,
    resuming: bool = False,
) -> Result:
    """Train from a checkpoint, or from the start if there is none.

    Args:
        config: Without "auto".
        source: The training images.
        folder: The run's folder.
        device: This process's device.
        checkpoint_path: Checkpoint to continue from, None to start.
        request: The settings as the user gave them, "auto" included; None if they are not known.
        resuming: Whether the folder already holds this run.
    """
    began, new = time.monotonic(), checkpoint_path is None
    assert config.steps and isinstance(config.batch, int) and isinstance(config.optim.grad_accum_steps, int)
    assert isinstance(config.workers, int) and isinstance(config.compile, bool) and isinstance(config.threads, int)
    total, num_micro_batches, is_main = config.steps, config.optim.grad_accum_steps, distributed.rank() == 0
    auto_threads = request is None or request.threads == "auto"  # only then may the number of threads change

    # ---- networks: the student is trained by gradients, the teacher is an EMA of it
    torch.manual_seed(config.seed)
    spec = configs.views(config)
    method = resolve.make_method(config, spec, resolve.first_backbone if new else resolve.make_backbone)
    resolve.check_classes(method, spec, source)
    how = resolve.choose_parallel(config, spec, method, device)
    model, full_method = parallel.prepare_distributed(method.train(), device, how, config.sync_batch_norm)
    optimizer = optim.build(config.optim, method.student)

    with contextlib.ExitStack() as closing:
        interrupt = closing.enter_context(Interrupt())
        closing.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.threads)
        run_lock = closing.enter_context(RunDirLock(folder, is_main, resuming))
        background = closing.enter_context(BackgroundWriter())

        # ---- data: decoded images; every random choice is a function of (seed, epoch, image)
        images = DecodedImages(source, working_area_px(spec), config.cache, folder)
        device_cache = DeviceCache(images, device, config.workers) if config.cache == "device" else None
        batches = loader.Batches(
            device_cache or images, spec, config.seed, config.batch, num_micro_batches, distributed.rank(),
            distributed.world_size(),
        )  # fmt: skip
        online_eval = OnlineEval(config, images, spec, device) if config.eval_images else None

        # ---- state of the run: new, or from the checkpoint
        state: dict[str, Any] = {"step": 0, "bad": {}, "baselines": {}} | fingerprint.sample(source)
        if checkpoint_path is not None:
            state = snapshots.restore(checkpoint_path, method, optimizer, source)
        state["world"] = distributed.world_size()
        state["threads"] = threads.to_state(config.threads) if auto_threads else None
        first_step: int = state["step"]
        prefetched = loader.batches(
            batches, first_step * num_micro_batches, total * num_micro_batches, config.workers, device.type == "cuda"
        )
        stream = closing.enter_context(contextlib.closing(prefetched))
        # The first batch proves that the images can be read; before that nothing is written.
        first_batch = [next(stream)] if first_step < total else []
        stream = itertools.chain(first_batch, stream)

        metric_writer = None
        if is_main:
            atomic_write.write(folder / "config.yaml", configs.dump(config))
            if request:
                extend.save_request(folder, request)
            log.write_to(folder / "log.txt")
            closing.callback(log.write_to, None)
            metric_writer = closing.enter_context(contextlib.closing(MetricWriter(folder, -1 if new else first_step)))
        dtype = getattr(torch, config.precision)
        throughput = Throughput(
            config.batch, config.batch // distributed.world_size(), device, dtype, state.get("flops", 0.0)
        )
        monitor = RunMonitor(
            folder, metric_writer, source, config.batch, total, state["bad"], config.max_bad_frac, config.max_nonfinite,
            throughput,
        )  # fmt: skip

        def evaluate_and_save(done: int, evaluating: bool, saving: bool) -> None:
            if not (evaluating or saving):
                return
            with throughput.paused():  # collective: all ranks share the evaluation and gather sharded weights
                complete = full_method()
                if online_eval and evaluating:
                    quality, state["baselines"] = online_eval(complete, state["baselines"])
                    monitor.record_evaluation(done, quality)
                if saving:
                    tensors = checkpoint.snapshot(complete, optimizer)
                    state["step"], state["flops"] = done, throughput.flops
                    if metric_writer:
                        metric_writer.sync()  # metrics.jsonl must hold all rows up to the checkpoint
                        background.submit(
                            snapshots.prepare_write(folder, config, complete, tensors, spec, source.classes, state)
                        )
                distributed.barrier()

        if new:
            evaluate_and_save(0, evaluating=True, saving=True)
        start = Clock(first_step, total, batches.steps_per_epoch)
        eval_every, save_every = (_interval(every, start) for every in (config.eval_every, config.checkpoint_every))
        evaluated_on = f", evaluated on {online_eval.origin}" if online_eval else ""
        log.say(f"run folder {folder}, from step {first_step}{evaluated_on}")
        progress = closing.enter_context(contextlib.closing(Progress(total, first_step, is_main)))
        step_profiler = closing.enter_context(Profiler(folder if config.profile and is_main else None, device))
        slowdown = threads.Slowdown() if auto_threads and threads.may_change(device) else None
        interrupt.finish_step = True

        # ---- training loop
        unreadable: list[tuple[str, str]] = []
        for clock in (Clock(n, total, batches.steps_per_epoch) for n in range(first_step, total)):
            used: list[loader.Batch] = []
            views = _micro_batches(stream, used, num_micro_batches, spec, device, device_cache, throughput)
            # Stochastic depth draws from torch's generator: seeding it per step makes a resumed run identical.
            torch.manual_seed(_step_seed(config.seed, clock.step, distributed.rank()))
            with compilation.compiling(config.compile), throughput.counting():
                tensors, numbers = step(
                    model, method, optimizer, config.optim, config.batch, clock, views, num_micro_batches, dtype
                )
            step_profiler.step()
            done = clock.step + 1
            monitor.step(done, tensors, numbers, [batch.indices for batch in used])
            unreadable += [pair for batch in used for pair in batch.bad]
            # Everything below may wait for the device, so it runs about once a second and not in every step.
            evaluating, saving = (done % every == 0 or done == total for every in (eval_every, save_every))
            if evaluating or saving or monitor.due():
                background.check()
                run_lock.keep()
                monitor.record_bad_images(distributed.all_gather_object(unreadable))
                unreadable.clear()
                monitor.flush()
                stopping = distributed.any_true(interrupt.asked)
                if slowdown and distributed.broadcast_object(slowdown(monitor.rates)):
                    with throughput.paused():
                        number = resolve.measured_threads(config, torch.get_num_threads(), device)
                    torch.set_num_threads(number)
                    # Save now, so that steps computed with the new number are also resumed with it.
                    state["threads"], saving = threads.to_state(number), True
                evaluate_and_save(done, evaluating, saving or stopping)
                progress.update(done, monitor.line())
                if stopping and done < total:
                    background.wait()
                    raise Interrupted(
                        f"Stopped at step {done} of {total}, state saved", f"Continue with: opendino resume {folder}"
                    )

        # ---- end: last evaluation, report, result
        if first_step == total:  # resumed after its last step
            monitor.quality = online_eval(full_method(), state["baselines"])[0] if online_eval else {}
        background.wait()
        images.discard()
        if config.report and is_main:
            _report(folder)
        diagnosis = distributed.broadcast_object(
            examine(metrics_log.sampled(folder / "metrics.jsonl"), total) if is_main else None
        )
        assert diagnosis is not None
        collapse = diagnosis.name if diagnosis.name in COLLAPSES else monitor.verdict.name if monitor.verdict else None
        return Result(
            run=str(folder),
            steps=total,
            seconds=time.monotonic() - began,
            **throughput.summary(),
            knn=monitor.quality.get("knn"),
            accuracy=monitor.quality.get("accuracy"),
            effective_rank=monitor.quality.get("effective_rank"),
            collapse=collapse,
            against_start=online_eval.against_start(monitor.quality, state["baselines"]) if online_eval else None,
            balanced_accuracy=monitor.quality.get("balanced_accuracy"),
            standard_error=monitor.quality.get("standard_error"),
            accuracy_balanced=monitor.quality.get("accuracy_balanced"),
            majority=monitor.quality.get("majority"),
            num_queries=monitor.quality.get("num_queries"),
            verdict=outcome(diagnosis, collapse),
            evidence=diagnosis.evidence,
        )


def step(
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    settings: optim.Config,
    batch: int,
    clock: Clock,
    views: Iterable[Views],
    num_micro_batches: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Run one optimizer step. The host never waits for the device.

    Args:
        model: The method, or its data-parallel wrapper.
        method: The method itself.
        optimizer: From `engine.optim.build`.
        settings: Learning rate, weight decay, clipping.
        batch: Images per step over all ranks; scales the learning rate.
        clock: The step to run.
        views: `num_micro_batches` micro-batches of views.
        num_micro_batches: Number of micro-batches whose gradients are accumulated.
        dtype: Autocast dtype of the forward pass.

    Returns:
        Scalars on the device (the method's metrics averaged over ranks, "grad_norm" before clipping, "ok": False if the
        step was skipped), and scalars on the host (the method's schedules, "lr", "weight_decay").
    """
    lr, weight_decay = optim.set_schedules(optimizer, settings, clock, batch)
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


def _micro_batches(
    stream: Iterator[loader.Batch],
    used: list[loader.Batch],
    num_micro_batches: int,
    spec: ViewSpec,
    device: torch.device,
    device_cache: DeviceCache | None,
    throughput: Throughput,
) -> Iterator[Views]:
    """Yield the next micro-batches as views on the device; appends the loader's batches to `used`."""
    for _ in range(num_micro_batches):
        with throughput.waiting(), profiler.section("wait for images"):
            batch = next(stream)
        used.append(batch)
        with profiler.section("crops"):
            on_device = batch.to(device)
            if device_cache:
                on_device = device_cache.fill(on_device)
            crops = multi_crop(on_device.canvas, on_device.draws, spec)
        yield Views(crops, on_device.labels, on_device.indices, spec.num_labeled(len(batch.indices)))


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
    number = duration.steps(every, total_steps=clock.total_steps, steps_per_epoch=clock.steps_per_epoch)
    return max(number, 10 if duration.parse(every)[1] == "%" else 1)
