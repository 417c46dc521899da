"""The only two ways a teacher changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opendino.core import distributed


@torch.no_grad()
def copy_from(teacher: nn.Module, student: nn.Module) -> None:
    """Make the teacher equal to the student, parameters and buffers, and take it out of gradient descent.

    The two must be of one architecture; of a `ModuleDict` the student may have more entries than the teacher.
    """
    student = _same_entries(teacher, student)
    teacher.requires_grad_(False)
    for targets, sources in ((teacher.parameters(), student.parameters()), (teacher.buffers(), student.buffers())):
        for target, source in zip(targets, sources, strict=True):
            assert target.shape == source.shape, f"teacher has {tuple(target.shape)}, student {tuple(source.shape)}"
            target.copy_(source)


def ema_(teacher: nn.Module, student: nn.Module, momentum: float, ok: Tensor) -> None:
    """One step of the moving average: teacher ← momentum · teacher + (1 - momentum) · student, where `ok`.

    Parameters only. Buffers are batch norm's running statistics, and those the teacher gathers itself, in train mode
    with its own weights, as in DINO v1.

    Args:
        teacher: Changed in place.
        student: Same architecture (of a `ModuleDict` the teacher's entries count), finite weights: where `ok` is False
            they are multiplied by 0, not skipped.
        momentum: In [0, 1].
        ok: Scalar bool on the device. Where False the teacher stays as it is. The host never waits for it.
    """
    pair = (teacher, _same_entries(teacher, student))
    # Where FSDP has parted the two it has parted them alike, so that each rank moves what it holds.
    targets, sources = (
        [distributed.local_tensor(parameter.detach()) for parameter in net.parameters()] for net in pair
    )
    # In one pass over the weights: a third of the time that difference, product and sum take one after the other.
    share = ok.to(targets[0].dtype) * (1.0 - momentum)
    torch._foreach_lerp_(targets, sources, [share] * len(targets))  # pyright: ignore[reportPrivateImportUsage]


def _same_entries(teacher: nn.Module, student: nn.Module) -> nn.Module:
    if isinstance(teacher, nn.ModuleDict) and isinstance(student, nn.ModuleDict):
        return nn.ModuleDict({name: student[name] for name in teacher})
    return student
