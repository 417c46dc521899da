"""Finds the largest micro-batch that fits on a GPU by trying: the network, kernels and allocator decide, no formula."""

from __future__ import annotations

from collections.abc import Callable

import torch

from opendino.core import distributed
from opendino.core.contracts import Method
from opendino.core.types import Clock, Views, ViewSpec
from opendino.engine import precision, sizing
from opendino.views import patch_masks

_RESERVED_FRAC = 0.05  # of the device's memory, for evaluations and for a batch of larger images
_CLOCK = Clock(0, 1000, 100)


def fewest_micro_batches(
    make_method: Callable[[], Method],
    spec: ViewSpec,
    num_images: int,
    optimizer: str,
    dtype: torch.dtype,
    device: torch.device,
) -> int | None:
    """Smallest number of micro-batches per optimizer step that fits in memory.

    Each try runs the method's forward and backward pass on views of zeros, while as much memory as the optimizer state
    will need is reserved.

    Args:
        make_method: Builds a new method; it is deleted afterwards.
        spec: The method's views.
        num_images: Images per step on this device.
        optimizer: Name of the optimizer, see `sizing.memory`.
        dtype: Autocast dtype.
        device: A GPU. On a CPU, running out of memory would kill the process.

    Returns:
        A divisor of `num_images`, or None if not even single images fit.
    """
    try:
        with distributed.single_process():
            # Other ranks try on their own devices: collectives in the method must not wait for them.
            method = make_method().to(device).to(memory_format=torch.channels_last).train()
            moments = sizing.memory(method, optimizer, 0.0, sharded=False).moments
            free = _RESERVED_FRAC * torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0.0
            reserved = torch.empty(int(moments + free), dtype=torch.uint8, device=device)
            candidates = (
                n
                for n in range(1, num_images + 1)
                if num_images % n == 0 and _fits(method, spec, num_images // n, dtype, reserved)
            )
            return next(candidates, None)
    except torch.OutOfMemoryError:  # not even the weights fit
        return None
    finally:
        method = reserved = None
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _fits(method: Method, spec: ViewSpec, micro_batch: int, dtype: torch.dtype, reserved: torch.Tensor) -> bool:
    device = reserved.device
    try:
        crops = {
            group.name: torch.zeros(len(group.views), micro_batch, spec.channels, *group.view_px, device=device)
            for group in spec.groups
            if group.views
        }
        labels = torch.zeros(micro_batch, dtype=torch.int64, device=device)
        masks = patch_masks.placeholders(spec, micro_batch, device)
        views = Views(crops, labels, torch.arange(micro_batch), spec.num_labeled(micro_batch), masks)
        with precision.autocast(device, dtype):
            loss = method(views, _CLOCK).loss
        loss.backward()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        method.zero_grad()
