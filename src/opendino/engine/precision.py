"""Precision of the networks' matrix products. Softmax, normalization and losses always run in float32."""

from __future__ import annotations

import contextlib
import time
from typing import Literal

import torch

from opendino.core.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16"]


def choose(precision: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """Choose the autocast dtype.

    Args:
        precision: float32, bfloat16, or auto: bfloat16 on GPUs that support it and on CPUs where it is native and
            measured to be faster; else float32.
        device: Device to train on.

    Returns:
        The dtype, and the reason for the log.

    Raises:
        UsageError: Unknown name.
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
        if gain > 1.2:  # a smaller gain is lost to casts and operations that stay in float32
            return torch.bfloat16, f"measured {gain:.1f} times as fast as float32 on this CPU"
        return torch.float32, f"bfloat16 measured only {gain:.1f} times as fast on this CPU"
    return torch.float32, f"no native bfloat16 on this {device.type}"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Context manager for the forward pass: autocast to a 16-bit dtype, nothing for float32."""
    return torch.autocast(device.type, dtype) if dtype.itemsize == 2 else contextlib.nullcontext()


def _seconds(dtype: torch.dtype) -> float:
    """Seconds of one transformer-sized linear layer on the CPU, best of six."""
    x, w = torch.randn(2048, 384, dtype=dtype), torch.randn(1536, 384, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        times.append(time.perf_counter() - start)
    return min(times)
