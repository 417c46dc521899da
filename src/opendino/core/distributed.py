"""Device selection and collectives (`torch.distributed`). Without a process group every function is a no-op."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from opendino.core.errors import UsageError

T = TypeVar("T")

_single_process = False


def device(name: str) -> torch.device:
    """The device of this process: `auto` is CUDA if available, else MPS, else the CPU.

    Raises:
        UsageError: The name is not a device, or this machine does not have it.
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
        # Some schedulers make only one GPU visible to each process, as index 0: that is why there is a modulo.
        index = int(os.environ.get("LOCAL_RANK", chosen.index or 0)) % torch.cuda.device_count()
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    return chosen


def is_distributed() -> bool:
    """Whether this process is one of several ranks (and not inside `single_process`)."""
    return not _single_process and dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """Context without communication: for code that one rank runs and the others do not."""
    global _single_process
    before, _single_process = _single_process, True
    try:
        yield
    finally:
        _single_process = before


def rank() -> int:
    """Rank of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def local_world_size() -> int:
    """Number of processes of the run on this machine, from LOCAL_WORLD_SIZE, which torchrun sets; 1 without."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Elementwise mean over ranks."""
    return all_reduce_sum(tensor) / world_size() if is_distributed() else tensor


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Elementwise sum over ranks, in a new tensor."""
    if not is_distributed():
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def all_reduce_logsumexp(tensor: Tensor) -> Tensor:
    """Elementwise log Σ exp over ranks, without overflow."""
    if not is_distributed():
        return tensor
    largest = tensor.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest + all_reduce_sum((tensor - largest).exp()).log()


def all_gather_with_gradient(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, as many on each: `[M …]` → `[M · ranks …]`, in rank order.

    The gradient of a row is the sum over ranks, so that averaging over ranks (DDP) gives that of the mean loss.
    """
    return cast(Tensor, _AllGather.apply(rows)) if is_distributed() else rows


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return all_reduce_sum(grads[0]).chunk(world_size())[rank()]


def all_true(flag: Tensor) -> Tensor:
    """Whether a scalar bool tensor is True on every rank; the result stays on the device."""
    if not is_distributed():
        return flag
    votes = flag.to(torch.float32)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return votes > 0


def any_true(flag: bool) -> bool:
    """Whether a Python bool is True on any rank. Waits for the device: only for rare decisions such as stopping."""
    if not is_distributed():
        return flag
    votes = torch.tensor(float(flag), device=_collective_device())
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes > 0)


def broadcast_object(value: T) -> T:
    """Rank 0's value on every rank, for measured values and times that differ between ranks."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_first_rank(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank. The others wait for it for up to a day.

    Ordinary collectives give up after ten minutes (NCCL) or thirty (gloo), sooner than a comparison of models ends.
    """
    if not is_distributed():
        return work()
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    box = [work() if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, group=group)
    dist.destroy_process_group(group)
    return cast(T, box[0])


def rank_slice(number: int) -> slice:
    """This rank's slice of `number` rows; `all_gather_rows` concatenates the slices in the original order."""
    return slice(rank() * number // world_size(), (rank() + 1) * number // world_size())


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Copy rank 0's values into these tensors on every rank, in place."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is sharded over the ranks (FSDP's DTensor)."""
    return hasattr(tensor, "full_tensor")  # importing DTensor for isinstance takes 0.25 s


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's shard, sharing its memory; a plain tensor is returned unchanged."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The unsharded tensor, on every rank. Every rank must call it. A plain tensor is returned unchanged."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def shard_like(model: Tensor, tensor: Tensor) -> Tensor:
    """Shard a full tensor, present on every rank, like `model`; unchanged if `model` is not sharded."""
    if not is_sharded(model):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded = cast(Any, model)
    return distribute_tensor(
        tensor.to(local_tensor(model).device), sharded.device_mesh, sharded.placements, src_data_rank=None
    )


def from_local_shard(model: Tensor, part: Tensor) -> Tensor:
    """The sharded tensor whose shard on this rank is `part`; sharded like `model`, unchanged if that is not sharded."""
    if not is_sharded(model):
        return part
    from torch.distributed.tensor import DTensor

    sharded = cast(Any, model)
    return DTensor.from_local(
        part, sharded.device_mesh, sharded.placements, run_check=False, shape=model.shape, stride=model.stride()
    )


def barrier() -> None:
    """Wait until every rank has reached this call."""
    if is_distributed():
        dist.barrier()


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks: `[M …]` → `[ΣM …]` in rank order, on every rank; M may differ per rank."""
    if not is_distributed():
        return rows
    lengths = all_gather_object([len(rows)])
    # all_gather needs equal shapes: pad to the longest, then cut.
    padded = rows.new_zeros(max(lengths), *rows.shape[1:], device=_collective_device())
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length].to(rows.device) for part, length in zip(parts, lengths, strict=True)])


def all_gather_object(values: list[T]) -> list[T]:
    """Concatenate the lists of all ranks, in rank order; the result is on every rank."""
    if not is_distributed():
        return values
    boxes: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(boxes, values)
    return [value for box in boxes for value in box]


def _collective_device() -> torch.device:
    """The device that the backend communicates on: the GPU for NCCL, the CPU for Gloo."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
