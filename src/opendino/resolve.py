"""Before a run: look at the data and turn every "auto" into a value, saying why."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from opendino import config as configs
from opendino.config import Config
from opendino.core import auto_values, compilation, distributed, log, ranges
from opendino.core.contracts import Backbone, Method, Source
from opendino.core.errors import UserError, first_line
from opendino.core.types import Facts, ViewSpec
from opendino.data.cache import decide as decide_cache
from opendino.data.dataset_probe import probe_dataset
from opendino.data.decode import working_area_px
from opendino.data.labels import relabel
from opendino.data.open_source import absolute, open_source
from opendino.engine import batch_size_finder, precision, sizing, threads
from opendino.engine.activation_checkpointing import checkpoint_activations
from opendino.engine.run_folder import LEFT_AT_THE_START
from opendino.models import build, load
from opendino.models.adapt import adapt
from opendino.models.vit_layers import drop_on_subset

_SMALL_NETWORK = 15_000_000  # parameters


def resolve_config(config: Config, device: torch.device) -> tuple[Config, Source]:
    """The run's settings without any "auto", and its images.

    Raises:
        UserError: The images cannot be trained on, or settings contradict each other.
    """
    config = located(config)
    source = images(config)
    workers, why_workers = sizing.workers(config.workers, device)
    looked = probe_dataset(source, config.max_bad_frac, workers=workers)
    config, convolutional, reasons = _network(config, looked.short_side_px, device)
    epochs, why_epochs = _epochs(config, len(source), looked.short_side_px if convolutional else None)
    reasons.append(f"epochs = {epochs:.3g}: {why_epochs}")
    seen = math.inf if config.steps else epochs * len(source)
    batch, why_batch = sizing.batch(config.batch, len(source), seen, device)
    steps_per_epoch = len(source) // batch
    steps = config.steps or max(1, round(epochs * steps_per_epoch))
    num_classes = len(source.classes)
    facts = Facts(
        len(source), looked.short_side_px, num_classes, batch, steps, steps_per_epoch, device.type,
        build.patch_px(config.backbone), convolutional,
    )  # fmt: skip
    dtype, why_dtype = precision.choose(config.precision, device)
    compiling, why_compiling = compilation.choose(config.compile, device, steps)
    config, resolved = configs.resolve_parts(config, facts)
    reasons += resolved
    spec = configs.views(config)
    with torch.device("meta"):  # networks without memory, to ask how much the real ones take
        planned = make_method(config, spec, make_backbone)
    parted = distributed.world_size() > 1 and config.parallel != "ddp"
    sizing.check_fits(sizing.memory(planned, config.optim.name, 0.0, parted), device)
    area_px = min(looked.area_px, working_area_px(spec))
    gpu_bytes = sizing.free_bytes(device) if device.type == "cuda" else 0.0
    cache, why_cache = decide_cache(
        config.cache, len(source), 3 * area_px, steps / steps_per_epoch, gpu_bytes, config.out
    )
    parts, why_parts = _parts(config, spec, batch, dtype, device)
    number, why_threads = threads.choose(config.threads, device, workers, _work(config, spec))
    judged, why_judged = _eval_images(config.eval_images, len(source), steps * batch)
    reasons += [
        f"batch = {batch}: {why_batch}",
        f"optim.grad_accum_steps = {parts}: {why_parts}",
        f"precision = {str(dtype).removeprefix('torch.')}: {why_dtype}",
        f"compile = {compiling}: {why_compiling}",
        f"workers = {workers}: {why_workers}",
        f"threads = {number}: {why_threads}",
        f"cache = {cache}: {why_cache}",
        f"eval_images = {judged}: {why_judged}",
    ]
    log.say(
        f"{len(source):,} images, {len(source.classes) or 'no'} classes named; {steps:,} steps of {batch} on {device}"
    )
    for line in reasons:
        if not line.endswith(": as configured"):
            log.say(f"  {line}")
    config = replace(
        config, batch=batch, steps=steps, epochs=None, cache=cache, workers=workers, threads=number,
        compile=compiling,
        eval_images=judged, precision=str(dtype).removeprefix("torch."),
        optim=replace(config.optim, grad_accum_steps=parts),
    )  # fmt: skip
    return distributed.broadcast_object(config), source


def located(config: Config) -> Config:
    """With full paths: a run folder must mean the same images wherever it is resumed from."""
    return replace(
        config, data=absolute(config.data), labels=absolute(config.labels),
        val=absolute(config.val) if config.val else None, init=absolute(config.init) if config.init else None,
    )  # fmt: skip


def _network(config: Config, short_side_px: int, device: torch.device) -> tuple[Config, bool, list[str]]:
    """The settings with a network; whether it is the small convolutional one for small images on a CPU; and why."""
    if config.init:
        config = _as(load.load(config.init), config)
        return config, False, [f"backbone = {config.backbone}: starts from {config.init}"]
    reasons = []
    convolutional = False
    if config.backbone == "auto":
        convolutional = device.type == "cpu" and short_side_px <= auto_values.CONVOLUTIONAL_MAX_PX
        name = "conv4" if convolutional else "vit_tiny/16" if device.type == "cpu" else "vit_small/16"
        config = replace(config, backbone=name)
        size = f" and images of about {short_side_px} px" if device.type == "cpu" else ""
        reasons.append(f"backbone = {name}: a {device.type} device{size}")
    if config.backbone == "conv4" and config.drop_path:
        config = replace(config, drop_path=0.0)
        reasons.append("drop_path = 0: conv4 has no residual branches to drop")
    return config, convolutional, reasons


def _epochs(config: Config, num_images: int, small_px: int | None) -> tuple[float, str]:
    """Length of the run in passes over the data, and why; `small_px` for the small convolutional network on a CPU."""
    if isinstance(config.epochs, int | float):
        return config.epochs, "as configured"
    if config.steps:
        return 0.0, "as configured"
    if small_px is None:
        return (200, "a set of moderate size") if config.epochs == "auto" else (100, "no length was given")
    seen = auto_values.images_seen(small_px)
    return seen / num_images, f"{seen:,} images seen, about ten minutes on one core; --epochs for longer runs"


def images(config: Config) -> Source:
    """The run's images with the labels it may see."""
    return relabel(open_source(config.data), config.labels, config.seed)


