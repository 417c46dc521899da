"""Resolves a config before a run: inspects the data, replaces every "auto" by a value and logs the reason."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast

import torch

from opendino import config as configs
from opendino import run_images
from opendino.config import Config, ResolvedConfig
from opendino.core import auto_values, compilation, distributed, log, ranges, registry
from opendino.core.contracts import Backbone, Method, Source
from opendino.core.errors import UserError, first_line
from opendino.core.progress import waiting
from opendino.core.types import IMAGENET_MEAN, IMAGENET_STD, Facts, ViewSpec
from opendino.data import fingerprint
from opendino.data.cache import decide as decide_cache
from opendino.data.channel_images import ChannelImages
from opendino.data.dataset_probe import probe_dataset
from opendino.data.decode import working_area_px
from opendino.data.held_out import training_images
from opendino.data.labels import WORDS, relabel
from opendino.data.open_source import absolute
from opendino.engine import batch_size_finder, precision, sizing, threads
from opendino.engine.activation_checkpointing import checkpoint_activations
from opendino.models import build, load
from opendino.models.adapt import adapt
from opendino.models.separate_channels import network_of
from opendino.models.vit import SIZES
from opendino.models.vit_layers import drop_on_subset

_SMALL_NETWORK = 15_000_000  # parameters


def resolve_config(config: Config, device: torch.device) -> tuple[ResolvedConfig, Source]:
    """Replace every "auto" by a value, and open the images. The only bridge from a Config to a ResolvedConfig.

    Args:
        config: As the user gave it.
        device: This process's device.

    Returns:
        The settings of the run (the same on every rank), and the training images.

    Raises:
        UserError: The images cannot be trained on, or settings contradict each other.
    """
    config = run_images.with_masks(absolute_paths(config))
    with waiting("finding the images"):
        files = run_images.open_images(config, config.data)
    if device.type == "mps" and config.bits == "auto":
        config = replace(config, bits=8)  # it has no uint16
    given = (config.mean, config.std) != (IMAGENET_MEAN, IMAGENET_STD)
    config, is_rgb, found = run_images.resolve_intensity(config, files)
    source = _used(relabel(files, config.labels, config.seed), config)
    fingerprint.check_same_on_all_ranks(source)
    workers, why_workers = sizing.workers(config.workers, device)
    probe = probe_dataset(source, config.max_bad_frac, workers=workers)
    surveyed = config.mean, config.std
    config, facts, reasons = _method_and_network(config, source, probe.short_side_px, is_rgb, device, given)
    if (config.mean, config.std) != surveyed:  # those of the model that the run starts from
        found = [line for line in found if not line.startswith("mean = ")]
    reasons = found + reasons
    with waiting("measuring which precision is fastest"):
        dtype, why_dtype = precision.choose(config.precision, device)
    compiling, why_compiling = compilation.choose(config.compile, device, facts.total_steps)
    spec = configs.views(config)
    _check_memory(config, spec, device)
    cache, why_cache = decide_cache(
        config.cache,
        facts.num_images,
        source.pixel_format.bytes_per_pixel * min(probe.area_px, working_area_px(spec)),
        facts.total_steps / facts.steps_per_epoch,
        sizing.free_bytes(device) if device.type == "cuda" else 0.0,
        config.out,
    )
    with waiting("measuring the memory that a step needs"):
        micro_batches, why_micro_batches = _micro_batches(config, spec, facts.batch, dtype, device)
    with waiting("measuring which number of threads is fastest"):
        num_threads, why_threads = threads.choose(config.threads, device, workers, _timed_step(config, spec))
    num_trained = facts.total_steps * facts.batch
    num_eval, why_num_eval = sizing.eval_images(config.eval_images, facts.num_images, num_trained)
    eval_every, why_eval_every = sizing.eval_every(config.eval_every, num_eval, num_trained)
    precision_name = str(dtype).removeprefix("torch.")
    reasons += [
        f"optim.grad_accum_steps = {micro_batches}: {why_micro_batches}",
        f"precision = {precision_name}: {why_dtype}",
        f"compile = {compiling}: {why_compiling}",
        f"workers = {workers}: {why_workers}",
        f"threads = {num_threads}: {why_threads}",
        f"cache = {cache}: {why_cache}",
        f"eval_images = {num_eval}: {why_num_eval}",
        f"eval_every = {eval_every}: {why_eval_every}",
    ]
    _log(source, facts, device, reasons)
    resolved = configs.resolved(
        config, batch=facts.batch, steps=facts.total_steps, epochs=None, cache=cache, workers=workers,
        threads=num_threads, compile=compiling, eval_images=num_eval, eval_every=eval_every,
        precision=precision_name,
        optim=configs.resolved_optim(config.optim, grad_accum_steps=micro_batches),
    )  # fmt: skip
    return distributed.broadcast_object(resolved), source


def _method_and_network(
    config: Config, source: Source, short_side_px: int, is_rgb: bool, device: torch.device, given: bool
) -> tuple[Config, Facts, list[str]]:
    """Choose the backbone, the length and the batch, and from them the settings of method and optimizer.

    With `given` the user has set mean and std, which then are not those of the model that the run starts from.

    Returns:
        The settings, what is known about the run, and the reasons for the log, one line each.
    """
    config, reasons = _with_backbone(config, device, short_side_px, given)
    epochs, why_epochs = _epochs(config)
    seen = math.inf if config.steps else epochs * len(source)
    batch, why_batch = sizing.batch(config.batch, len(source), seen, device)
    steps_per_epoch = len(source) // batch
    steps = config.steps or max(1, round(epochs * steps_per_epoch))
    facts = Facts(
        len(source), short_side_px, len(source.classes), batch, steps, steps_per_epoch, device.type,
        build.patch_px(config.backbone), config.backbone == "conv4", is_rgb,
    )  # fmt: skip
    config, why_parts = configs.resolve_parts(config, facts)
    reasons += [f"epochs = {epochs:.3g}: {why_epochs}", *why_parts, f"batch = {batch}: {why_batch}"]
    return config, facts, reasons


def _check_memory(config: Config, spec: ViewSpec, device: torch.device) -> None:
    planned = _on_meta(config, spec)
    sharded = distributed.world_size() > 1 and config.parallel != "ddp"
    sizing.check_fits(sizing.memory(planned, config.optim.name, 0.0, sharded), device)


def _on_meta(config: Config, spec: ViewSpec) -> Method:
    """The run's method without memory for its weights, to estimate how much it needs."""
    with torch.device("meta"):
        return make_method(config, spec, make_backbone)


