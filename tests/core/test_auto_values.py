"""The rules of "auto" that depend on image size; complete tables, since the documentation states every value."""

from __future__ import annotations

import pytest

from opendino.core.types import Facts
from opendino.engine import optim
from opendino.methods import byol, dino

AUTO = dino.Config(global_size_px="auto", local_size_px="auto", global_scale="auto", local_scale="auto")


def facts(short_side_px: int, convolutional: bool, batch: int = 32) -> Facts:
    return Facts(2000, short_side_px, 0, batch, 600, 60, "cpu", convolutional=convolutional)


@pytest.mark.parametrize(
    ("short", "sizes", "scales"),
    [
        (160, (64, 32), ((0.25, 1.0), (0.05, 0.25))),
        (128, (64, 32), ((0.25, 1.0), (0.05, 0.25))),
        (96, (64, 32), ((0.25, 1.0), (0.05, 0.25))),
        (64, (48, 24), ((0.3, 1.0), (0.1, 0.3))),
        (32, (32, 16), ((0.4, 1.0), (0.15, 0.4))),
        (28, (28, 14), ((0.4, 1.0), (0.15, 0.4))),
        (8, (16, 8), ((0.4, 1.0), (0.15, 0.4))),
    ],
)
def test_crops_of_a_small_network_keep_the_detail(
    short: int, sizes: tuple[int, int], scales: tuple[tuple[float, float], tuple[float, float]]
) -> None:
    found, reasons = AUTO.resolved(facts(short, convolutional=True))
    assert (found.global_size_px, found.local_size_px) == sizes
    assert (found.global_scale, found.local_scale) == scales
    assert {"global_scale", "local_scale"} <= {line.partition(" ")[0] for line in reasons}
    assert byol.Config(size_px="auto").resolved(facts(short, convolutional=True))[0].size_px == sizes[0]


def test_other_networks_keep_the_crops_of_the_paper() -> None:
    found, _ = AUTO.resolved(facts(128, convolutional=False))
    assert (found.global_size_px, found.local_size_px) == (96, 48)
    assert (found.global_scale, found.local_scale) == ((0.25, 1.0), (0.05, 0.25))


def test_explicit_values_are_kept() -> None:
    asked = dino.Config(global_size_px=80, local_size_px=40, global_scale=(0.5, 1.0), local_scale=(0.1, 0.2))
    found, _ = asked.resolved(facts(64, convolutional=True))
    assert (found.global_size_px, found.local_size_px) == (80, 40)
    assert (found.global_scale, found.local_scale) == ((0.5, 1.0), (0.1, 0.2))


@pytest.mark.parametrize("batch", [4, 32, 64])
def test_the_rate_of_a_small_network_does_not_shrink_with_the_batch(batch: int) -> None:
    found, _ = optim.Config(lr="auto").resolved(facts(64, True, batch))
    assert found.lr * batch / 256 == pytest.approx(3e-3)
    assert optim.Config(lr="auto").resolved(facts(64, False, batch))[0].lr == 5e-4
    assert optim.Config(name="sgd", lr="auto").resolved(facts(64, True, batch))[0].lr == 0.03
