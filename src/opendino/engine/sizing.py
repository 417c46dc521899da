"""How many images a step holds, in how many parts it is worked off, and how many workers feed it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from opendino.core import distributed, ranges
from opendino.core.contracts import Backbone, Method
from opendino.core.errors import UsageError, UserError
from opendino.core.types import ViewSpec
from opendino.engine.parallel import Parallel

_REFUSE_FACTOR = 4
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MARGIN = 1.25  # for the head, the teacher and what a step allocates besides


def batch(wanted: int | str, num_images: int, seen: float, device: torch.device) -> tuple[int, str]:
    """Images per step over all devices, and why.

    Args:
        wanted: That many, or "auto": a power of two, at most 256 a GPU (64 a process elsewhere), a quarter of the set,
            and, above 32, so many that 480 steps are left. Of runs that see as many images those of 120 and 60 steps
            fell behind (docs/log.md, defaults on a small set).
        num_images: In the set.
        seen: By the whole run, epochs · set; infinite where the number of steps is fixed.
        device: Of this process.

    Raises:
        UserError: More than the set has.
    """
    world = distributed.world_size()
    if isinstance(wanted, int):
        if wanted > num_images:
            raise UserError(
                f"The set has {num_images} images, fewer than one batch of {wanted}",
                f"Use --batch {num_images} or less, or leave it to auto",
            )
        if wanted % world:
            raise UserError(f"A batch of {wanted} does not divide over {world} processes", f"Use a multiple of {world}")
        return wanted, "as configured"
    limit = 256 if device.type == "cuda" else 64
    limit = min(limit * world, max(2, num_images // 4), max(32, seen / 480))
    size = world
    while size * 2 <= limit:
        size *= 2
    return max(size, min(2, num_images)), f"{num_images:,} images on {world} {device.type} device{'s' * (world > 1)}"


def activation_bytes(backbone: Backbone, spec: ViewSpec, recomputed: bool = False) -> float:
    """What autograd keeps of one image's views, in float32.

    Args:
        backbone: On the meta device its forward pass tells sizes and computes nothing. It sees two images: BatchNorm
            wants more than one value.
        spec: The views.
        recomputed: Of each transformer block only what goes in is kept, and everything of one block at a time.
    """
    kept: dict[int, int] = {p.untyped_storage()._cdata: 0 for p in backbone.parameters()}

    def record_storage(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage.nbytes())
        alive.append(tensor)  # lest a later storage takes the place, and the number, of a freed one
        return tensor

    alive: list[Tensor] = []
    block_inputs, block_saved = [], []  # bytes that go into each block, and that are kept in it
    for block in backbone.transformer_blocks() if recomputed else ():
        block.register_forward_pre_hook(lambda _, x: block_inputs.append((x[0].nbytes, sum(kept.values()))))
        block.register_forward_hook(lambda *_: block_saved.append(sum(kept.values()) - block_inputs[-1][1]))
    device = next(backbone.parameters()).device
    views = [torch.zeros(2 * len(g.views), 3, g.size_px, g.size_px, device=device) for g in spec.groups if g.views]
    with torch.autograd.graph.saved_tensors_hooks(record_storage, lambda tensor: tensor):
        backbone(views)
    saved = sum(block_saved) - sum(size for size, _ in block_inputs) - max(block_saved, default=0)
    return _MARGIN * (sum(kept.values()) - saved) / 2


@dataclass(frozen=True)
class Memory:
    """What training takes of each device, in bytes.

    Attributes:
        weights: Of student and teacher.
        gradients: Of the student, with the copy in which DDP sends them.
        moments: The optimizer's.
        activations: What autograd keeps of one part of a step.
    """

    weights: float
    gradients: float
    moments: float
    activations: float

    @property
    def total(self) -> float:
        """All together."""
        return self.weights + self.gradients + self.moments + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "moments", "activations")
        numbers = {name: getattr(self, name) / 2**30 for name in parts}
        return ", ".join(f"{name} {gib:,.0f}" if gib > 99 else f"{name} {gib:.2g}" for name, gib in numbers.items())


def memory(method: Method, optimizer: str, activations: float, sharded: bool) -> Memory:
    """An estimate before the start.

    Args:
        method: Its networks count, wherever they are.
        optimizer: Its name; AdamW keeps two numbers a weight, the others one.
        activations: Bytes of one part of a step.
        parted: Whether the ranks part weights, gradients and moments among them (FSDP); else each holds all (DDP).
    """
    world = distributed.world_size()
    weights = sum(p.nbytes for p in method.parameters())
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    copies = 2 if world > 1 and not sharded else 1
    num_shards = world if sharded else 1
    moments = (2 if optimizer == "adamw" else 1) * trained
    return Memory(weights / num_shards, copies * trained / num_shards, moments / num_shards, activations)


def free_bytes(device: torch.device) -> float:
    """Memory that nobody uses: of the GPU, or this process's share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def total_bytes(device: torch.device) -> float:
    """All memory there is: of the GPU, or this process's share of the machine's or of its container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limit = _CONTAINER_LIMIT.read_text().strip() if _CONTAINER_LIMIT.is_file() else "max"
    machine = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    total = min(machine, float(limit)) if limit.isdecimal() else machine
    return total / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_fits(needed: Memory, device: torch.device) -> None:
    """Refuse a run that cannot fit, before it takes the memory.

    What a step keeps for the way back is an estimate: it alone is refused only where it is several times too much.

    Raises:
        UserError: Weights, gradients and moments exceed the memory there is, or all together do by far.
    """
    total, fixed = total_bytes(device), needed.total - needed.activations
    if fixed > total or needed.total > _REFUSE_FACTOR * total:
        large = "network, --method.out-dim or --method.hidden-dim" if fixed > total else "--batch or smaller views"
        raise UserError(
            f"Training needs {needed.total / 2**30:,.0f} GiB ({needed}), and the {device.type} device has "
            f"{total / 2**30:.2g} GiB",
            f"Use a smaller {large}",
        )


def parallel(
    wanted: Parallel, method: Method, optimizer: str, activations: float, device: torch.device
) -> tuple[Literal["ddp", "fsdp"], str]:
    """How ranks share the work, and the estimate of a device's memory, for people.

    Args:
        wanted: ddp, fsdp, or auto: fsdp only where all ranks would have to hold more than is free.
        method: On the host.
        optimizer: Its name.
        activations: Bytes of one part of a step.
        device: Whose memory counts.

    Raises:
        UserError: The device cannot hold it.
    """
    free, how = free_bytes(device), wanted
    if how == "auto":
        how = (
            "ddp"
            if distributed.world_size() == 1 or memory(method, optimizer, activations, False).total <= free
            else "fsdp"
        )
    needed = memory(method, optimizer, activations, how == "fsdp")
    check_fits(needed, device)
    where = f" of each of {distributed.world_size()} {how} devices" if distributed.world_size() > 1 else ""
    text = f"memory{where} = {needed.total / 2**30:.2g} GiB of {free / 2**30:.2g} free: {needed}"
    return how, text if needed.total <= free else f"{text}; it may not fit: a smaller --batch takes less"


def micro_batches(wanted: int | str, batch: int, image_bytes: float, device: torch.device) -> tuple[int, str]:
    """In how many parts a rank works off its share of a step, and why.

    Args:
        wanted: That many, or "auto": as few as fit.
        batch: Images per step over all ranks.
        each: Bytes an image's views take, see `activation_bytes`.
        device: Whose memory counts.

    Raises:
        UserError: The share does not divide into that many parts.
    """
    local_batch = batch // distributed.world_size()
    if isinstance(wanted, int):
        if local_batch % wanted:
            raise UserError(
                f"{local_batch} images do not divide into optim.grad_accum_steps={wanted} parts",
                f"Use a divisor of {local_batch}",
            )
        return wanted, "as configured"
    if device.type == "cuda":
        free, what = 0.6 * torch.cuda.mem_get_info(device)[0], "60% of the free GPU memory"
    else:
        free, what = 0.25 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "a quarter of the memory"
    num_micro_batches = next(
        n
        for n in range(1, local_batch + 1)
        if local_batch % n == 0 and (local_batch // n * image_bytes <= free or n == local_batch)
    )
    return (
        num_micro_batches,
        f"an image's views need about {image_bytes / 2**20:.0f} MiB, and {what} is {free / 2**30:.1f} GiB",
    )


def workers(wanted: int | str, device: torch.device) -> tuple[int, str]:
    """Loader processes of this rank, and why.

    Raises:
        UsageError: More were asked for than the cores can serve.
    """
    cores = ranges.cores()
    if isinstance(wanted, int):
        if wanted > ranges.MOST_PROCESSES:
            hint = f"Use 0 to {ranges.MOST_PROCESSES}, or auto"
            raise UsageError(f"--workers is {wanted:,}, and this machine has {cores} cores", hint)
        return wanted, "as configured"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cpu":
        return max(1, cores // (4 * local)), f"a quarter of {cores} cores; the rest train"
    number = min(16, max(1, cores // local - 1))
    return number, f"{cores} cores for {local} device{'s' * (local > 1)}"
