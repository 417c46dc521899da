"""Training on one or many devices: DDP (full weights on every rank) or FSDP2 (sharded weights)."""

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
    """Context manager that joins the process group if torchrun, srun or `opendino train` started several processes.

    Args:
        name: Name of the device, as for `core.distributed.device`.

    Yields:
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
    """Move a method to its device and prepare it for data-parallel training.

    Args:
        method: On the CPU, identical on every rank.
        device: This rank's device.
        how: ddp keeps full weights on every rank; fsdp shards each tensor and gathers one transformer block at a time.
        synchronize: Convert BatchNorm to SyncBatchNorm.

    Returns:
        The module to call instead of the method, and a function that returns a method with full weights and rank 0's
        buffers on every rank, for evaluation and checkpoints. The function is collective: every rank must call it. Its
        tensors may be the ones in training, so do not change them.
    """
    if dist.is_distributed() and synchronize:
        sync_batch_norm.convert(method, device)
    if dist.is_distributed() and how == "fsdp":
        return method, _shard(method, device)
    method.to(device).to(memory_format=torch.channels_last)  # convolutions are fastest in this layout
    if not dist.is_distributed():
        return method, lambda: method
    # Let DDP ignore all buffers: a method reduces its own (DINO's center), and BatchNorm statistics are either local to
    # each rank or synchronized by SyncBatchNorm.
    distributed = nn.parallel.DistributedDataParallel
    distributed._set_params_and_buffers_to_ignore_for_model(method, [name for name, _ in method.named_buffers()])

    def full_method() -> Method:
        dist.broadcast_(method.buffers())
        return method

    # Gradients as views of DDP's buckets: no second copy of them, in memory and in time.
    return distributed(method, gradient_as_bucket_view=True), full_method


def unwrap(model: nn.Module) -> Method:
    """The method of a model that `prepare_distributed` returned."""
    return cast(Method, model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model)


def _shard(method: Method, device: torch.device) -> Callable[[], Method]:
    """Shard a method's weights in place, one transformer block at a time (FSDP2; Zhao et al. 2023, arXiv:2304.11277).

    Student and teacher are sharded alike, so that the EMA update needs no communication. Gathered weights are freed
    after the forward pass (`reshard_after_forward`), because the teacher has no backward pass that would free them.

    Returns:
        A function that gathers a method with full weights, see `prepare_distributed`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A copy of the method on the meta device (no memory), to be filled with the gathered weights.
    meta_params = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in method.parameters()}
    skeleton = copy.deepcopy(method, dict[int, object](meta_params))
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    for network in (method.student, method.teacher):
        if "backbone" not in network:
            continue  # a method without a teacher
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
    """Context manager for one micro-batch of a step: DDP reduces gradients only after the last one.

    FSDP reduces them after each micro-batch: accumulating unreduced gradients would need the memory of full tensors,
    which sharding is there to save.

    Args:
        model: The first result of `prepare_distributed`.
        last: Whether this is the step's last micro-batch.
    """
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()
