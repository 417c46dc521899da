"""The parts of a run: the networks with their optimizer, and the training images with their loader."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from opendino import resolve, run_images
from opendino.config import ResolvedConfig
from opendino.core import distributed
from opendino.core.contracts import Method, Source
from opendino.core.ranges import cores
from opendino.core.types import Views, ViewSpec
from opendino.data import loader
from opendino.data.cache import DecodedImages
from opendino.data.decode import working_area_px
from opendino.data.device_cache import DeviceCache
from opendino.data.held_out import with_held_out
from opendino.data.image_files import ImageFiles
from opendino.datasets.labeled_pixels import LabeledPixels
from opendino.engine import checkpoint, optim, parallel, profiler
from opendino.engine.throughput import uncounted
from opendino.views import patch_masks
from opendino.views.multi_crop import crop_labels, multi_crop

MakeViews = Callable[[], Views]
"""Makes the views of a micro-batch, or waits until they are made."""


@dataclass(frozen=True)
class Networks:
    """Student, teacher and their optimizer. `model` is the method, or its data-parallel wrapper."""

    method: Method
    model: nn.Module
    full_method: Callable[[], Method]
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class TrainingData:
    """The training images. Every random choice is a function of (seed, epoch, image). `masks`: if these are labels."""

    images: DecodedImages
    device_cache: DeviceCache | None
    batches: loader.Batches
    masks: LabeledPixels | None


def build_networks(config: ResolvedConfig, spec: ViewSpec, source: Source, device: torch.device, new: bool) -> Networks:
    """Build the networks: the student is trained by gradients, the teacher is an EMA of it."""
    torch.manual_seed(config.seed)
    init_all = config.init_networks == "all"
    make = resolve.first_backbone if new and not init_all else resolve.make_backbone
    method = resolve.make_method(config, spec, make)
    if new and init_all:
        checkpoint.load_networks(Path(config.init or ""), method)
    run_images.check_classes(method, spec, source)
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
    whole = with_held_out(source)
    files = whole.source if isinstance(whole, ImageFiles) else None
    return TrainingData(images, device_cache, batches, files if isinstance(files, LabeledPixels) else None)


def with_views(
    config: ResolvedConfig, data: TrainingData, spec: ViewSpec, first_step: int, device: torch.device
) -> Generator[tuple[loader.Batch, MakeViews], None, None]:
    """The run's micro-batches from `first_step` on, decoded ahead by the loader's workers, and their views."""
    number, pin = config.optim.grad_accum_steps, device.type == "cuda"
    stream = loader.batches(data.batches, first_step * number, config.steps * number, config.workers, pin)
    with contextlib.closing(stream), contextlib.closing(views_of(stream, config, data, spec, device)) as found:
        yield from found


def views_of(
    batches: Iterable[loader.Batch], config: ResolvedConfig, data: TrainingData, spec: ViewSpec, device: torch.device
) -> Generator[tuple[loader.Batch, MakeViews], None, None]:
    """Micro-batches and functions that return their views.

    Where one thread trains on a CPU of several cores, another one makes the views of the next micro-batch meanwhile.
    Otherwise they are made when the function is called. Both give the same views.
    """
    if not _views_ahead(config, device):
        yield from ((batch, partial(make_views, batch, data, spec, device)) for batch in batches)
        return
    with ThreadPoolExecutor(1, "views") as executor:
        ahead = collections.deque[tuple[loader.Batch, MakeViews]]()
        for batch in batches:
            ahead.append((batch, executor.submit(make_views, batch, data, spec, device).result))
            if len(ahead) > 1:
                yield ahead.popleft()
        yield from ahead


def _views_ahead(config: ResolvedConfig, device: torch.device) -> bool:
    spare_core = device.type == "cpu" and config.threads == 1 and cores() > distributed.local_world_size()
    return spare_core and not config.compile and not config.profile  # a profile sees one thread


def make_views(batch: loader.Batch, data: TrainingData, spec: ViewSpec, device: torch.device) -> Views:
    """Move a micro-batch of images to the device and make its views there."""
    with profiler.section("crops"), uncounted():
        on_device = batch.to(device)
        if data.device_cache:
            on_device = data.device_cache.fill(on_device)
        crops = multi_crop(on_device.canvas, on_device.draws, spec)
        pixel_labels = {}
        if data.masks:
            keys = [data.images.source.key(int(index)) for index in batch.indices]
            canvas = data.masks.canvas(keys, batch.sizes, data.images.max_area_px)
            pixel_labels = crop_labels(canvas.to(device), on_device.draws, spec)
    masks = patch_masks.of_batch(on_device.draws, spec)
    num_labeled = spec.num_labeled(len(batch.indices))
    return Views(crops, on_device.labels, on_device.indices, num_labeled, masks, pixel_labels)
