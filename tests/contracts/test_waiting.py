"""In a training step the host asks the device for nothing, whatever the method, network and optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.contracts.test_methods import NAMES, PACKAGE, small
from tests.contracts.test_methods import spec as small_spec
from torch.profiler import ProfilerActivity, profile

from opendino.core.contracts import Method
from opendino.core.types import Clock, ViewGroup, Views, ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.loader import Batch, Batches
from opendino.data.open_source import open_source
from opendino.engine import optim
from opendino.models.build import backbone
from opendino.models.load import preprocessing
from opendino.training import step
from opendino.views import patch_masks
from opendino.views.multi_crop import multi_crop
from opendino.views.settings import AUGMENTATIONS, view

QUESTIONS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}
"""What a tensor is asked when the host needs its value; on a GPU each waits for all work before it."""

NETWORKS = {
    "vit": lambda: backbone("vit/8", image_px=32, embed_dim=8, depth=2, num_heads=2, drop_path=0.1),
    "resnet18": lambda: backbone("resnet18/3x3", image_px=32, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)),
    "conv4": lambda: backbone("conv4", width=4),
}


def batch_of(spec: object) -> Batch:
    batches = Batches(DecodedImages(open_source("toy:textures?n=16&size=40"), None), spec, seed=0, batch=4)  # pyright: ignore
    batch = batches[0]
    assert isinstance(batch, Batch)
    return batch


def steps(name: str, network: str, settings: optim.ResolvedConfig, device: torch.device) -> Iterator[None]:
    """Two steps that count for nothing (buffers are made, kernels chosen), and a third."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    config = small(module)
    method: Method = module.build(config, lambda role: NETWORKS[network]()).train()
    method.set_preprocessing(preprocessing(32))
    method.to(device)
    spec = small_spec(module)
    batch, optimizer = batch_of(spec), optim.build(settings, method.student)
    clock = Clock(5, 10, 4)
    for _ in range(3):
        yield
        there = batch.to(device)
        crops, masks = multi_crop(there.canvas, there.draws, spec), patch_masks.of_batch(there.draws, spec)
        views = Views(crops, there.labels % 3, there.indices, spec.num_labeled(4), masks)
        step(method, optimizer, settings, 4, clock, [views])


CASES = [(name, "vit", optim.ResolvedConfig()) for name in NAMES] + [
    ("dino", "resnet18", optim.ResolvedConfig(name="lars")),
    ("dino", "conv4", optim.ResolvedConfig(name="sgd", clip_by="global")),
    ("dino", "conv4", optim.ResolvedConfig(name="muon")),
    ("byol", "resnet18", optim.ResolvedConfig(name="lars")),
]


@pytest.mark.usefixtures("dense_kernels")
@pytest.mark.parametrize(("name", "network", "settings"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_step_asks_for_no_value(name: str, network: str, settings: optim.ResolvedConfig) -> None:
    going = steps(name, network, settings, torch.device("cpu"))
    for _ in range(3):
        next(going)
    with profile(activities=[ProfilerActivity.CPU]) as profiled, pytest.raises(StopIteration):
        next(going)
    asked = [event for event in profiled.events() or () if event.name in QUESTIONS and not of_the_kernel(event)]
    assert [event.name for event in asked] == []
    assert any(event.name == "aten::addmm" for event in profiled.events() or ()), "it has seen the step"


EVERYTHING = {f"{name}.p": 0.5 for name in AUGMENTATIONS if name != "crop"} | {"crop.scale": (0.3, 1.0)}


@pytest.mark.usefixtures("dense_kernels")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_no_augmentation_asks_for_a_value(device: str) -> None:
    spec = ViewSpec((ViewGroup("global", 16, (view(EVERYTHING),) * 2),))
    there = batch_of(spec).to(torch.device(device))
    assert list(there.draws["global"]) == list(AUGMENTATIONS)
    multi_crop(there.canvas, there.draws, spec)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        multi_crop(there.canvas, there.draws, spec)
    asked = [event.name for event in profiled.events() or () if event.name in QUESTIONS]
    assert asked == []


def of_the_kernel(event: Any) -> bool:
    """Whether it is torch's fused AdamW for the CPU that reads its own step counts, which lie in the host's memory."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
        if event.name == "aten::_fused_adamw_":
            return True
    return False


def test_the_profiler_would_see_a_question() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        float(torch.ones(1))
    assert {event.key for event in profiled.key_averages()} & QUESTIONS


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "network", "settings"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_step_never_waits_for_the_gpu(name: str, network: str, settings: optim.ResolvedConfig) -> None:
    going = steps(name, network, settings, torch.device("cuda"))
    for _ in range(3):
        next(going)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(StopIteration):
            next(going)
    finally:
        torch.cuda.set_sync_debug_mode("default")
