"""SwAV: the loss against its definition, frozen prototypes, and what a collapse looks like."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from opendino.core.types import Clock, Views
from opendino.engine.collapse_detection import diagnose
from opendino.losses import sinkhorn_knopp
from opendino.methods import swav
from opendino.models.conv4 import Conv4

EXACT = {"rtol": 0, "atol": 1e-10}
B, K, CLOCK = 6, 10, Clock(5, 100, 10)
SMALL = swav.Config(out_dim=16, hidden_dim=8, bottleneck_dim=4, freeze_prototypes="0")
OTHER_SETTINGS: dict[str, Any] = {
    "out_dim": 9, "hidden_dim": 9, "bottleneck_dim": 5, "temperature": 0.2, "code_temp": 0.1,
    "freeze_prototypes": ("10%", {"steps": 10}),
}  # fmt: skip
"""For tests/contracts/test_settings.py: setting → another value, and what else both runs have."""


def method(**changes: object) -> swav._SwAV:
    config = swav.Config(out_dim=K, hidden_dim=12, bottleneck_dim=6, **changes)
    return swav.build(config, lambda _: Conv4(width=2)).double().train()


def views(num_local: int = 3) -> Views:
    crops = {"global": torch.randn(2, B, 3, 16, 16, dtype=torch.float64)}
    if num_local:
        crops["local"] = torch.randn(num_local, B, 3, 8, 8, dtype=torch.float64)
    return Views(crops, torch.full((B,), -1), torch.arange(B))


@pytest.mark.parametrize("num_local", [0, 3])
def test_loss_and_gradient_are_those_of_every_pair_written_out(num_local: int) -> None:
    trained, seen = method(), views(num_local)
    plain = copy.deepcopy(trained)
    backbone, head = plain.student["backbone"], plain.student["head"]
    features = torch.cat(backbone([group.flatten(0, 1) for group in seen.crops.values()]))
    rows = normalize(head.mlp(features), dim=-1).unflatten(0, (-1, B))
    scores = rows @ normalize(head.last_layer.weight_v, dim=-1).T
    terms = []
    for code_view in range(2):
        code = sinkhorn_knopp(scores[code_view].detach(), trained.config.code_temp)
        others = [view for view in range(len(rows)) if view != code_view]
        terms += [-(code * (scores[view] / 0.1).log_softmax(-1)).sum(-1).mean() for view in others]
    expected = torch.stack(terms).mean()
    output = trained(seen, CLOCK)
    torch.testing.assert_close(output.loss, expected, **EXACT)
    expected.backward()
    output.loss.backward()
    for name, parameter in trained.student.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, plain.student.get_parameter(name).grad, **EXACT)


def test_prototypes_are_frozen_at_the_start_alone() -> None:
    trained = method(freeze_prototypes="3")
    for step, frozen in ((2, True), (3, False)):
        trained(views(), CLOCK).loss.backward()
        trained.before_step(Clock(step, 100, 10))
        assert (trained.student["head"].last_layer.weight_v.grad is None) == frozen


def test_it_has_no_teacher_and_leaves_the_student() -> None:
    trained = method()
    assert not trained.teacher and list(trained.networks()) == ["student"]


def test_its_collapses_have_names() -> None:
    def verdict(trained: swav._SwAV) -> str | None:
        found = diagnose({name: float(value) for name, value in trained(views(), CLOCK).metrics.items()})
        return found.name if found else None

    torch.manual_seed(0)
    assert verdict(method()) is None
    assert verdict(method(code_temp=100.0)) == "uniform"
    dead = method()
    with torch.no_grad():  # the same projection for every image; then the codes are uniform too
        dead.student["head"].mlp[-1].weight.zero_()
        dead.student["head"].mlp[-1].bias.fill_(1.0)
    metrics = dead(views(), CLOCK).metrics
    assert verdict(dead) == "uniform" and float(metrics["projection_spread"]) < 1e-6
    one = method()
    with torch.no_grad():  # prototype 0 lies where all projections are
        one.student["head"].mlp[-1].weight.mul_(0.01)
        one.student["head"].mlp[-1].bias.fill_(1.0)
        one.student["head"].last_layer.weight_v.fill_(-1.0)[0] = 1.0
    assert verdict(one) == "one-hot"
