"""The story of training, top to bottom: decide, build, restore, loop."""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import time
import types
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
    """What a run came to.

    Attributes:
        run: Its folder.
        steps: Optimizer steps done in all.
        seconds: Wall time of this call.
        images_per_second: Training speed of this call, evaluations and checkpoints left out.
        data_wait: Share of that time spent waiting for images.
        mfu: Share of a large matrix product's speed, see `Speed.so_far`.
        peak_memory_bytes: Of the GPU where there is one, else of this process.
        knn: k-NN accuracy in percent of "teacher", "student", raw "pixels" and the "untrained" network, or the one it
            was at the "start"; None without labels. The first is the network to use.
        accuracy: Of the classifiers in percent, where the method trains some.
        effective_rank: Of the features of the network to use.
        collapse: Name of a collapse that stood at the end, None for a healthy run.
        against_start: Whether it is better than the weights it was given at first, see `Judge.against_start`.
        balanced_accuracy, standard_error: Of `knn`, see `core.accuracy`.
        accuracy_balanced: Of `accuracy`.
        majority, num_queries: The share of the most frequent class among the images classified; how many these are.
        verdict: "learned", "not shown to have learned" or "collapsed: NAME".
        evidence: The numbers it rests on, one sentence.
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
    """Start a run; on several devices (`config.devices`), in processes that are started for it.

    Where the run folder holds a run already, `config.resume` continues it; another length makes it longer.

    Raises:
        UserError: It cannot start (nothing is left behind), or had to stop (its last state is saved).
    """
    if launch.number(config.devices, config.device) > 1:
        with tempfile.TemporaryDirectory() as home:
            (Path(home) / "settings.yaml").write_text(configs.dump(config), encoding="utf-8")
            return Result(**launch.command("train", "--config", f"{home}/settings.yaml"))
    with parallel.process_group(config.device) as device:
        folder, request = resolve.folder(config), resolve.located(config)
        if distributed.broadcast_object((folder / "config.yaml").is_file()):
            return _resume(folder, device, request=request, **extend.asked_length(folder, request))
        config, source = resolve.resolve_config(request, device)
        return _run(config, source, folder, device, None, request)


def resume(
    run: str | Path, *, steps: int | None = None, epochs: float | None = None, devices: int | str | None = None
) -> Result:
    """Continue a run where it stopped, exactly: weights, order of images, random choices; on any number of devices.

    Args:
        run: Its folder.
        steps, epochs: Another length of the whole run, in one of the two, see `extend.longer`; as it was where absent.
        devices: How many of this machine's devices, or "auto"; as many as before where absent.

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
    config, request = resolve.read_run_config(folder), request or extend.remembered(folder)
    path, state = distributed.broadcast_object(checkpoint.newest(folder)), dict[str, Any]()
    if path is not None:
        state = checkpoint.state(path)
        config = resolve.rescale(config, state.get("world", 1), device)
    elif any((folder / "checkpoints").glob("step_*")):
        raise UserError(f"'{folder}' has no readable checkpoint", "Start anew with another --out")
    source = resolve.images(config)
    config, said = extend.longer(config, len(source), state.get("step", 0), steps, epochs)
    if said:
        log.say(said)
    config = resolve.resumed_threads(config, state.get("threads"), device)
    assert config.steps
    compilation.choose(config.compile, device, config.steps)  # another machine may have no compiler
    # Killed before its first checkpoint, a run has lost nothing and begins again.
    return _run(config, source, folder, device, path, request, again=True)


