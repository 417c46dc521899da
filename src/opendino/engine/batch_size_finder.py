"""How many images a device can work off at once, found by trying: networks, kernels and allocator decide it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from opendino.core import distributed
from opendino.core.contracts import Method
from opendino.core.types import Clock, Views, ViewSpec
from opendino.engine import precision, sizing

_LEFT_FREE = 0.05  # of the device's memory: for evaluations, and for a batch of larger images
_CLOCK = Clock(0, 1000, 100)


def fewest_parts(
    make: Callable[[], Method], spec: ViewSpec, share: int, optimizer: str, dtype: torch.dtype, device: torch.device
) -> int | None:
    """In how many parts a device must work off a step for them to fit; None if not even single images do.

    Each try is the forward and backward pass of a method on views of zeros, beside as much memory as the optimizer
    will take.

    Args:
        make: A fresh method; it is gone afterwards.
        spec: Its views.
        share: Images of a step on this device.
        optimizer: Its name, see `sizing.memory`.
        dtype: Of the networks' matrix products.
        device: A GPU. What a CPU has too little of ends the process.
    """
    try:
        with distributed.single_process():
            method = make().to(device).to(memory_format=torch.channels_last).train()
            moments = sizing.memory(method, optimizer, 0.0, parted=False).moments
            free = _LEFT_FREE * torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0.0
            kept = torch.empty(int(moments + free), dtype=torch.uint8, device=device)
            fitting = (
                n for n in range(1, share + 1) if share % n == 0 and _fits(method, spec, share // n, dtype, kept)
            )
            return next(fitting, None)
    except torch.OutOfMemoryError:  # the weights alone
        return None
    finally:
        method = kept = None
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _fits(method: Method, spec: ViewSpec, images: int, dtype: torch.dtype, beside: torch.Tensor) -> bool:
    device = beside.device
    try:
        crops = {
            group.name: torch.zeros(len(group.views), images, 3, group.size_px, group.size_px, device=device)
            for group in spec.groups
            if group.views
        }
        labels = torch.zeros(images, dtype=torch.int64, device=device)
        views = Views(crops, labels, torch.arange(images), spec.num_labeled(images))
        with precision.autocast(device, dtype):
            loss = method(views, _CLOCK).loss
        loss.backward()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        method.zero_grad()
