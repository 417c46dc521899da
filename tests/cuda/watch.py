"""Watches what a piece of code asks of a (fake) CUDA device: kernels, copies, and waits of the host."""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim", "_unique", "_unique2",
    "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
"""Operations whose result the host needs, or whose shape depends on values."""
ANY_VALUE: dict[torch.dtype, bool | int] = {torch.bool: True, torch.int64: 0, torch.int32: 0}
"""In place of a value that the host asked for, so that the rest is watched too; 0.0 for others."""
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}
"""Operations without a kernel, besides views."""
TENSORS_PER_LAUNCH, BLOCKS_PER_LAUNCH, VALUES_PER_BLOCK = (770, 448, 336, 252, 210), 2240, 65536
"""Limits of torch's kernels over lists of 1, 2, ... tensors each, built for CUDA 13 (MultiTensorApply.cuh)."""


class Watch(TorchDispatchMode):
    """Counts operations while it is entered.

    A launch is an operation that is not a view: its number is that of PyTorch's operators, not exactly the number of
    kernels. Operators over lists of tensors count as many kernels as torch launches.

    Attributes:
        launches: Name of an operator → launches.
        faults: What makes the host wait or is a mistake, with its line of code: "wait", "copy to the host", "blocking
            copy", "copy from unpinned memory", "mixed devices".
        copies: Number of copies from the host to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.faults, self.copies = Counter[str](), list[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # a question for the device of a tensor
            return func(*args, **kwargs)
        name = func._overloadpacket.__name__
        given = tensors((args, kwargs))
        on_device = any(x.is_cuda for x in given)
        if on_device and (name in WAITS or (name.startswith("index") and by_mask(args))):
            self.faults.append(f"wait: {name} in {where()}")
            if name == "_local_scalar_dense":
                return ANY_VALUE.get(given[0].dtype, 0.0)
        copies = name in ("_to_copy", "copy_")
        if on_device and not copies and any(not x.is_cuda and x.ndim for x in given):
            self.faults.append(f"mixed devices: {name} in {where()}")
        out = func(*args, **kwargs)
        made = tensors(out)
        if copies:
            self._copy(given[-1], made[0], args, kwargs)
        if (on_device or any(x.is_cuda for x in made)) and name not in FREE and not is_view(func, given, made):
            self.launches[name] += launches(name, args)
        return out

    def _copy(self, source: Tensor, target: Tensor, args: Any, kwargs: Any) -> None:
        if source.device == target.device:
            return
        if not target.is_cuda:
            self.faults.append(f"copy to the host: {tuple(source.shape)} in {where()}")
            return
        self.copies += 1
        blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if blocking or not is_pinned(source):
            kind = "blocking copy" if blocking else "copy from unpinned memory"
            self.faults.append(f"{kind}: {tuple(source.shape)} {source.dtype} in {where()}")


_pinned = dict[int, Tensor]()


def pin(x: Tensor) -> Tensor:
    """In place of `Tensor.pin_memory`, which needs a driver: a copy that counts as pinned."""
    copy = x.clone()
    _pinned[copy.untyped_storage()._cdata] = copy
    return copy


def is_pinned(x: Tensor) -> bool:
    """Whether the tensor lies in memory made by `pin`."""
    return x.untyped_storage()._cdata in _pinned


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of nested arguments."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def by_mask(args: Any) -> bool:
    """Whether an indexing operation has a bool tensor as index: its result's shape depends on values."""
    return isinstance(args[1], list | tuple) and any(x.dtype == torch.bool for x in tensors(args[1]))


def is_view(func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether an operation computes nothing: all it returns shares memory with what it was given."""
    if func._schema.is_mutable or not made:
        return False
    known = {x.untyped_storage()._cdata for x in given}
    return all(x.untyped_storage()._cdata in known for x in made)


def launches(name: str, args: Any) -> int:
    """Number of kernels of an operation that has any."""
    lists = [x for x in args if isinstance(x, list | tuple) and len(x) and isinstance(x[0], Tensor)]
    if not name.startswith(("_foreach", "_fused")) or not lists:
        return 1
    if name.startswith("_fused"):  # also takes numbers of steps, which are scalars
        lists = [x for x in lists if x[0].shape == lists[0][0].shape]
    elif any(not alike(group) for group in zip(*lists, strict=True)):
        return len(lists[0])  # torch then takes the tensors one by one
    blocks = sum(-(-x.numel() // VALUES_PER_BLOCK) for x in lists[0])
    most = TENSORS_PER_LAUNCH[min(len(lists), len(TENSORS_PER_LAUNCH)) - 1]
    return max(-(-len(lists[0]) // most), -(-blocks // BLOCKS_PER_LAUNCH))


def alike(group: tuple[Tensor, ...]) -> bool:
    """Whether tensors have the same shape, layout and type."""
    return len({(x.shape, x.stride(), x.dtype, x.device) for x in group}) == 1


def where() -> str:
    """The innermost line of our code."""
    frames = [f for f in traceback.extract_stack() if "/opendino/" in f.filename] or traceback.extract_stack()[:-2]
    return f"{frames[-1].filename.rpartition('/opendino/')[2]}:{frames[-1].lineno}"
