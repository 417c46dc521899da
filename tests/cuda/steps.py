"""Training steps on fake CUDA tensors: which cases there are, and what each asks of the device."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import torch
import torch.distributed
import torch.distributed.fsdp
from tests.contracts.test_methods import NAMES, PACKAGE, small
from tests.contracts.test_methods import spec as small_spec
from tests.contracts.test_waiting import EVERYTHING
from tests.cuda import fake_device
from tests.cuda.watch import Watch
from torch import Tensor, nn
from torch.distributed import device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from opendino import config as configs
from opendino import run_parts, training
from opendino.config import Config
from opendino.core import compilation
from opendino.core.contracts import Backbone, Method
from opendino.core.types import Clock, ViewGroup, Views, ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.device_cache import DeviceCache
from opendino.data.loader import Batch, Batches
from opendino.data.open_source import open_source
from opendino.engine import optim, parallel
from opendino.engine.activation_checkpointing import checkpoint_activations
from opendino.methods import dino
from opendino.models.build import backbone
from opendino.models.load import preprocessing
from opendino.models.vit_layers import drop_on_subset
from opendino.run_parts import TrainingData
from opendino.views import patch_masks
from opendino.views.settings import view

DEVICE = torch.device("cuda:0")
CLOCK = Clock(5, 10, 4)
BATCH = 4
NETWORKS: dict[str, Callable[[], Backbone]] = {
    "vit": lambda: backbone("vit/8", image_px=32, embed_dim=16, depth=2, num_heads=2, drop_path=0.1),
    "resnet": lambda: backbone("resnet18/3x3", image_px=32, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)),
    "conv4": lambda: backbone("conv4", width=4),
    "vit_small": lambda: backbone("vit_small/16", drop_path=0.1),
}
OPTIMIZERS = ("adamw", "sgd", "lars")
IMAGES = "toy:textures?n=64&size=40"
PAPER = "vit_small/16 of the paper, with crops"


@dataclass(frozen=True)
class Case:
    """A step on prepared views.

    Attributes:
        method, network, optimizer: Their names.
        options: Of these: "accumulate" (two micro-batches), "global" (clip the common norm), "subset" (drop path on a
            subset), "checkpoint" (of activations), "whole" (distill: the teacher sees whole images), "ddp", "fsdp".
    """

    method: str
    network: str
    optimizer: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in the file of launches."""
        return " ".join((self.method, self.network, self.optimizer, *self.options))


def cases() -> list[Case]:
    """Every method with every network it takes; each optimizer with each method and with each network. And options."""
    found = []
    for i, method in enumerate(NAMES):
        networks = ["vit"] if method == "ibot" else ["vit", "resnet", "conv4"]  # ibot needs patches to mask
        found += [Case(method, network, OPTIMIZERS[(i + j) % 3]) for j, network in enumerate(networks)]
    return [
        *found,
        Case("ibot", "vit", "sgd"),
        Case("ibot", "vit", "lars"),
        Case("dino", "vit", "adamw", ("accumulate", "global", "subset", "checkpoint")),
        Case("distill", "conv4", "adamw", ("whole",)),
        Case("dino", "vit", "adamw", ("ddp",)),
        Case("dino", "vit", "lars", ("fsdp",)),
        Case("dino", "vit", "muon"),
        Case("dino", "conv4", "muon"),
        Case("byol", "resnet", "lars", ("ddp",)),  # its BatchNorm is not synchronized: torch's waits in each layer
    ]


def step(case: Case) -> Watch:
    """A step of a case on prepared views, after one that makes the optimizer's tensors."""
    module = importlib.import_module(f"{PACKAGE}.{case.method}")
    config = small(module)
    if "whole" in case.options:
        config = dataclasses.replace(config, teacher_view="whole")
    spec = small_spec(module, config)
    method: Method = module.build(config, lambda role: NETWORKS[case.network]()).train()
    method.set_preprocessing(preprocessing(32))
    if "subset" in case.options:
        drop_on_subset(cast(Backbone, method.student["backbone"]))
    if "checkpoint" in case.options:
        checkpoint_activations(cast(Backbone, method.student["backbone"]))
    settings = optim.ResolvedConfig(
        name=cast(Any, case.optimizer), clip_by="global" if "global" in case.options else "tensor",
        grad_accum_steps=2 if "accumulate" in case.options else 1,
    )  # fmt: skip
    indices = torch.arange(BATCH)  # stay on the host
    with _ranks(2 if {"ddp", "fsdp"} & {*case.options} else 1), fake_device.fake_tensors() as mode:
        how = "fsdp" if "fsdp" in case.options else "ddp"
        fake_device.move(method, mode, channels_last=how == "ddp")
        model, _ = parallel.prepare_distributed(method, DEVICE, how, synchronize=False)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            _prepare_ddp(model)
        views = [prepared_views(spec, indices)] * settings.grad_accum_steps
        return _second_step(method, model, settings, views)


def paper_step() -> Watch:
    """ViT-S/16 with the paper's views and widths, 64 images: the loader's batch, crops and step."""
    config = Config(data="", method=dino.Config(freeze_last_layer="0"))
    spec, settings = configs.views(config), optim.ResolvedConfig()
    with torch.device("meta"):
        method = dino.build(cast(Any, config.method), lambda role: NETWORKS["vit_small"]()).train()
    batch = read_batch(spec, 64, IMAGES)
    with fake_device.fake_tensors() as mode:
        fake_device.move(method, mode)
        batch, data = pinned(batch, mode), TrainingData(cast(Any, None), None, cast(Any, None), None)
        views = (run_parts.make_views(each, data, spec, DEVICE) for each in [batch])
        return _second_step(method, method, settings, views)