def check_classes(method: Method, spec: ViewSpec, source: Source) -> None:
    """The labels of the data must mean what a teacher's classifier means by them.

    Raises:
        UserError: They do not.
    """
    if not spec.labeled_frac or "classifier" not in method.student:
        return
    known = method.classes or source.classes
    number = cast(nn.Linear, method.student["classifier"]).out_features
    if len(source.classes) != number or known != source.classes:
        raise UserError(
            f"The teacher tells {number} classes apart ({', '.join(known[:3])}, ...), "
            f"and the images are of {len(source.classes)} ({', '.join(source.classes[:3])}, ...)",
            "Name the images' classes as the teacher's, or learn without them: --method.label-weight 0",
        )


def folder(config: Config) -> Path:
    """Where the run will live; made later, once it can start. The leader looks, lest others see what it made since.

    Raises:
        UserError: Something is there already, and it is not a run to go on with (`config.resume`).
    """
    found = distributed.broadcast_object(_folder(config) if distributed.rank() == 0 else None)
    if isinstance(found, UserError):
        raise found
    assert found
    return found


def _folder(config: Config) -> Path | UserError:
    if config.out is None:
        name = Path(config.data.partition("?")[0].rstrip("/:")).name.replace(":", "-") or "images"
        place = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    else:
        place = Path(config.out).expanduser()
    read_run_config = (place / "config.yaml").exists()
    taken = place.is_dir() and any(path.name not in LEFT_AT_THE_START for path in place.iterdir())
    if place.is_file() or (taken and not (read_run_config and config.resume)):
        go_on = f"Go on with: opendino resume {place}; or choose" if read_run_config else "Choose"
        return UserError(f"'{place}' exists already", f"{go_on} another --out")
    return place


