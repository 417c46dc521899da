"""Teacher updates: copy from the student at the start, then an exponential moving average (EMA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opendino.core import distributed


@torch.no_grad()
def copy_from(teacher: nn.Module, student: nn.Module) -> None:
    """Copy the student's parameters and buffers to the teacher, and turn off the teacher's gradients.

    Both must have the same architecture; a student `ModuleDict` may have more entries than the teacher.

    Args:
        teacher: Changed in place.
        student: The network to copy from.
    """
    student = _same_entries(teacher, student)
    teacher.requires_grad_(False)
    for targets, sources in ((teacher.parameters(), student.parameters()), (teacher.buffers(), student.buffers())):
        for target, source in zip(targets, sources, strict=True):
            assert target.shape == source.shape, f"teacher has {tuple(target.shape)}, student {tuple(source.shape)}"
            target.copy_(source)


def ema_(teacher: nn.Module, student: nn.Module, momentum: float, ok: Tensor) -> None:
    """One EMA step: teacher ← momentum · teacher + (1 - momentum) · student, if `ok` is True.

    Only parameters are averaged. Buffers are running statistics of batch norm: the teacher runs in train mode and
    updates its own, as in DINO v1 (Caron et al. 2021).

    Args:
        teacher: Changed in place.
        student: Same architecture (extra entries of a `ModuleDict` are ignored), type and memory layout.
        momentum: In [0, 1].
        ok: Scalar bool tensor on the device. If False the teacher does not change. The CPU never waits for its value.
    """
    pair = (teacher, _same_entries(teacher, student))
    # FSDP shards teacher and student alike, so each rank updates its local shards.
    targets, sources = (
        [distributed.local_tensor(parameter.detach()) for parameter in net.parameters()] for net in pair
    )
    # SGD with maximize, weight decay 1 and the student's weights as gradient is t ← t - (1 - m)(t - s): the average.
    # It is one kernel for all weights and reads `ok` on the device. `_foreach_lerp_` gives the same bits, but with its
    # factor on the device it is one kernel for each weight.
    assert all(t.stride() == s.stride() for t, s in zip(targets, sources, strict=True)), "different memory layouts"
    torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
        targets, sources, [], lr=1.0 - momentum, weight_decay=1.0, momentum=0.0, dampening=0.0, nesterov=False,
        maximize=True, is_first_step=False, found_inf=(~ok).to(torch.float32),
    )  # fmt: skip


def center_(center: Tensor, means: Sequence[Tensor], momentum: float, ok: Tensor) -> None:
    """One EMA step of a center: the mean of the teacher's outputs (section 3.1 of DINO), if `ok` is True.

    Args:
        center: `[1 K]`, changed in place.
        means: `[1 K]` per micro-batch of this process; their mean over all processes is used.
        momentum: In [0, 1].
        ok: Scalar bool tensor on the device. If False the center does not change.
    """
    mean = distributed.all_reduce_mean(torch.stack(list(means)).mean(0))
    center.copy_(torch.where(ok, momentum * center + (1 - momentum) * mean, center))


def _same_entries(teacher: nn.Module, student: nn.Module) -> nn.Module:
    if isinstance(teacher, nn.ModuleDict) and isinstance(student, nn.ModuleDict):
        return nn.ModuleDict({name: student[name] for name in teacher})
    return student
