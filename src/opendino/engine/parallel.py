"""The same training on one device or many: `torchrun` starts the processes, DDP averages their gradients."""

from __future__ import annotations

import contextlib
import os

import torch
import torch.distributed as torch_dist
from torch import nn

from opendino.core import dist
from opendino.core.contracts import Method


@contextlib.contextmanager
def processes(device: torch.device):
    """Join the other processes where torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.active():
        yield
        return
    torch_dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        torch_dist.destroy_process_group()


def wrap(method: Method) -> nn.Module:
    """What to call in place of the method: itself when alone, else itself with gradients averaged over ranks."""
    if not dist.active():
        return method
    # Buffers are left alone: a method reduces its own (the centre), and BatchNorm's are each rank's.
    distributed = nn.parallel.DistributedDataParallel
    distributed._set_params_and_buffers_to_ignore_for_model(method, [name for name, _ in method.named_buffers()])
    return distributed(method)


def accumulating(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
    """The context of one part of a step: ranks talk only after the last part."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()