def read_run_config(run: str | Path) -> Config:
    """The settings of a run that was begun.

    Raises:
        UserError: There is no such run.
    """
    path = Path(run).expanduser() / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{run}' is no run folder: it has no config.yaml", "Start one with: opendino train DATA")
    return configs.from_tree(configs.read_tree(path))


def rescale(config: Config, world: int, device: torch.device) -> Config:
    """A run's settings on another number of devices: the same steps, worked off in parts that fit.

    Args:
        config: As decided when it ran on `world` devices.
        world: That number; where it is the same nothing changes.
        device: One of the new ones.

    Raises:
        UserError: A step's images do not divide over them.
    """
    if distributed.world_size() == world:
        return config
    assert isinstance(config.batch, int) and isinstance(config.optim.grad_accum_steps, int)
    sizing.batch(config.batch, config.batch, math.inf, device)
    fewest, _ = sizing.micro_batches("auto", config.batch, activation_bytes(config, configs.views(config)), device)
    before, share = config.optim.grad_accum_steps, config.batch // distributed.world_size()
    parts = distributed.broadcast_object(before if before >= fewest and share % before == 0 else fewest)
    log.say(
        f"Resuming on {distributed.world_size()} devices (was {world}): {parts} micro-batches per step (was {before})"
    )
    return replace(config, optim=replace(config.optim, grad_accum_steps=parts))


