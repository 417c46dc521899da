"""Throughput of a run, and its FLOP count."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from opendino.engine import throughput
from opendino.engine.throughput import FlopCounter, Throughput, peak_flops
from opendino.models import build

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(throughput, "peak_flops", lambda *_: 1e6)
    monkeypatch.setattr(throughput.time, "monotonic", lambda: clock[0])
    return clock


def test_time_is_shared_out_between_training_waiting_and_resting(now: list[float]) -> None:
    clock = Throughput(8, 8, CPU, torch.float32)
    for context, seconds in ((clock.paused(), 5.0), (clock.waiting(), 1.0)):
        with context:
            now[0] += seconds
    now[0] += 3.0
    clock.step()
    clock.step()
    found = clock.summary()
    assert found["images_per_second"] == pytest.approx(16 / 4)  # two steps of 8 in 9 s, 5 of them resting
    assert found["data_wait"] == pytest.approx(1 / 4)
    assert found["peak_memory_bytes"] > 2**20


def test_rows_are_of_the_time_since_the_last_one(now: list[float]) -> None:
    clock = Throughput(8, 8, CPU, torch.float32)
    now[0] += 9
    clock.step()
    assert clock.row() is None
    now[0] += 1
    assert clock.row()["images_per_second"] == pytest.approx(8 / 10)
    with clock.waiting():
        now[0] += 4
    now[0] += 16
    clock.step()
    clock.step()
    row = clock.row()
    assert (row["images_per_second"], row["data_wait"]) == pytest.approx((16 / 20, 4 / 20))


def test_utilization_is_the_arithmetic_of_this_rank_over_what_the_device_could_do(now: list[float]) -> None:
    clock = Throughput(8, 4, CPU, torch.float32)  # two ranks
    a, b, image, kernel = (
        torch.randn(10, 20),
        torch.randn(20, 30, requires_grad=True),
        torch.randn(1, 2, 8, 8),
        torch.randn(3, 2, 3, 3),
    )
    for _ in range(3):  # the first alone is counted
        with clock.counting():
            (a @ b).sum().backward()
            conv2d(image, kernel, padding=1)
        clock.step()
    now[0] += 2
    step = 2 * 2 * 10 * 20 * 30 + 2 * 3 * 2 * 9 * 64  # forward, gradient of b; the convolution
    assert clock.summary()["mfu"] == pytest.approx(3 * step / 2 / 1e6)


def test_a_processor_does_more_than_a_gigaflop_a_second_and_less_than_an_exaflop() -> None:
    assert 1e9 < peak_flops(CPU, torch.float32) < 1e18


@pytest.mark.parametrize("name", ["conv4", "resnet18", "vit_tiny/16"])
def test_counts_are_torchs(name: str) -> None:
    network, images = build.backbone(name), torch.rand(2, 3, 64, 64)
    with FlopCounter() as own:
        network([images])[0].sum().backward()
    with FlopCounterMode(display=False) as torchs:
        network([images])[0].sum().backward()
    assert own.total == torchs.get_total_flops() > 1e6


def test_the_peak_is_measured_once_and_draws_no_random_numbers() -> None:
    peak_flops.cache_clear()
    before = torch.get_rng_state()
    first = peak_flops(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert peak_flops(CPU, torch.float32) == first
