"""Compiled parts of a step, for a GPU that is not there: inductor's kernels through Triton and ptxas for sm_90."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import subprocess
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from functorch.compile import make_boxed_func
from tests.cuda import steps
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import compile_fx
from torch._inductor import config as inductor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime import driver

from opendino.core import compilation

TARGET, ARCHITECTURE = GPUTarget("cuda", 90, 32), "sm_90a"
H100 = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132, warp_size=32,
    max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, L2_cache_size=50 * 2**20, gcnArchName="",
    shared_memory_per_block=48 * 1024, shared_memory_per_block_optin=227 * 1024,
    shared_memory_per_multiprocessor=228 * 1024, max_threads_per_block=1024, clock_rate=1_980_000,
    memory_clock_rate=2_619_000, memory_bus_width=5120,
)  # fmt: skip
SETTINGS = {"fx_graph_cache": False, "compile_threads": 1, "joint_graph_constant_folding": False}
"""Folding constants computes them on the device."""
KERNEL = re.compile(r"(triton_\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str='cuda'\)", re.DOTALL)


LAUNCH = re.compile(r"(?:triton_\w+\.run|extern_kernels\.\w+|torch\.ops\.aten\.\w+\.\w+)\(")


class _Captured(Exception):
    """The code is there; do not load it."""


def compiled() -> dict[str, Any]:
    """Compile a step of a small transformer and of a small convolutional network.

    Returns:
        "parts": name of a compiled function and direction → launches. "kernels": name → registers, bytes spilled and
        bytes of shared memory. "failed": errors.
    """
    code, kernels, failed = dict[str, str](), dict[str, Any](), list[str]()
    warn = mock.patch.object(compilation.log, "warn", failed.append)  # of functions that run as written instead
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder),
        mock.patch.multiple(inductor, **SETTINGS),
        _on_h100(),
    ):
        with _capturing(code), warn:
            for network in ("vit", "conv4"):
                try:
                    steps.compiled_step(network)
                except Exception as error:
                    failed.append(f"a step of {network}: {type(error).__name__}: {error}")
        for name, source in _kernels(code):
            try:
                kernels[name] = _through_ptxas(name, source)
            except Exception as error:  # the compilers raise many types
                failed.append(f"{name}: {type(error).__name__}: {error}")
    parts = {name: len(LAUNCH.findall(text.partition("def call(")[2])) for name, text in code.items()}
    return {"parts": parts, "kernels": kernels, "failed": failed}


def _kernels(code: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Every kernel once: name with the part it is from, and source."""
    known = set[str]()
    for part, text in code.items():
        for name, source in KERNEL.findall(text):
            digest = hashlib.sha256(source.replace(name, "").encode()).hexdigest()
            if digest not in known:
                known.add(digest)
                yield f"{part} {name}", source


def _through_ptxas(name: str, source: str) -> dict[str, int]:
    """Compile a kernel with its first configuration."""
    name = name.split()[-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"  # Triton reads the source of a function from its file
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        tuner = getattr(module, name)
        settings, config = tuner.triton_meta, tuner.configs[0]
        signature = settings["signature"] | dict.fromkeys(config.kwargs, "constexpr")
        constants = settings.get("constants", {}) | config.kwargs
        made = triton.compile(
            ASTSource(tuner.fn, signature, constants, settings["configs"][0]), target=TARGET,
            options={"num_warps": config.num_warps, "num_stages": config.num_stages},
        )  # fmt: skip
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(made.asm["ptx"])
        command = [get_ptxas(TARGET.arch).path, f"-arch={ARCHITECTURE}", "-v", ptx, "-o", Path(folder) / "kernel.cubin"]
        ended = subprocess.run(command, capture_output=True, text=True)
    said = ended.stdout + ended.stderr
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert registers and spilled, said
    return {"registers": int(registers[1]), "spilled": int(spilled[1]), "shared": made.metadata.shared}


def _capturing(code: dict[str, str]) -> Any:
    """Context in which compiled functions run as written, and `code` gets inductor's code of each graph."""

    def lower(name: str, graph: Any, inputs: Any, **kind: bool) -> Callable[..., Any]:
        def keep(self: GraphLowering) -> None:
            text = self.codegen()[0]
            code[name if name not in code else f"{name} {len(code)}"] = getattr(text, "value", text)
            raise _Captured

        with mock.patch.object(GraphLowering, "compile_to_module", keep):
            try:
                compile_fx.compile_fx_inner(graph, inputs, **kind)
            except Exception as error:
                if not _caused_by_capture(error):
                    raise
        return make_boxed_func(graph.forward)

    compile_function = torch.compile

    def capture(function: Any, dynamic: bool) -> Any:
        compilers = {
            f"{kind}_compiler": functools.partial(lower, f"{function.__qualname__} {word}", **flags)
            for kind, word, flags in (
                ("fw", "forward", {}), ("bw", "backward", {"is_backward": True}),
                ("inference", "inference", {"is_inference": True}),
            )
        }  # fmt: skip
        backend = aot_autograd(
            **compilers, decompositions=select_decomp_table, partition_fn=compile_fx.partition_fn,
            keep_inference_input_mutations=True,
        )  # fmt: skip
        return compile_function(function, backend=backend, dynamic=dynamic)

    return mock.patch.object(torch, "compile", capture)


def _caused_by_capture(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, _Captured):
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return error is not None


def _on_h100() -> Any:
    """Context in which inductor and Triton believe in an H100."""
    stack = contextlib.ExitStack()

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return TARGET

        def get_current_device(self) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return steps.DEVICE

    driver.set_active(Driver())
    properties = staticmethod(lambda *args, **kwargs: H100)
    yes, first = staticmethod(lambda *args, **kwargs: True), staticmethod(lambda *args, **kwargs: 0)
    for target, values in (
        (torch.cuda, {
            "get_device_properties": lambda *args: H100, "get_device_capability": lambda *args: (9, 0),
            "current_device": lambda: 0, "device_count": lambda: 1,
        }),
        (CudaInterface, {
            "get_device_properties": properties, "is_triton_capable": yes, "is_available": yes,
            "is_bf16_supported": yes, "raise_if_triton_unavailable": yes, "current_device": first,
            "get_compute_capability": staticmethod(lambda *args: 90),
        }),
        (CudaInterface.Worker, {"get_device_properties": properties, "current_device": first}),
        (triton_helpers, {"set_driver_to_gpu": lambda: None}),
    ):  # fmt: skip
        stack.enter_context(mock.patch.multiple(target, **values))
    return stack
