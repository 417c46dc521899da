"""One path for one device and many: which device, rank, world size, reductions. No-ops when alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from opendino.core.errors import UsageError

T = TypeVar("T")

_alone = False


def device(name: str) -> torch.device:
    """The device of this process: `auto` is CUDA, else MPS, else the CPU.

    Raises:
        UsageError: Not a device, or not one of this machine's.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise UsageError(f"Unknown device '{name}'", "Use auto, cuda, mps or cpu") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(chosen.type, False):
        raise UsageError(f"This machine has no {chosen.type} device", "Use --device auto")
    if chosen.type == "cuda":
        # A scheduler may show each process its own GPU alone, as number 0.
        local_tensor = int(os.environ.get("LOCAL_RANK", chosen.index or 0)) % torch.cuda.device_count()
        chosen = torch.device("cuda", local_tensor)
        torch.cuda.set_device(chosen)
    return chosen


def is_distributed() -> bool:
    """Whether several processes work together."""
    return not _alone and dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """While this lasts no other process is talked to: for what one rank does and the others do not."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes train together, 1 when alone."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean over ranks, elementwise; the tensor itself when alone."""
    return all_reduce_sum(tensor) / world_size() if is_distributed() else tensor


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, elementwise; the tensor itself when alone."""
    if not is_distributed():
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def all_true(flag: Tensor) -> Tensor:
    """Scalar bool: whether it is True on every rank. Stays on the device."""
    if not is_distributed():
        return flag
    votes = flag.to(torch.float32)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return votes > 0


def any_true(flag: bool) -> bool:
    """Whether a host-side flag is True on some rank; a host sync, for rare decisions such as stopping."""
    if not is_distributed():
        return flag
    votes = torch.tensor(float(flag), device=_collective_device())
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes > 0)


def broadcast_object(value: T) -> T:
    """Rank 0's value, on every rank: for what each would measure or read off its own clock."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def rank_slice(number: int) -> slice:
    """This rank's share of so many rows: `gathered` puts the shares together again in their order."""
    return slice(rank() * number // world_size(), (rank() + 1) * number // world_size())


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Rank 0's values into these tensors of every rank, in place."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of it only (FSDP's DTensor)."""
    return hasattr(tensor, "full_tensor")  # the class itself costs a quarter of a second to import


def local_tensor(tensor: Tensor) -> Tensor:
    """The part that this rank holds, sharing memory; of a plain tensor itself."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of it, on every rank; every rank must ask. A plain tensor itself."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def shard_like(model: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor that every rank has, parted among them as `model` is; itself where that is plain."""
    if not is_sharded(model):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    parts = cast(Any, model)
    return distribute_tensor(
        tensor.to(local_tensor(model).device), parts.device_mesh, parts.placements, src_data_rank=None
    )


def from_local_shard(model: Tensor, part: Tensor) -> Tensor:
    """What this rank holds of a tensor that is parted as `model` is, as that tensor; itself where that is plain."""
    if not is_sharded(model):
        return part
    from torch.distributed.tensor import DTensor

    parts = cast(Any, model)
    return DTensor.from_local(
        part, parts.device_mesh, parts.placements, run_check=False, shape=model.shape, stride=model.stride()
    )


def barrier() -> None:
    """Wait for the others."""
    if is_distributed():
        dist.barrier()


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, rank by rank, `[ΣM …]` where each has `[M …]` with an M of its own; on every rank."""
    if not is_distributed():
        return rows
    lengths = all_gather_object([len(rows)])
    padded = rows.new_zeros(max(lengths), *rows.shape[1:], device=_collective_device())
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length].to(rows.device) for part, length in zip(parts, lengths, strict=True)])


def all_gather_object(values: list[T]) -> list[T]:
    """The lists of all ranks one after the other, on every rank."""
    if not is_distributed():
        return values
    boxes: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(boxes, values)
    return [value for box in boxes for value in box]


def _collective_device() -> torch.device:
    """Where ranks can exchange tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