def _run(
    config: Config,
    source: Source,
    folder: Path,
    device: torch.device,
    path: Path | None,
    request: Config | None,
    again: bool = False,
) -> Result:
    """Train from the checkpoint at `path` on, from the start where there is none; `again` in a folder of its own."""
    began, new = time.monotonic(), path is None
    assert config.steps and isinstance(config.batch, int) and isinstance(config.optim.grad_accum_steps, int)
    assert isinstance(config.workers, int) and isinstance(config.compile, bool) and isinstance(config.threads, int)
    total, parts, leader = config.steps, config.optim.grad_accum_steps, distributed.rank() == 0
    measured = request is None or request.threads == "auto"  # the number of threads, which then may change

    # ---- networks: a student that learns and a teacher that follows it
    torch.manual_seed(config.seed)
    spec = configs.views(config)
    method = resolve.make_method(config, spec, resolve.first_backbone if new else resolve.make_backbone)
    resolve.check_classes(method, spec, source)
    how = resolve.choose_parallel(config, spec, method, device)
    model, whole = parallel.prepare_distributed(method.train(), device, how, config.sync_batch_norm)
    optimizer = optim.build(config.optim, method.student)

    with contextlib.ExitStack() as closing:
        interrupt = closing.enter_context(Interrupt())
        closing.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.threads)
        claim = closing.enter_context(RunDirLock(folder, leader, again))
        background = closing.enter_context(BackgroundWriter())

        # ---- data: whole images, and random choices that depend on (seed, epoch, image) alone
        images = DecodedImages(source, working_area_px(spec), config.cache, folder)
        resident = DeviceCache(images, device, config.workers) if config.cache == "device" else None
        batches = loader.Batches(
            resident or images, spec, config.seed, config.batch, parts, distributed.rank(), distributed.world_size()
        )
        judge = OnlineEval(config, images, spec, device) if config.eval_images else None

        # ---- where the run stands
        state: dict[str, Any] = {"step": 0, "bad": {}, "baselines": {}} | fingerprint.sample(source)
        if path is not None:
            state = snapshots.restore(path, method, optimizer, source)
        state["world"], state["threads"] = distributed.world_size(), threads.known(config.threads) if measured else None
        first: int = state["step"]
        ahead = loader.batches(batches, first * parts, total * parts, config.workers, device.type == "cuda")
        stream = closing.enter_context(contextlib.closing(ahead))
        # The first batch proves that the images can be read; before that nothing is written.
        head = [next(stream)] if first < total else []
        stream = itertools.chain(head, stream)

        meters = None
        if leader:
            atomic_write.write(folder / "config.yaml", configs.dump(config))
            if request:
                extend.remember(folder, request)
            log.write_to(folder / "log.txt")
            closing.callback(log.write_to, None)
            meters = closing.enter_context(contextlib.closing(MetricWriter(folder, -1 if new else first)))
        dtype = getattr(torch, config.precision)
        speed = Throughput(
            config.batch, config.batch // distributed.world_size(), device, dtype, state.get("flops", 0.0)
        )
        watch = RunMonitor(
            folder, meters, source, config.batch, total, state["bad"], config.max_bad_frac, config.max_nonfinite, speed
        )

        def judge_and_save(done: int, judging: bool, saving: bool) -> None:
            if not (judging or saving):
                return
            with speed.paused():  # every rank takes part: in judging, and in gathering what is parted among them
                complete = whole()
                if judge and judging:
                    quality, state["baselines"] = judge(complete, state["baselines"])
                    watch.record_evaluation(done, quality)
                if saving:
                    tensors = checkpoint.snapshot(complete, optimizer)
                    state["step"], state["flops"] = done, speed.flops
                    if meters:
                        meters.sync()  # a checkpoint must never be ahead of its rows
                        written = snapshots.prepared(folder, config, complete, tensors, spec, source.classes, state)
                        background.submit(written)
                distributed.barrier()

        if new:
            judge_and_save(0, judging=True, saving=True)
        start = Clock(first, total, batches.steps_per_epoch)
        judge_every, save_every = (_interval(every, start) for every in (config.eval_every, config.checkpoint_every))
        log.say(f"run folder {folder}, from step {first}{f', judged on {judge.origin}' if judge else ''}")
        progress = closing.enter_context(contextlib.closing(Progress(total, first, leader)))
        profile = closing.enter_context(Profiler(folder if config.profile and leader else None, device))
        slowdown = threads.Slowdown() if measured and threads.free(device) else None
        interrupt.finish_step = True

        # ---- the loop
        unread: list[tuple[str, str]] = []
        for clock in (Clock(n, total, batches.steps_per_epoch) for n in range(first, total)):
            taken: list[loader.Batch] = []
            views = _views(stream, taken, parts, spec, device, resident, speed)
            torch.manual_seed(_chance(config.seed, clock.step, distributed.rank()))
            with compilation.compiling(config.compile), speed.counting():
                tensors, numbers = step(
                    model, method, optimizer, config.optim, config.batch, clock, views, parts, dtype
                )
            profile.step()
            done = clock.step + 1
            watch.step(done, tensors, numbers, [batch.indices for batch in taken])
            unread += [pair for batch in taken for pair in batch.bad]
            judging, saving = (done % every == 0 or done == total for every in (judge_every, save_every))
            if judging or saving or watch.due():
                background.check()
                claim.keep()
                watch.record_bad_images(distributed.all_gather_object(unread))
                unread.clear()
                watch.look()
                stopping = distributed.any_true(interrupt.asked)
                if slowdown and distributed.broadcast_object(slowdown(watch.rates)):
                    with speed.paused():
                        number = resolve.measured_threads(config, torch.get_num_threads(), device)
                    torch.set_num_threads(number)
                    # Saved at once: what is computed with the new number is resumed with it.
                    state["threads"], saving = threads.known(number), True
                judge_and_save(done, judging, saving or stopping)
                progress.update(done, watch.line())
                if stopping and done < total:
                    background.wait()
                    raise Interrupted(
                        f"Stopped at step {done} of {total}, state saved", f"Go on with: opendino resume {folder}"
                    )

        # ---- the end
        if first == total:  # resumed after its last step
            watch.quality = judge(whole(), state["baselines"])[0] if judge else {}
        background.wait()
        images.discard()
        if config.report and leader:
            _report(folder)
        found = distributed.broadcast_object(
            examine(metrics_log.sampled(folder / "metrics.jsonl"), total) if leader else None
        )
        assert found is not None
        collapse = found.name if found.name in COLLAPSES else watch.verdict.name if watch.verdict else None
        return Result(
            run=str(folder),
            steps=total,
            seconds=time.monotonic() - began,
            **speed.summary(),
            knn=watch.quality.get("knn"),
            accuracy=watch.quality.get("accuracy"),
            effective_rank=watch.quality.get("effective_rank"),
            collapse=collapse,
            against_start=judge.against_start(watch.quality, state["baselines"]) if judge else None,
            balanced_accuracy=watch.quality.get("balanced_accuracy"),
            standard_error=watch.quality.get("standard_error"),
            accuracy_balanced=watch.quality.get("accuracy_balanced"),
            majority=watch.quality.get("majority"),
            num_queries=watch.quality.get("num_queries"),
            verdict=outcome(found, collapse),
            evidence=found.evidence,
        )


