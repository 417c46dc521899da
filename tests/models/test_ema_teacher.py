"""The teacher: an exact copy, an exact average, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from opendino.models.ema_teacher import copy_from, ema_

EPSILON = torch.finfo(torch.float64).eps


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5)).double()
    model(torch.randn(6, 3, 3, 3, dtype=torch.float64))  # moves the running statistics
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_copy_takes_parameters_and_buffers_and_ends_gradients() -> None:
    teacher, student = network(0), network(1)
    student(torch.randn(6, 3, 3, 3, dtype=torch.float64))
    copy_from(teacher, student)
    for key, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[key], value), key
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    pointers = {p.data_ptr() for p in student.parameters()}
    assert not any(p.data_ptr() in pointers for p in teacher.parameters())


def test_average_is_exact_to_rounding() -> None:
    teacher, student = network(0), network(1)
    teacher.requires_grad_(False)
    for momentum in (0.0, 0.5, 0.996, 1 - 1e-9, 1.0):
        before = state(teacher)
        ema_(teacher, student, momentum, torch.tensor(True))
        for key, parameter in teacher.named_parameters():
            old, new = before[key], student.get_parameter(key).detach()
            expected = momentum * old + (1 - momentum) * new
            bound = 4 * EPSILON * torch.maximum(old.abs(), new.abs())
            assert bool(((parameter - expected).abs() <= bound).all()), (key, momentum)


def test_average_of_many_steps_follows_the_closed_form() -> None:
    teacher, student = network(0), network(1)
    teacher.requires_grad_(False)
    start, end = state(teacher), state(student)
    for _ in range(100):
        ema_(teacher, student, 0.97, torch.tensor(True))
    for key, parameter in teacher.named_parameters():
        expected = 0.97**100 * start[key] + (1 - 0.97**100) * end[key]
        torch.testing.assert_close(parameter, expected, rtol=0, atol=400 * EPSILON)


def test_a_skipped_step_changes_nothing() -> None:
    teacher, student = network(0), network(1)
    teacher.requires_grad_(False)
    nn.init.constant_(next(student.parameters()), torch.nan)
    before = state(teacher)
    ema_(teacher, student, 0.5, torch.tensor(False))
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_buffers_are_the_teachers_own() -> None:
    teacher, student = network(0), network(1)
    before = state(teacher)
    ema_(teacher.requires_grad_(False), student, 0.5, torch.tensor(True))
    for key, _ in teacher.named_buffers():
        assert torch.equal(teacher.state_dict()[key], before[key]), key


def test_the_student_keeps_its_weights_and_its_graph() -> None:
    teacher, student = network(0), network(1)
    copy_from(teacher, student)
    before = state(student)
    loss = student(torch.ones(2, 3, 3, 3, dtype=torch.float64)).sum()
    ema_(teacher, student, 0.5, torch.tensor(True))
    loss.backward()  # fails if a saved tensor was changed in place
    assert all(torch.equal(student.get_parameter(key), before[key]) for key, _ in student.named_parameters())


def test_the_host_never_waits() -> None:
    with FakeTensorMode():  # has no values: reading one raises
        teacher, student, ok = nn.Linear(3, 4), nn.Linear(3, 4), torch.ones((), dtype=torch.bool)
        ema_(teacher, student, 0.9, ok)


def test_other_layouts_are_refused() -> None:
    teacher, student = network(0).to(memory_format=torch.channels_last), network(1)
    with pytest.raises(AssertionError, match="layouts"):
        ema_(teacher.requires_grad_(False), student, 0.9, torch.tensor(True))
