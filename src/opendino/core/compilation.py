"""Optional `torch.compile`: decorated functions are compiled inside `compiling(True)` and run eagerly elsewhere.

Decorated functions use no random numbers and no data-dependent shapes. A network is compiled block by block, once for
all blocks of the same structure. Outside of `compiling` (evaluations, other sizes) everything runs eagerly.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

from opendino.core import log
from opendino.core.errors import UserError, first_line

P = ParamSpec("P")
T = TypeVar("T")

_enabled = False


def compiled(function: Callable[P, T], any_shape: bool = False) -> Callable[P, T]:
    """Decorator: compile the function inside `compiling(True)`.

    If the compiler fails, the function runs eagerly from then on, with a warning.

    Args:
        function: The function to compile at its first call.
        any_shape: False compiles again for every new input shape, True once for all shapes (dynamic shapes).
    """
    compiled: Callable[P, T] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal compiled
        if not _enabled:
            return function(*args, **kwargs)
        # `dynamic=None` would compile the first shape separately, with different rounding than later shapes.
        compiled = compiled or torch.compile(function, dynamic=any_shape)
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException  # slow to import, but loaded already

            if not isinstance(error, TorchDynamoException):
                raise
            compiled = function
            log.warn(f"{function.__qualname__} could not be compiled and runs eagerly: {first_line(error)}")
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Context in which decorated functions are compiled; `wanted` False turns this off inside an outer context."""
    global _enabled
    before, _enabled = _enabled, wanted
    try:
        yield
    finally:
        _enabled = before


def compiler_works(device: torch.device) -> str | None:
    """Compile a small function to test whether `torch.compile` works on a device.

    Returns:
        None if it works, else the reason in one line.
    """
    try:
        torch.compile(_test_function, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # a missing or broken compiler can raise anything
        return first_line(error)
    return None


def choose(wanted: bool | str, device: torch.device, steps: int) -> tuple[bool, str]:
    """Decide whether a run compiles, and why.

    Args:
        wanted: True, False, or "auto": on a CUDA device, for runs of 1,000 steps or more, if the compiler works.
        device: The training device.
        steps: Length of the run in optimizer steps.

    Returns:
        Whether to compile, and the reason in one line.

    Raises:
        UserError: `wanted` is True and the compiler does not work.
    """
    if wanted is False or (wanted == "auto" and (device.type != "cuda" or steps < 1000)):
        why = "as configured" if wanted is False else "compiling takes a minute; it pays off on a GPU from 1,000 steps"
        return False, why
    broken = compiler_works(device)
    if broken and wanted is True:
        raise UserError(
            f"torch.compile does not work on this machine: {broken}",
            "Use --compile False (in the config.yaml of a run: compile: false), or install a C++ compiler",
        )
    return not broken, broken or ("as configured" if wanted is True else f"a {device.type} device, {steps:,} steps")


def _test_function(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x) * 2


class EagerOptimizer(torch.optim.Optimizer):
    """An optimizer that is never compiled.

    torch excludes these methods from compilation, and for that imports its compiler when the first of them is called:
    two seconds at the start of every run. Here they are as written.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