def all_crops() -> Watch:
    """The views of a batch with every augmentation, from images that the device keeps (`--cache device`)."""
    spec = ViewSpec((ViewGroup("global", 16, (view(EVERYTHING),) * 2),))
    batch = read_batch(spec, BATCH, IMAGES)
    batch = dataclasses.replace(batch, canvas=batch.canvas[:, :0])
    with fake_device.fake_tensors() as mode:
        mode.allow_non_fake_inputs = True
        cache = DeviceCache(DecodedImages(open_source(IMAGES), None), DEVICE, workers=0)
        mode.allow_non_fake_inputs = False
        data = TrainingData(cast(Any, None), cache, cast(Any, None), None)
        batch = pinned(batch, mode)
        with Watch() as watch:
            run_parts.make_views(batch, data, spec, DEVICE)
    return watch


def mistakes() -> dict[str, list[str]]:
    """What the watch says of code that makes the host wait, by name; of a whole step for the first."""
    clip = optim.clip

    def asking(*args: Any) -> Tensor:
        norm = clip(*args)
        return norm * norm.item()

    with mock.patch.object(optim, "clip", asking):
        found = {"a step that asks for its norm": step(Case("byol", "conv4", "adamw")).faults}
    with fake_device.fake_tensors():
        device, host = torch.ones(4, device=DEVICE), torch.ones(4)
        wrong: dict[str, Callable[[], object]] = {
            "a value": lambda: device.sum().tolist(),
            "values": lambda: device.cpu(),
            "a constant": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
            "a blocking copy": lambda: host.pin_memory().to(DEVICE),
            "an unpinned copy": lambda: host.to(DEVICE, non_blocking=True),
            "two devices": lambda: device.index_select(0, torch.zeros(2, dtype=torch.long)),
            "a shape": lambda: device[device > 0],
        }
        for name, do in wrong.items():
            with Watch() as watch, contextlib.suppress(Exception):
                do()
            found[name] = watch.faults
    return found


def compiled_step(network: str) -> None:
    """A step of DINO with small networks on prepared views, compiled."""
    module = importlib.import_module(f"{PACKAGE}.dino")
    spec, settings = small_spec(module), optim.ResolvedConfig()
    method = module.build(small(module), lambda role: NETWORKS[network]()).train()
    with fake_device.fake_tensors() as mode, compilation.compiling(True):
        fake_device.move(method, mode)
        views = prepared_views(spec, torch.empty(BATCH))
        optimizer = optim.build(settings, method.student)
        training.step(method, optimizer, settings, BATCH, CLOCK, [views], torch.bfloat16)


def _second_step(method: Method, model: Any, settings: optim.ResolvedConfig, views: Any) -> Watch:
    optimizer = optim.build(settings, method.student)
    for parameter in method.student.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    optim.step(optimizer, torch.ones((), dtype=torch.bool, device=DEVICE))
    with Watch() as watch:
        try:
            training.step(model, optimizer, settings, BATCH, CLOCK, views, torch.bfloat16)
        except Exception as error:  # e.g. of a shape that depends on values: say so of this step, and watch the others
            watch.faults.append(f"{type(error).__name__}: {error}")
    return watch


def prepared_views(spec: ViewSpec, indices: Tensor) -> Views:
    """Views of a batch on the device."""
    crops = {g.name: torch.empty(len(g.views), BATCH, 3, *g.view_px, device=DEVICE) for g in spec.groups if g.views}
    labels = torch.zeros(BATCH, dtype=torch.long, device=DEVICE)
    return Views(crops, labels, indices, spec.num_labeled(BATCH), patch_masks.placeholders(spec, BATCH, DEVICE))


def read_batch(spec: ViewSpec, size: int, source: str) -> Batch:
    """A batch of the loader, on the CPU."""
    batch = Batches(DecodedImages(open_source(source), None), spec, seed=0, batch=size)[0]
    assert isinstance(batch, Batch)
    return batch


def pinned(batch: Batch, mode: Any) -> Batch:
    """The batch as fake tensors in pinned memory, as the loader passes it on for a GPU."""
    draws = {name: each.map(mode.from_tensor) for name, each in batch.draws.items()}
    canvas, sizes, labels, indices = map(mode.from_tensor, (batch.canvas, batch.sizes, batch.labels, batch.indices))
    return Batch(canvas, sizes, labels, indices, draws).pin_memory()


@contextlib.contextmanager
def _ranks(number: int) -> Iterator[None]:
    """This process as one of several that do not exist: collectives return at once."""
    if number == 1:
        yield
        return
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    mesh = device_mesh.init_device_mesh("cuda", (number,))  # made of tensors with values
    nothing = mock.MagicMock()
    try:
        with (
            mock.patch.object(device_mesh, "init_device_mesh", return_value=mesh),
            # What DDP does at the start reads values.
            mock.patch.multiple(
                nn.parallel.distributed, _verify_param_shape_across_processes=nothing, _sync_module_states=nothing
            ),
            # FSDP gathers weights on a stream of its own.
            mock.patch.multiple(
                torch.cuda, Stream=nothing, Event=nothing, current_stream=nothing, stream=nothing,
                current_device=lambda: 0,
            ),
            mock.patch.object(Tensor, "record_stream", nothing),
        ):  # fmt: skip
            yield
    finally:
        torch.distributed.destroy_process_group()


def _prepare_ddp(model: nn.parallel.DistributedDataParallel) -> None:
    """Let DDP reduce gradients without values, and pass its first ten steps, which it times with events of a device."""

    def reduce(_, bucket):  # torch refuses annotations that are text
        torch.distributed.all_reduce(bucket.buffer())
        future = torch.futures.Future[Tensor]()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, reduce)
    for _ in range(10):
        with contextlib.suppress(torch.AcceleratorError):
            cast(Any, model).reducer.prepare_for_forward()
