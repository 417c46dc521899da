"""Which kernel a device gets: dense products on accelerators, work by index on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 2**19  # values to compute at a time on a CPU: few enough for its caches, many enough to hide the calls


def by_index(x: Tensor) -> bool:
    """Whether to read only the pixels and compute only the images that matter: on a CPU.

    Then shapes depend on data and values are read. On other devices that would wait for the device. A graph that is
    being captured, and tensors without data, have the dense kernels as well.
    """
    return x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling()


def product_dtype(device: torch.device) -> torch.dtype:
    """Data type of the matrix products: float16 on a GPU, exact for 8-bit values, with 11-bit weights; else float32.

    Without tensor cores, float32 products on a GPU are ten times slower.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b` in the precision of the inputs, also inside autocast."""
    with full_precision(a.device):
        return torch.matmul(a, b, out=out)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Context manager that turns autocast off, if it is on.

    It is off where views are made in a thread of their own. There it must not be touched: leaving an autocast context
    empties the cache of converted weights of all threads, and then the gradients of a weight that the training thread
    uses twice are added in another precision.
    """
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else contextlib.nullcontext()


def by_kind_(images: Tensor, kind: Tensor, function: Callable[[Tensor, NDArray[np.int64]], Tensor]) -> None:
    """Replace images `[n ...]` by `function(images, rows)`, those of the same kind together; on a CPU only.

    Args:
        images: The images, changed in place.
        kind: bool or integers `[n]`; 0 for images that stay.
        function: Takes some of the images and their rows, and returns new images.
    """
    kinds, views = kind.numpy(), images.unbind()
    at_once = max(1, CHUNK // max(1, images[:1].numel()))
    for each in np.unique(kinds[kinds != 0]):
        same = np.flatnonzero(kinds == each)
        for first in range(0, len(same), at_once):
            rows = same[first : first + at_once]
            found = function(images.index_select(0, torch.from_numpy(rows)), rows)
            # Copied one by one: `index_copy_` takes ten times as long.
            for row, image in zip(rows.tolist(), found.unbind(), strict=True):
                views[row].copy_(image)
