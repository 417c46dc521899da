"""Functions of many small operations, each compiled into a few kernels while a run asks for it (`torch.compile`).

What is marked holds no chance and no shape that depends on data; a network is compiled block by block, once for all
blocks that look alike. Outside of `fusing` (evaluations, other sizes) everything runs as it is written.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

from opendino.core import log
from opendino.core.errors import UserError, first_line

P = ParamSpec("P")
T = TypeVar("T")

_on = False


def compiled(function: Callable[P, T], any_shape: bool = False) -> Callable[P, T]:
    """A decorator: within `fusing` the function is compiled, for each shape that it meets or once for any.

    Where the compiler fails, the function runs as it is written from then on, with a warning.
    """
    compiled: Callable[P, T] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal compiled
        if not _on:
            return function(*args, **kwargs)
        # For any shape from the first on: with None the first would get a kernel, and roundings, of its own.
        compiled = compiled or torch.compile(function, dynamic=any_shape)
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException  # loaded by now where it was raised

            if not isinstance(error, TorchDynamoException):
                raise
            compiled = function
            log.warn(f"{function.__qualname__} could not be compiled and runs as it is written: {first_line(error)}")
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Within, marked functions are compiled, or (`wanted` False) are not although an outer one asks for it."""
    global _on
    before, _on = _on, wanted
    try:
        yield
    finally:
        _on = before


def compiler_works(device: torch.device) -> str | None:
    """Try it on a small function.

    Returns:
        None where it works, else why not.
    """
    try:
        torch.compile(_small, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # whatever a compiler that is missing or broken comes up with
        return first_line(error)
    return None


def choose(wanted: bool | str, device: torch.device, steps: int) -> tuple[bool, str]:
    """Whether a run is to compile, and why.

    Args:
        wanted: True, False, or "auto": on a GPU, from 1,000 steps on, where it works.
        device: That trains.
        steps: Of the run.

    Raises:
        UserError: It was asked for and does not work.
    """
    if wanted is False or (wanted == "auto" and (device.type != "cuda" or steps < 1000)):
        why = "as configured" if wanted is False else "worth its minute on a GPU in a run of 1,000 steps or more"
        return False, why
    broken = compiler_works(device)
    if broken and wanted is True:
        raise UserError(
            f"Nothing can be compiled here: {broken}",
            "Use --compile False (in the config.yaml of a run: compile: false), or install a C++ compiler",
        )
    return not broken, broken or ("as configured" if wanted is True else f"a {device.type} device, {steps:,} steps")


def _small(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x) * 2