def _log(source: Source, facts: Facts, device: torch.device, reasons: list[str]) -> None:
    classes = len(source.classes) or "no"
    log.say(f"{len(source):,} images, {classes} classes; {facts.total_steps:,} steps of {facts.batch} on {device}")
    for line in reasons:
        if not line.endswith(": as configured"):
            log.say(f"  {line}")


def absolute_paths(config: Config) -> Config:
    """Make all paths absolute, so that a run can be resumed from any working directory."""
    return replace(
        config, data=absolute(config.data), labels=config.labels if config.labels in WORDS else absolute(config.labels),
        val=absolute(config.val) if config.val else None, init=absolute(config.init) if config.init else None,
    )  # fmt: skip


def _with_backbone(
    config: Config, device: torch.device, short_side_px: int, given: bool = False
) -> tuple[Config, list[str]]:
    """The config with its backbone, and the reasons."""
    reasons = list[str]()
    model = load.load(config.init) if config.init else None
    if model and model.backbone.name.partition("/")[0] == config.backbone:
        config = replace(config, backbone="auto")  # with the patch size of the model
    if config.backbone in SIZES:
        name, why = auto_values.vit(config.backbone, short_side_px)
        config, reasons = replace(config, backbone=name), [f"backbone = {name}: {why}"]
    if model:
        config = _settings_of(model, config, given)
        return config, [*reasons, f"backbone = {config.backbone}: starts from {config.init}"]
    if config.backbone == "auto":
        name, why = auto_values.backbone(device.type)
        options = {"width": auto_values.CONV4_WIDTH} if name == "conv4" else {}
        config = replace(config, backbone=name, backbone_options={**options, **config.backbone_options})
        reasons.append(f"backbone = {name}: {why}")
    plugin = config.backbone in registry.names(registry.BACKBONES)
    if (config.backbone == "conv4" or plugin) and config.drop_path:
        config = replace(config, drop_path=0.0)
        why = "a network of another package sets its own" if plugin else "conv4 has no residual branches to drop"
        reasons.append(f"drop_path = 0: {why}")
    return config, reasons


