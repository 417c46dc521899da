"""Chooses batch size, number of micro-batches, DDP or FSDP, and loader workers; estimates the memory of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from opendino.core import distributed, machine_memory, ranges
from opendino.core.contracts import Backbone, Method
from opendino.core.errors import UsageError, UserError
from opendino.core.types import ViewSpec
from opendino.engine.parallel import Parallel
from opendino.features.crop_matching import NUM_IMAGES

_REFUSE_FACTOR = 4
_FEWEST_EVAL_IMAGES = 200
_MARGIN = 1.25  # for the head, the teacher and temporary tensors of a step


def batch(wanted: int | str, num_images: int, seen: float, device: torch.device) -> tuple[int, str]:
    """Images per step over all devices, and the reason.

    Args:
        wanted: A number, or "auto": a power of two times the world size, at most 256 per GPU (64 per CPU process), at
            most a quarter of the dataset, and above 32 only as many as leave 480 steps. (At the same number of images
            seen, runs of 120 and 60 steps were worse: docs/log.md, defaults on a small set.)
        num_images: Size of the dataset.
        seen: Images that the whole run sees (epochs times `num_images`); infinite if the number of steps is fixed.
        device: Device of this process.

    Raises:
        UserError: The dataset is smaller than one batch, or the batch is not divisible by the world size.
    """
    world = distributed.world_size()
    if isinstance(wanted, int):
        if wanted > num_images:
            raise UserError(
                f"The dataset has {num_images} images, fewer than one batch of {wanted}",
                f"Use --batch {num_images} or less, or --batch auto",
            )
        if wanted % world:
            raise UserError(
                f"A batch of {wanted} is not divisible by {world} processes", f"Use --batch with a multiple of {world}"
            )
        return wanted, "as configured"
    if world > num_images:
        raise UserError(
            f"The dataset has {num_images} images, fewer than the {world} processes that train on it",
            f"Use --devices {num_images} or less",
        )
    limit = 256 if device.type == "cuda" else 64
    limit = min(limit * world, max(2, num_images // 4), max(32, seen / 480))
    size = world
    while size * 2 <= limit:
        size *= 2
    return max(size, min(2, num_images)), f"{num_images:,} images on {world} {device.type} device{'s' * (world > 1)}"


def activation_bytes(backbone: Backbone, spec: ViewSpec, recomputed: bool = False) -> float:
    """Bytes that autograd saves for the views of one image, in float32.

    Args:
        backbone: On the meta device its forward pass computes only shapes. It runs on two images, because BatchNorm
            needs more than one value per channel.
        spec: The views.
        recomputed: With activation checkpointing: the inputs of all transformer blocks, and all activations of the
            largest block.
    """
    kept: dict[int, int] = {p.untyped_storage()._cdata: 0 for p in backbone.parameters()}

    def record_storage(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage.nbytes())
        alive.append(tensor)  # a freed storage's address could be reused, and then not be counted
        return tensor

    alive: list[Tensor] = []
    block_inputs, block_saved = [], []  # bytes of each block's input, and bytes saved in it
    for block in backbone.transformer_blocks() if recomputed else ():
        block.register_forward_pre_hook(lambda _, x: block_inputs.append((x[0].nbytes, sum(kept.values()))))
        block.register_forward_hook(lambda *_: block_saved.append(sum(kept.values()) - block_inputs[-1][1]))
    device = next(backbone.parameters()).device
    with torch.autograd.graph.saved_tensors_hooks(record_storage, lambda tensor: tensor):
        for tokens in (False, True):  # a method with masks uses all tokens of the views that have them
            groups = [group for group in spec.groups if group.views and bool(group.masks) == tokens]
            views = [torch.zeros(2 * len(g.views), spec.channels, *g.view_px, device=device) for g in groups]
            if views:
                backbone(views, tokens=tokens)
    saved = sum(block_saved) - sum(size for size, _ in block_inputs) - max(block_saved, default=0)
    return _MARGIN * (sum(kept.values()) - saved) / 2


@dataclass(frozen=True)
class Memory:
    """Estimated training memory per device, in bytes.

    Attributes:
        weights: Student and teacher.
        gradients: Student, including DDP's communication buckets.
        moments: Optimizer state.
        activations: Tensors that autograd saves for one micro-batch.
    """

    weights: float
    gradients: float
    moments: float
    activations: float

    @property
    def total(self) -> float:
        """Sum of all."""
        return self.weights + self.gradients + self.moments + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "moments", "activations")
        numbers = {name: getattr(self, name) / 2**30 for name in parts}
        return ", ".join(f"{name} {gib:,.0f}" if gib > 99 else f"{name} {gib:.2g}" for name, gib in numbers.items())


def memory(method: Method, optimizer: str, activations: float, sharded: bool) -> Memory:
    """Estimate the memory of a run before it starts.

    Args:
        method: Its parameters are counted; they may be on the meta device.
        optimizer: Name of the optimizer; AdamW stores two moments per weight, the others about one.
        activations: Bytes of activations per micro-batch.
        sharded: Whether weights, gradients and moments are sharded over the ranks (FSDP) or complete on each (DDP).
    """
    world = distributed.world_size()
    weights = sum(p.nbytes for p in method.parameters())
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    copies = 2 if world > 1 and not sharded else 1
    num_shards = world if sharded else 1
    moments = (2 if optimizer == "adamw" else 1) * trained
    return Memory(weights / num_shards, copies * trained / num_shards, moments / num_shards, activations)


def free_bytes(device: torch.device) -> float:
    """Free memory in bytes: of the GPU, or this process's share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return machine_memory.free_bytes()


