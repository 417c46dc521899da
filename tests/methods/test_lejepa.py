"""LeJEPA: SIGReg and the prediction loss against their definitions, and what a collapse looks like."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from opendino.core.types import Clock, Views
from opendino.engine.collapse_detection import diagnose
from opendino.methods import lejepa
from opendino.methods.lejepa import directions, prediction, sigreg
from opendino.models.conv4 import Conv4

EXACT = {"rtol": 0, "atol": 1e-10}
B, D, CLOCK = 6, 5, Clock(5, 100, 10)
CONFIG = lejepa.Config(num_directions=7, hidden_dim=12, projection_dim=D)
SMALL = lejepa.Config(num_directions=8, hidden_dim=8, projection_dim=4)
OTHER_SETTINGS: dict[str, Any] = {"sigreg_weight": 0.5, "num_directions": 9, "hidden_dim": 9, "projection_dim": 5}
"""For tests/contracts/test_settings.py: setting → another value."""


def method() -> lejepa._LeJEPA:
    return lejepa.build(CONFIG, lambda _: Conv4(width=2)).double().train()


def views() -> Views:
    crops = {"global": torch.randn(2, B, 3, 16, 16), "local": torch.randn(3, B, 3, 8, 8)}
    return Views({name: x.double() for name, x in crops.items()}, torch.full((B,), -1), torch.arange(B))


def oracle(embeddings: Tensor, drawn: Tensor) -> tuple[float, Tensor]:
    """The statistic and its gradient by complex numbers, one view, direction and point at a time."""
    num_views, num_images, _ = embeddings.shape
    points = [3 * n / 16 for n in range(-16, 17)]
    value, gradient = 0.0, torch.zeros_like(embeddings)
    for v in range(num_views):
        for direction in drawn.T:
            projected = embeddings[v] @ direction
            for n, t in enumerate(points):
                step = 3 / 16 * (0.5 if n in (0, 32) else 1.0) * math.exp(-t * t / 2) * num_images
                waves = torch.exp(1j * t * projected)
                error = waves.mean() - math.exp(-t * t / 2)
                value += step * float(error.abs() ** 2)
                # d|φ - g|² / dx_b = 2 Re(conj(φ - g) · i t exp(i t x_b)) / B
                slope = 2 * (error.conj() * 1j * t * waves).real / num_images
                gradient[v] += step * slope[:, None] * direction
    share = 1 / (num_views * drawn.shape[1])
    return value * share, gradient * share


def test_sigreg_and_its_gradient_are_the_definition() -> None:
    embeddings = torch.randn(2, B, D, dtype=torch.float64, requires_grad=True)
    drawn = directions(3, CONFIG, embeddings)
    value, gradient = oracle(embeddings.detach(), drawn)
    found = sigreg(embeddings, drawn)
    assert found.item() == pytest.approx(value, abs=1e-10)
    found.backward()
    torch.testing.assert_close(embeddings.grad, gradient, **EXACT)


def test_a_normal_distribution_has_a_small_statistic_and_a_collapse_a_large_one() -> None:
    num = 512
    normal = torch.randn(1, num, D, dtype=torch.float64)
    # The quantiles of N(0, 1) along one direction: the statistic of the distribution itself.
    quantiles = torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num)
    drawn = directions(0, CONFIG, normal)
    assert float(sigreg(quantiles[None, :, None], torch.ones(1, 1, dtype=torch.float64))) < 1e-3
    assert float(sigreg(normal, drawn)) < 2
    collapsed = float(sigreg(torch.zeros(1, num, D, dtype=torch.float64), drawn))
    # N · ∫ (1 - exp(-t²/2))² exp(-t²/2) dt over the whole line; beyond 3 lies a hundredth of it.
    whole = num * math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
    assert collapsed == pytest.approx(whole, rel=0.02)
    assert float(sigreg(torch.zeros(1, 2 * num, D, dtype=torch.float64), drawn)) == pytest.approx(2 * collapsed)


def test_the_prediction_is_the_distance_to_the_mean_of_the_global_views() -> None:
    embeddings = torch.randn(5, B, D, dtype=torch.float64)
    center = (embeddings[0] + embeddings[1]) / 2
    expected = sum((each - center).square().sum() for each in embeddings) / (5 * B * D)
    torch.testing.assert_close(prediction(embeddings, 2), expected, **EXACT)
    assert float(prediction(embeddings[:1].expand(4, -1, -1), 2)) == 0


def test_the_loss_weighs_both_terms() -> None:
    trained, seen = method(), views()
    plain = copy.deepcopy(trained)
    crops = [group.flatten(0, 1) for group in seen.crops.values()]
    embeddings = plain.student["head"](torch.cat(plain.student["backbone"](crops))).unflatten(0, (-1, B))
    drawn = directions(CLOCK.step, CONFIG, embeddings)
    expected = 0.95 * prediction(embeddings, 2) + 0.05 * sigreg(embeddings, drawn)
    torch.testing.assert_close(trained(seen, CLOCK).loss, expected, **EXACT)


def test_directions_are_unit_vectors_and_a_function_of_the_step() -> None:
    like = torch.zeros(2, B, D)
    torch.manual_seed(1)
    one, again, other = (directions(step, CONFIG, like) for step in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    torch.testing.assert_close(one.norm(dim=0), torch.ones(7))
    state = torch.get_rng_state()
    directions(1, CONFIG, like)
    assert torch.equal(state, torch.get_rng_state()), "drop path draws as without"


def test_its_collapse_has_a_name() -> None:
    trained = method()

    def metrics() -> dict[str, float]:
        return {name: float(value) for name, value in trained(views(), CLOCK).metrics.items()}

    assert diagnose(metrics()) is None
    with torch.no_grad():  # all projections are on one line, as the bias of the batch norm says
        trained.student["head"][1].weight.zero_()
        trained.student["head"][1].bias.fill_(1.0)
    found = diagnose(metrics())
    assert found is not None and found.name == "dead"
    assert metrics()["prediction"] < 1e-20