def _epochs(config: Config) -> tuple[float, str]:
    """Length of the run in epochs, and the reason; `length_in_minutes` replaces "auto" on a CPU before."""
    if isinstance(config.epochs, int | float):
        return config.epochs, "as configured"
    if config.steps:
        return 0.0, "as configured"
    return (200, "dataset of moderate size") if config.epochs == "auto" else (100, "no length was given")


def images(config: Config) -> Source:
    """Open the run's training images, with the fraction of labels that `config.labels` allows; or their channels."""
    return _used(all_images(config), config)


def all_images(config: Config) -> Source:
    """The images of the run with those that it keeps out of training."""
    return relabel(run_images.open_images(config, config.data), config.labels, config.seed)


def _used(source: Source, config: Config) -> Source:
    """What the run trains on of all images: not those held out; each channel by itself if asked for."""
    used = training_images(source, config.hold_out, config.method.labeled_only)
    return ChannelImages(used) if config.channel_mode == "separate" else used


def rescale(config: ResolvedConfig, world: int, device: torch.device) -> ResolvedConfig:
    """Settings of a run resumed on another number of devices: the same batch, in micro-batches that fit.

    Args:
        config: Settings of the run on `world` devices.
        world: World size so far; if it is still the same, nothing changes.
        device: This process's device.

    Raises:
        UserError: The batch is not divisible by the new world size.
    """
    if distributed.world_size() == world:
        return config
    sizing.batch(config.batch, config.batch, math.inf, device)
    fewest, _ = sizing.micro_batches("auto", config.batch, activation_bytes(config, configs.views(config)), device)
    before, local_batch = config.optim.grad_accum_steps, config.batch // distributed.world_size()
    micro_batches = distributed.broadcast_object(before if before >= fewest and local_batch % before == 0 else fewest)
    log.say(
        f"Resuming on {distributed.world_size()} devices{f' (was {world})' * bool(world)}: "
        f"{micro_batches} micro-batches per step (was {before})"
    )
    return replace(config, optim=replace(config.optim, grad_accum_steps=micro_batches))


def _micro_batches(
    config: Config, spec: ViewSpec, batch: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, str]:
    """Number of micro-batches per step, and the reason: as few as fit, on a GPU found by trying."""
    wanted, local_batch = config.optim.grad_accum_steps, batch // distributed.world_size()
    if wanted == "auto" and device.type == "cuda":

        def fresh() -> Method:
            return make_method(config, spec, make_backbone)

        fitting = distributed.broadcast_object(
            batch_size_finder.fewest_micro_batches(fresh, spec, local_batch, config.optim.name, dtype, device)
        )
        if fitting:
            return fitting, f"micro-batches of {local_batch // fitting} images are the largest that fit"
    return sizing.micro_batches(wanted, batch, activation_bytes(config, spec), device)


def activation_bytes(config: Config, spec: ViewSpec) -> float:
    """Bytes of activations per image of a training step, see `engine.sizing.activation_bytes`.

    Raises:
        UserError: The network cannot take these views.
    """
    with torch.random.fork_rng(devices=[]):  # measuring must not change the random numbers of the run
        with torch.device("meta"):  # shapes only, no memory
            network = make_backbone(config, spec, "student")
        if sum(p.numel() for p in network.parameters()) < _SMALL_NETWORK:
            # The first forward pass on `meta` imports PyTorch code for seconds; a small real network takes only 0.1 s.
            network = make_backbone(config, spec, "student")
        heads = _on_meta(config, spec).head_bytes(spec) if any(group.masks for group in spec.groups) else 0.0
        try:
            return sizing.activation_bytes(network, spec, config.activation_checkpointing) + heads
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            sizes = ", ".join(f"{group.view_px[0]}×{group.view_px[1]}" for group in spec.groups if group.views)
            options = f" with {config.backbone_options}" if config.backbone_options else ""
            raise UserError(
                f"{config.backbone}{options} cannot take images of {spec.channels} channels at {sizes} px: "
                f"{first_line(error)}",
                "Change --backbone-options or the sizes of the views",
            ) from None


