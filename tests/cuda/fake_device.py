"""A CUDA device that is not there: tensors with shapes, types and a device, and no values.

torch's FakeTensorMode runs the code of a step on such tensors, on a machine without a GPU. What torch asks the driver
is answered here. `enable` changes the whole process, so these tests run in processes of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

DEVICE_COUNT = 127  # more than autograd asks for
COMPILER = shutil.which("cc") or shutil.which("gcc")


def missing() -> str | None:
    """Why this machine cannot run these tests; None if it can."""
    import torch

    if sys.platform != "linux" or not COMPILER:
        return "needs Linux and a C compiler"
    if not torch.backends.cuda.is_built():
        return "needs a build of torch for CUDA"
    if torch.__version__ < "2.15":
        return "needs torch 2.15: the launches are those of its operators"
    return "this machine has a GPU: pytest -m gpu" if torch.cuda.is_available() else None


def enable() -> None:
    """Prepare this process for fake CUDA tensors; call it before torch is imported."""
    assert "torch" not in sys.modules, "torch has found the driver's functions already"
    assert COMPILER
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so"
        source = Path(__file__).with_name("no_driver.c")
        subprocess.run([COMPILER, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", source, "-o", library], check=True)
        driver = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)

    import torch
    import torch._dynamo
    from torch.autograd import graph

    def seen(run: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            driver.set_num_devices(DEVICE_COUNT)
            try:
                return run(*args, **kwargs)
            finally:
                driver.set_num_devices(0)

        return call

    torch.autograd._engine_run_backward = graph._engine_run_backward = seen(graph._engine_run_backward)  # pyright: ignore
    torch.cuda.is_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True  # pyright: ignore
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    # torch has no such kernel for tensors without values; it changes its arguments and returns nothing.
    torch.library.impl("aten::_fused_sgd_", "Meta", lambda *args, **kwargs: None)
    _take_flash_attention()


def _take_flash_attention() -> None:
    """torch chooses the kernel of attention by asking the device; on any GPU of today it is this one."""
    import torch
    from torch import Tensor

    from opendino.models import vit_layers

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    vit_layers.scaled_dot_product_attention = attention


@contextlib.contextmanager
def fake_tensors() -> Iterator[Any]:
    """Context in which tensors are fake. Yields the mode: `mode.from_tensor(x)` is a fake copy, on the same device."""
    import torch
    from tests.cuda import watch
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Generator(torch.Generator):
        def __new__(cls, device: object = None) -> torch.Generator:
            return super().__new__(cls)

    with (
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.object(torch.nn.Module, "to", lambda self, *args, **kwargs: self),
        mock.patch.object(torch.Tensor, "pin_memory", watch.pin),
        FakeTensorMode() as mode,
    ):
        yield mode


def move(module: Any, mode: Any, channels_last: bool = True) -> None:
    """Put a module on the fake device, in place, as `engine.parallel.prepare_distributed` would on a real one.

    `Module.to` exchanges a tensor's memory, which fake tensors do not allow; in `fake_tensors` it does nothing.
    """
    import torch
    from torch import Tensor, nn

    def moved(x: Tensor) -> Tensor:
        layout = torch.channels_last if channels_last and x.ndim == 4 else torch.preserve_format
        return torch.empty_like(mode.from_tensor(x), device="cuda:0", memory_format=layout, requires_grad=False)

    for each in module.modules():
        for name, x in each._parameters.items():
            each._parameters[name] = None if x is None else nn.Parameter(moved(x), x.requires_grad)
        for name, x in each._buffers.items():
            each._buffers[name] = None if x is None else moved(x)