def total_bytes(device: torch.device) -> float:
    """Total memory in bytes: of the GPU, or this process's share of the machine's or its container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return machine_memory.total_bytes()


def check_fits(needed: Memory, device: torch.device) -> None:
    """Refuse a run that cannot fit, before it allocates memory.

    Activations are an estimate, so they count only if the total is several times what the device has.

    Raises:
        UserError: Weights, gradients and moments exceed the total memory, or all together exceed it four times.
    """
    total, fixed = total_bytes(device), needed.total - needed.activations
    if fixed > total or needed.total > _REFUSE_FACTOR * total:
        large = "network, --method.out-dim or --method.hidden-dim" if fixed > total else "--batch or smaller views"
        raise UserError(
            f"Training needs {needed.total / 2**30:,.0f} GiB ({needed}), but the {device.type} device has "
            f"{total / 2**30:.2g} GiB",
            f"Use a smaller {large}",
        )


def parallel(
    wanted: Parallel, method: Method, optimizer: str, activations: float, device: torch.device
) -> tuple[Literal["ddp", "fsdp"], str]:
    """Choose DDP or FSDP, and describe the estimated memory per device for the log.

    Args:
        wanted: ddp, fsdp, or auto: fsdp only if DDP would need more than the free memory of a device.
        method: On the CPU.
        optimizer: Name of the optimizer.
        activations: Bytes of activations per micro-batch.
        device: Device whose memory counts.

    Raises:
        UserError: The run does not fit on the device.
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
    return how, text if needed.total <= free else f"{text}; it may not fit: a smaller --batch needs less"


def micro_batches(wanted: int | str, batch: int, image_bytes: float, device: torch.device) -> tuple[int, str]:
    """Number of micro-batches per optimizer step, and the reason.

    Args:
        wanted: A number, or "auto": as few as fit.
        batch: Images per step over all ranks.
        image_bytes: Bytes of activations per image, see `activation_bytes`.
        device: Device whose memory counts.

    Raises:
        UserError: The images per rank are not divisible by that number.
    """
    local_batch = batch // distributed.world_size()
    if isinstance(wanted, int):
        if local_batch % wanted:
            raise UserError(
                f"{local_batch} images do not divide into optim.grad_accum_steps={wanted} micro-batches",
                f"Set --optim.grad-accum-steps to a divisor of {local_batch}",
            )
        return wanted, "as configured"
    if device.type == "cuda":
        free, what = 0.6 * torch.cuda.mem_get_info(device)[0], "60% of the free GPU memory"
    else:
        free, what = 0.25 * machine_memory.total_bytes(), "a quarter of the memory"
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
    """Number of loader worker processes of this rank, and the reason.

    Args:
        wanted: A number, or "auto": a quarter of the cores if a CPU trains, else all but one of the rank's, up to 16.
        device: Device to train on.

    Raises:
        UsageError: More workers than the machine can run.
    """
    cores = ranges.cores()
    if isinstance(wanted, int):
        if wanted > ranges.MOST_PROCESSES:
            hint = f"Use 0 to {ranges.MOST_PROCESSES}, or auto"
            raise UsageError(f"--workers is {wanted:,}, and this machine has {cores} cores", hint)
        return wanted, "as configured"
    local = distributed.local_world_size()
    if device.type == "cpu":
        return max(1, cores // (4 * local)), f"a quarter of {cores} cores; the rest train"
    number = min(16, max(1, cores // local - 1))
    return number, f"{cores} cores for {local} device{'s' * (local > 1)}"


def eval_images(wanted: int | str, num_images: int, num_trained: int) -> tuple[int, str]:
    """Number of images for the online evaluation, and the reason.

    Args:
        wanted: A number, or "auto".
        num_images: Size of the dataset.
        num_trained: Images that the run trains on, counted as often as they are seen.
    """
    if isinstance(wanted, int):
        return wanted, "as configured"
    # Ten evaluations of two networks on one view per image cost about 2% of training on a hundred times as many images.
    number = min(num_images, max(1_500, min(10_000, num_trained // 100)))
    if number == num_images:
        return number, "all images"
    return number, f"1% of the {num_trained:,} images the run trains on, at least 1,500 and at most 10,000"


def affordable_eval_images(num_eval: int, num_trained: float) -> tuple[int, float]:
    """Fewer images for the online evaluations of a run whose time is limited, and what they cost.

    Args:
        num_eval: Images of an evaluation if time is not limited.
        num_trained: Images that the run trains on in its time, counted as often as they are seen.

    Returns:
        At most a tenth of the images of training, but 200: the standard error of an accuracy is then up to 3.5 points.
        And as training on how many images four evaluations cost, the one before training included.
    """
    number = min(num_eval, max(_FEWEST_EVAL_IMAGES, round(num_trained / 10)))
    # Before training three networks (student, teacher, initial), then two; crops are matched by one network, at first
    # by two, in gray and in color. One view without gradients costs about a tenth of a training image.
    return number, (9 * number + 5 * 4 * min(NUM_IMAGES, number)) / 10


def eval_every(wanted: str, num_eval: int, num_trained: int) -> tuple[str, str]:
    """Interval of the online evaluation, and the reason; "auto" evaluates three to ten times.

    Args:
        wanted: A duration, or "auto".
        num_eval: Images of an evaluation, which costs as much as training on a fifth of them.
        num_trained: Images that the run trains on, counted as often as they are seen.
    """
    if wanted != "auto":
        return wanted, "as configured"
    number = max(3, min(10, num_trained // (4 * max(1, num_eval))))
    why = "ten evaluations" if number == 10 else f"{number} evaluations: more would take over 5% of so short a run"
    return f"{-(-100 // number)}%", why