def _timed_step(config: Config, spec: ViewSpec) -> Callable[[], object]:
    """A function to time threads with: the student's forward and backward pass on a few images."""

    def run_once() -> None:
        if not cached:
            with torch.random.fork_rng(devices=[]):
                network = make_backbone(config, spec, "student").to(memory_format=torch.channels_last)
            number = 8 if spec.groups[0].short_px <= 96 else 2
            shapes = [(number * len(group.views), spec.channels, *group.view_px) for group in spec.groups]
            views = [torch.zeros(s).to(memory_format=torch.channels_last) for s in shapes if s[0]]
            cached.extend((network, views))
        network, views = cached
        torch.stack([output.sum() for output in network(views)]).sum().backward()

    cached: list[Any] = []
    return run_once


def resumed_threads(config: ResolvedConfig, saved: dict[str, Any] | None, device: torch.device) -> ResolvedConfig:
    """Number of threads of a resumed run: the same as before, unless it was measured on another machine.

    Args:
        config: Settings of the run.
        saved: From the checkpoint, for a measured number: "number" and "machine"; None if the user gave the number.
        device: This process's device.
    """
    before = saved["number"] if saved else config.threads
    same_machine = saved is None or saved["machine"] == threads.machine()
    given = bool(saved and os.environ.get("OMP_NUM_THREADS"))
    if same_machine and not given and before <= ranges.cores():
        return replace(config, threads=before)
    return replace(config, threads=measured_threads(config, before, device))


def measured_threads(config: ResolvedConfig, before: int, device: torch.device) -> int:
    """Measure the fastest number of threads, the same on every rank; logs it if it differs from `before`."""
    work = _timed_step(config, configs.views(config))
    number, why = distributed.broadcast_object(threads.choose("auto", device, config.workers, work))
    if number != before:
        log.say(f"threads = {number} (was {before}): {why}; the last digits of results may differ")
    return number


def choose_parallel(
    config: ResolvedConfig, spec: ViewSpec, method: Method, device: torch.device
) -> Literal["ddp", "fsdp"]:
    """Choose DDP or FSDP, and log the estimated memory."""
    images = config.batch // distributed.world_size() // config.optim.grad_accum_steps
    activations = images * activation_bytes(config, spec)
    how, why = sizing.parallel(config.parallel, method, config.optim.name, activations, device)
    log.say(f"  {why}")
    return distributed.broadcast_object(how)


def make_method(config: Config, spec: ViewSpec, make: Callable[[Config, ViewSpec, str], Backbone]) -> Method:
    """Build the run's method.

    Args:
        config: Settings of the run.
        spec: The views.
        make: Builds each backbone: `first_backbone` (weights of `config.init`) or `make_backbone` (random weights).

    Raises:
        UserError: The settings contradict each other.
    """
    method: Method = configs.method_module(config).build(config.method, lambda role: make(config, spec, role))
    method.set_preprocessing(run_images.preprocessing(config, spec))
    if config.activation_checkpointing:
        checkpoint_activations(cast(Backbone, method.student["backbone"]))
    return method


def make_backbone(config: Config, spec: ViewSpec, role: str) -> Backbone:
    """Build a backbone with random weights; only the student's has stochastic depth."""
    channels = {} if spec.channels == 3 else {"in_chans": spec.channels}
    options: dict[str, Any] = channels | config.backbone_options
    drop_path = config.drop_path if role == "student" else 0.0
    network = build.backbone(config.backbone, image_px=spec.groups[0].short_px, drop_path=drop_path, **options)
    if config.drop_path_on_subset and role == "student":
        drop_on_subset(network)
    return network


def first_backbone(config: Config, spec: ViewSpec, role: str) -> Backbone:
    """Build the backbone a run starts with: random weights, or for the student those of `config.init`.

    Raises:
        UserError: The weights do not fit.
    """
    network = make_backbone(config, spec, role)
    if config.init and role == "student":
        for line in adapt(network_of(load.load(config.init).backbone), network, config.init):
            log.say(f"  {line}")
    return network


def _settings_of(model: load.Model, config: Config, given: bool) -> Config:
    """Take normalization, if not `given` and the channels are as many, and, if auto, the backbone from the model."""
    mean, std = (tuple(model.preprocessing[name]) for name in ("mean", "std"))
    if not given and len(mean) == len(config.mean):
        config = replace(config, mean=mean, std=std)
    if config.backbone != "auto":
        return config
    of_the_run = ("image_px", "drop_path", "in_chans")
    options = {name: value for name, value in model.backbone.kwargs.items() if name not in of_the_run}
    return replace(config, backbone=model.backbone.name, backbone_options=options | config.backbone_options)