def step(
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    settings: optim.Config,
    batch: int,
    clock: Clock,
    views: Iterable[Views],
    parts: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One optimizer step. The host never waits for the device.

    Args:
        model: The method, or its data-parallel wrapper.
        method: The method itself.
        optimizer: From `engine.optim.build`.
        settings: Learning rate, weight decay, clipping.
        batch: Images per step over all ranks, which scales the learning rate.
        clock: The step to do.
        views: `parts` batches of views.
        parts: In how many the step is worked off.
        dtype: Of the networks' matrix products.

    Returns:
        Scalars on the device (the method's metrics, "grad_norm", "ok": whether the step counted), and of the host
        (the method's schedules, "lr", "weight_decay").
    """
    lr, weight_decay = optim.set_schedules(optimizer, settings, clock, batch)
    outputs, buffers = [], optim.BatchNormBuffers(method)
    for number, part in enumerate(views, start=1):
        with parallel.accumulating(model, last=number == parts):
            with profiler.part("forward"), precision.autocast(part.labels.device, dtype):
                output = model(part, clock)
            with profiler.part("backward"):
                (output.loss / parts).backward()
        outputs.append(output)
    with profiler.part("optimizer"):
        method.before_step(clock)
        norm = optim.clip(method.student, settings.clip, settings.clip_by)
        finite = torch.stack([output.loss.detach() for output in outputs]).isfinite().all() & norm.isfinite()
        ok = distributed.all_true(finite)  # one rank's bad batch voids the step of all, so that they stay equal
        optim.step(optimizer, ok)
    with profiler.part("teacher's average"):
        buffers.restore(ok)
        method.after_step(clock, ok)
    names = list(outputs[0].metrics)
    table = torch.stack([torch.stack([output.metrics[name] for name in names]) for output in outputs])
    tensors = dict(zip(names, distributed.all_reduce_mean(table.mean(0)), strict=True)) | {"grad_norm": norm, "ok": ok}
    return tensors, outputs[0].numbers | {"lr": lr, "weight_decay": weight_decay}


def _views(
    stream: Iterator[loader.Batch],
    taken: list[loader.Batch],
    parts: int,
    spec: ViewSpec,
    device: torch.device,
    resident: DeviceCache | None,
    speed: Throughput,
) -> Iterator[Views]:
    """The next `parts` batches as views on the device; the batches themselves are noted in `taken`."""
    for _ in range(parts):
        with speed.waiting(), profiler.part("wait for images"):
            batch = next(stream)
        taken.append(batch)
        with profiler.part("crops"):
            there = batch.to(device)
            if resident:
                there = resident.fill(there)
            seen = multi_crop(there.canvas, there.draws, spec)
        yield Views(seen, there.labels, there.indices, spec.num_labeled(len(batch.indices)))


def _report(folder: Path) -> None:
    """The page about the run. Whatever it fails at, the run is done."""
    try:
        with distributed.single_process():
            log.say(f"report: {report.write(folder)}")
    except Exception as error:
        log.warn(f"no report was written: {error}")


def _chance(seed: int, step: int, rank: int) -> int:
    """The seed of a step's drop-path: so chance too depends on where a run stands, not on how it got there."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def _interval(every: str, clock: Clock) -> int:
    """Steps between two occasions; a share of a run means ten steps at least, so that short runs are not all pauses."""
    number = duration.steps(every, total_steps=clock.total_steps, steps_per_epoch=clock.steps_per_epoch)
    return max(number, 10 if duration.parse(every)[1] == "%" else 1)


class _Callable(types.ModuleType):
    """`opendino.training` is this module once something has imported it, and must still be the function."""

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _Callable
