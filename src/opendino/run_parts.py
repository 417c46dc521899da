"""The parts of a run: the networks with their optimizer, and the training images with their loader."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from opendino import resolve
from opendino.config import ResolvedConfig
from opendino.core import distributed
from opendino.core.contracts import Method, Source
from opendino.core.types import ViewSpec
from opendino.data import loader
from opendino.data.cache import DecodedImages
from opendino.data.decode import working_area_px
from opendino.data.device_cache import DeviceCache
from opendino.engine import checkpoint, optim, parallel


@dataclass(frozen=True)
class Networks:
    """Student, teacher and their optimizer. `model` is the method, or its data-parallel wrapper."""

    method: Method
    model: nn.Module
    full_method: Callable[[], Method]
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class TrainingData:
    """The training images. Every random choice is a function of (seed, epoch, image)."""

    images: DecodedImages
    device_cache: DeviceCache | None
    batches: loader.Batches


def build_networks(config: ResolvedConfig, spec: ViewSpec, source: Source, device: torch.device, new: bool) -> Networks:
    """Build the networks: the student is trained by gradients, the teacher is an EMA of it."""
    torch.manual_seed(config.seed)
    init_all = config.init_networks == "all"
    make = resolve.first_backbone if new and not init_all else resolve.make_backbone
    method = resolve.make_method(config, spec, make)
    if new and init_all:
        checkpoint.load_networks(Path(config.init or ""), method)
    resolve.check_classes(method, spec, source)
    how = resolve.choose_parallel(config, spec, method, device)
    model, full_method = parallel.prepare_distributed(method.train(), device, how, config.sync_batch_norm)
    return Networks(method, model, full_method, optim.build(config.optim, method.student))


def open_data(
    config: ResolvedConfig, spec: ViewSpec, source: Source, folder: Path, device: torch.device
) -> TrainingData:
    """Prepare the images for training; with cache = device all of them are decoded here."""
    images = DecodedImages(source, working_area_px(spec), config.cache, folder)
    device_cache = DeviceCache(images, device, config.workers) if config.cache == "device" else None
    batches = loader.Batches(
        device_cache or images, spec, config.seed, config.batch, config.optim.grad_accum_steps, distributed.rank(),
        distributed.world_size(),
    )  # fmt: skip
    return TrainingData(images, device_cache, batches)


def prefetch(
    config: ResolvedConfig, data: TrainingData, first_step: int, device: torch.device
) -> Generator[loader.Batch, None, None]:
    """The run's micro-batches from `first_step` on, decoded ahead by the loader's workers."""
    number = config.optim.grad_accum_steps
    pin = device.type == "cuda"
    return loader.batches(data.batches, first_step * number, config.steps * number, config.workers, pin)
