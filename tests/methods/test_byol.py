"""BYOL: the loss against its closed form, the schedule, and the modules of each network."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from opendino.core.errors import UsageError
from opendino.core.types import Clock, Views
from opendino.methods import byol
from opendino.methods.byol import regression
from opendino.models.conv4 import Conv4

EXACT = {"rtol": 0, "atol": 1e-10}
B = 5


def method(**changes: object) -> byol._BYOL:
    config = byol.Config(hidden_dim=12, projection_dim=6, momentum=0.9, **changes)
    return byol.build(config, lambda _: Conv4(width=2)).double().train()


def views() -> Views:
    crops = {"global": torch.randn(2, B, 3, 16, 16, dtype=torch.float64)}
    return Views(crops, torch.full((B,), -1), torch.arange(B))


def test_loss_and_gradient_are_the_closed_form() -> None:
    p, t = torch.randn(2, B, 7, dtype=torch.float64)
    p.requires_grad_()
    loss = regression(p, t)
    unit_p, unit_t = normalize(p.detach(), dim=1), normalize(t, dim=1)
    torch.testing.assert_close(loss.detach(), (unit_p - unit_t).square().sum(1).mean(), **EXACT)
    loss.backward()
    cosine = (unit_p * unit_t).sum(1, keepdim=True)
    # d(-2 cos)/dp = -2 (t̂ - cos · p̂) / |p|
    torch.testing.assert_close(
        p.grad, -2 * (unit_t - cosine * unit_p) / p.detach().norm(dim=1, keepdim=True) / B, **EXACT
    )


def test_the_two_directions_are_summed_and_each_view_has_its_own_batch_statistics() -> None:
    trained, seen = method(), views()
    copied = copy.deepcopy(trained)
    one, other = seen.crops["global"]

    def student(x: Tensor) -> Tensor:
        return copied.student["predictor"](copied.student["head"](copied.student["backbone"]([x])[0]))

    def teacher(x: Tensor) -> Tensor:
        return copied.teacher["head"](copied.teacher["backbone"]([x])[0])

    expected = regression(student(one), teacher(other)) + regression(student(other), teacher(one))
    output = trained(seen, Clock(0, 10, 5))
    torch.testing.assert_close(output.loss, expected, **EXACT)
    assert 0 <= float(output.loss.detach()) <= 8, "two directions of at most 4 each"


def test_only_the_student_has_a_predictor_and_it_can_be_left_out() -> None:
    assert method().student.keys() - method().teacher.keys() == {"predictor"}
    assert method(predictor=False).student.keys() == method(predictor=False).teacher.keys()


def test_momentum_rises_as_the_papers_formula() -> None:
    trained = method()
    for k in range(10):
        expected = 1 - (1 - 0.9) * (math.cos(math.pi * k / 10) + 1) / 2
        assert trained.ema_momentum(Clock(k, 10, 5)) == pytest.approx(expected, abs=1e-15)


def test_the_teacher_has_its_own_batch_statistics_and_averaged_weights() -> None:
    trained = method()
    clock = Clock(3, 10, 5)
    trained(views(), clock).loss.backward()
    with torch.no_grad():
        for parameter in trained.student.parameters():
            parameter.add_(1.0)
    before = {name: p.clone() for name, p in trained.teacher.named_parameters()}
    buffers = {name: b.clone() for name, b in trained.teacher.named_buffers()}
    trained.after_step(clock, torch.tensor(True))
    m = trained.ema_momentum(clock)
    for name, parameter in trained.teacher.named_parameters():
        expected = m * before[name] + (1 - m) * trained.student.get_parameter(name)
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-14)
    assert all(torch.equal(b, buffers[name]) for name, b in trained.teacher.named_buffers())
    assert any(not torch.equal(b, torch.zeros_like(b)) for n, b in buffers.items() if n.endswith("running_mean"))


def test_a_collapsed_projection_shows_in_the_metrics() -> None:
    trained = method()
    with torch.no_grad():
        trained.teacher["head"][-1].weight.zero_()[:, 0] = 1.0  # every image on one line
        trained.teacher["head"][1].weight.zero_()
        trained.teacher["head"][1].bias.fill_(1.0)
    metrics = trained(views(), Clock(0, 10, 5)).metrics
    assert float(metrics["projection_spread"]) < 1e-12
    assert float(metrics["feature_spread"]) > 0.01


@pytest.mark.parametrize("wrong", [{"momentum": 1.5}, {"hidden_dim": 0}])
def test_impossible_settings_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        byol.Config(**wrong)
