"""In which precision the networks run. Softmax, normalization and losses are float32 in any case."""

from __future__ import annotations

import contextlib
import time
from typing import Literal

import torch

from opendino.core.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16"]


def choose(precision: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the networks' matrix products, and why.

    auto: bfloat16 on CUDA where the hardware has it, and on CPUs where it is native and measured faster; else float32.

    Raises:
        UsageError: Not one of the names.
    """
    if precision == "float32":
        return torch.float32, "as configured"
    if precision == "bfloat16":
        return torch.bfloat16, "as configured"
    if precision != "auto":
        raise UsageError(f"Unknown precision '{precision}'", "Use auto, float32 or bfloat16")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "native on this GPU") if native else (torch.float32, "no native bfloat16 on this GPU")
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        gain = _seconds(torch.float32) / _seconds(torch.bfloat16)
        if gain > 1.2:  # casts and float32 residues eat a smaller gain
            return torch.bfloat16, f"measured {gain:.1f} times as fast as float32 on this CPU"
        return torch.float32, f"bfloat16 measured only {gain:.1f} times as fast on this CPU"
    return torch.float32, f"no native bfloat16 on this {device.type}"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """The context the forward pass runs in."""
    return torch.autocast(device.type, dtype) if dtype.itemsize == 2 else contextlib.nullcontext()


def _seconds(dtype: torch.dtype) -> float:
    """Best of a few timings of one transformer-sized linear layer on the CPU."""
    x, w = torch.randn(2048, 384, dtype=dtype), torch.randn(1536, 384, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        times.append(time.perf_counter() - start)
    return min(times)
