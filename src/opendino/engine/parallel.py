"""The same training on one device or many: DDP averages the gradients of whole networks, FSDP2 of parted ones."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from typing import Literal, cast

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from opendino.core import distributed as dist
from opendino.core import slurm
from opendino.core.contracts import Backbone, Method
from opendino.engine import sync_batch_norm

Parallel = Literal["auto", "ddp", "fsdp"]


@contextlib.contextmanager
def process_group(name: str) -> Iterator[torch.device]:
    """Join the other processes where torchrun, srun or `opendino train` itself started several.

    Args:
        name: As `core.dist.device` takes it.

    Returns:
        This process's device.

    Raises:
        UsageError: There is no such device.
    """
    slurm.adopt_slurm_environment(os.environ)
    device = dist.device(name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_distributed():
        yield device
        return
    torch_dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        torch_dist.destroy_process_group()


def prepare_distributed(
    method: Method, device: torch.device, how: Literal["ddp", "fsdp"], synchronize: bool
) -> tuple[nn.Module, Callable[[], Method]]:
    """Put a method on its device, ready to train there with the others.

    Args:
        method: On the host, the same on every rank.
        device: This rank's.
        how: ddp keeps everything on every rank; fsdp a part of each tensor, and fetches a block's when it is its turn.
        synchronize: BatchNorm takes its statistics over all ranks.

    Returns:
        What to call in place of the method; and a function that gives a method with whole weights and the buffers of
        rank 0 on every rank, to be judged and saved. Every rank must call it; its tensors may be those that train.
    """
    if dist.is_distributed() and synchronize:
        sync_batch_norm.convert(method)
    if dist.is_distributed() and how == "fsdp":
        return method, _shard(method, device)
    method.to(device).to(memory_format=torch.channels_last)  # what convolutions are fastest in, on every device
    if not dist.is_distributed():
        return method, lambda: method
    # Buffers are left alone: a method reduces its own (the center), and BatchNorm's are each rank's or synchronized.
    distributed = nn.parallel.DistributedDataParallel
    distributed._set_params_and_buffers_to_ignore_for_model(method, [name for name, _ in method.named_buffers()])

    def full_method() -> Method:
        dist.broadcast_(method.buffers())
        return method

    return distributed(method), full_method


def _shard(method: Method, device: torch.device) -> Callable[[], Method]:
    """Part a method's weights among the ranks (FSDP2, Zhao et al. 2023), block by block, in place.

    Student and teacher alike, so that the moving average needs no word between ranks. Everything is given up after its
    turn in the forward pass: the teacher has no backward pass that would want it back.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A method without memory of its own, for whole weights to be put in.
    meta_params = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in method.parameters()}
    skeleton = copy.deepcopy(method, dict[int, object](meta_params))
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    for network in (method.student, method.teacher):
        for block in cast(Backbone, network["backbone"]).transformer_blocks():
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(method, mesh=mesh, reshard_after_forward=True)
    method.to(device)

    def full_method() -> Method:
        dist.broadcast_(method.buffers())
        pairs: list[tuple[Tensor, Tensor]] = []
        for empty_tensor, sharded in zip(skeleton.parameters(), method.parameters(), strict=True):
            pairs.append((empty_tensor, nn.Parameter(dist.full_tensor(sharded.detach()), sharded.requires_grad)))
        for empty_tensor, buffer in zip(skeleton.buffers(), method.buffers(), strict=True):
            pairs.append((empty_tensor, buffer.clone()))
        return copy.deepcopy(skeleton, {id(empty_tensor): full for empty_tensor, full in pairs})

    return full_method


def accumulating(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
    """The context of one part of a step: ranks talk only after the last part.

    Parted networks talk after each: gradients that wait would have to wait whole, and memory is why they are parted.
    """
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()