def _parts(config: Config, spec: ViewSpec, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[int, str]:
    """In how many parts a device works off its share of a step, and why: as few as fit, on a GPU found by trying."""
    wanted, share = config.optim.grad_accum_steps, batch // distributed.world_size()
    if wanted == "auto" and device.type == "cuda":

        def fresh() -> Method:
            return make_method(config, spec, make_backbone)

        tried = distributed.broadcast_object(
            batch_size_finder.fewest_parts(fresh, spec, share, config.optim.name, dtype, device)
        )
        if tried:
            return tried, f"{share // tried} images at once, the most of {share} that fit"
    return sizing.micro_batches(wanted, batch, activation_bytes(config, spec), device)


def activation_bytes(config: Config, spec: ViewSpec) -> float:
    """What a step of the run keeps of one image, see `engine.sizing`.

    Raises:
        UserError: The network cannot take these views.
    """
    with torch.random.fork_rng(devices=[]):  # what is measured before a run must not change the run
        with torch.device("meta"):  # a network without memory, to ask how much a real one takes
            network = make_backbone(config, spec, "student")
        if sum(p.numel() for p in network.parameters()) < _SMALL_NETWORK:
            # The first forward pass on `meta` loads seconds of PyTorch; that of a small network takes a tenth of one.
            network = make_backbone(config, spec, "student")
        try:
            return sizing.activation_bytes(network, spec, config.activation_checkpointing)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            sizes = ", ".join(f"{group.size_px}×{group.size_px}" for group in spec.groups if group.views)
            options = f" with {config.backbone_options}" if config.backbone_options else ""
            raise UserError(
                f"{config.backbone}{options} cannot take images of 3 channels at {sizes} px: {first_line(error)}",
                "Change --backbone-options, or the sizes of the views",
            ) from None


def _work(config: Config, spec: ViewSpec) -> Callable[[], object]:
    """A piece of the run's work, to be timed: the student's forward and backward pass of a few images."""

    def once() -> None:
        if not prepared:
            with torch.random.fork_rng(devices=[]):
                network = make_backbone(config, spec, "student").to(memory_format=torch.channels_last)
            number = 8 if spec.groups[0].size_px <= 96 else 2
            shapes = [(number * len(group.views), 3, group.size_px, group.size_px) for group in spec.groups]
            views = [torch.zeros(s).to(memory_format=torch.channels_last) for s in shapes if s[0]]
            prepared.extend((network, views))
        network, views = prepared
        torch.stack([output.sum() for output in network(views)]).sum().backward()

    prepared: list[Any] = []
    return once


def resumed_threads(config: Config, known: dict[str, Any] | None, device: torch.device) -> Config:
    """A resumed run's number of threads: that of before, unless it was measured on another machine.

    Args:
        config: As the run began, or as it was changed since.
        known: What the checkpoint says of a number that was measured: "number" and "machine"; None for one asked for.
        device: Of this process.
    """
    before = known["number"] if known else config.threads
    same_machine = known is None or known["machine"] == threads.machine()
    given = bool(known and os.environ.get("OMP_NUM_THREADS"))
    if same_machine and not given and isinstance(before, int) and before <= ranges.cores():
        return replace(config, threads=before)
    return replace(config, threads=measured_threads(config, before, device))


def measured_threads(config: Config, before: int | str, device: torch.device) -> int:
    """The number of threads that is fastest now, the same on every rank; says so where it is not that of `before`."""
    assert isinstance(config.workers, int)
    work = _work(config, configs.views(config))
    number, why = distributed.broadcast_object(threads.choose("auto", device, config.workers, work))
    if number != before:
        log.say(f"threads = {number} in place of {before}: {why}; the last digits of results may differ")
    return number


def choose_parallel(config: Config, spec: ViewSpec, method: Method, device: torch.device) -> Literal["ddp", "fsdp"]:
    """How the devices share the work; says what memory it will take."""
    assert isinstance(config.batch, int) and isinstance(config.optim.grad_accum_steps, int)
    images = config.batch // distributed.world_size() // config.optim.grad_accum_steps
    activations = images * activation_bytes(config, spec)
    how, why = sizing.parallel(config.parallel, method, config.optim.name, activations, device)
    log.say(f"  {why}")
    return distributed.broadcast_object(how)


def make_method(config: Config, spec: ViewSpec, make: Callable[[Config, ViewSpec, str], Backbone]) -> Method:
    """A fresh method of the run on backbones by `make`, which is `first_backbone` or `make_backbone`.

    Raises:
        UserError: Its settings do not go together.
    """
    method: Method = configs.method_module(config).build(config.method, lambda role: make(config, spec, role))
    if config.activation_checkpointing:
        checkpoint_activations(cast(Backbone, method.student["backbone"]))
    return method


def make_backbone(config: Config, spec: ViewSpec, role: str) -> Backbone:
    """A fresh network of the run's architecture; only the student's has stochastic depth."""
    options: dict[str, Any] = dict(config.backbone_options)
    drop_path = config.drop_path if role == "student" else 0.0
    network = build.backbone(config.backbone, image_px=spec.groups[0].size_px, drop_path=drop_path, **options)
    if config.drop_path_on_subset and role == "student":
        drop_on_subset(network)
    return network


def first_backbone(config: Config, spec: ViewSpec, role: str) -> Backbone:
    """The network a run starts with: a fresh one, or for the student one with the weights of `config.init`.

    Raises:
        UserError: The weights do not fit.
    """
    network = make_backbone(config, spec, role)
    if config.init and role == "student":
        for line in adapt(load.load(config.init).backbone, network, config.init):
            log.say(f"  {line}")
    return network


def _as(model: load.Model, config: Config) -> Config:
    """The settings that follow from the model a run starts from."""
    config = replace(config, mean=tuple(model.preprocessing["mean"]), std=tuple(model.preprocessing["std"]))
    if config.backbone != "auto":
        return config
    options = {name: value for name, value in model.backbone.kwargs.items() if name not in ("image_px", "drop_path")}
    return replace(config, backbone=model.backbone.name, backbone_options=options | config.backbone_options)


def _eval_images(wanted: int | str, num_images: int, num_trained: int) -> tuple[int, str]:
    if isinstance(wanted, int):
        return wanted, "as configured"
    # Ten times two networks see one view of each: about a fiftieth of the work of training on a hundred times as many.
    number = min(num_images, max(200, min(10_000, num_trained // 100)))
    return number, f"a hundredth of the {num_trained:,} images the run trains on, within 200 and 10,000"
