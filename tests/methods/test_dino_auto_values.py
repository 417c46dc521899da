"""DINO's settings that follow the data: which values "auto" becomes, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.methods.test_dino import SMALL

from opendino.core.types import Clock, Facts
from opendino.methods import dino

AUTO = dino.Config(out_dim="auto", momentum="auto")


def facts(**changes: object) -> Facts:
    return replace(Facts(5000, 120, 0, 50, 10_000, 100), **changes)


def test_auto_values_follow_the_data_and_say_why() -> None:
    config, reasons = AUTO.resolved(facts())
    assert (config.out_dim, config.momentum) == (1024, 0.996)
    assert {reason.partition(" = ")[0] for reason in reasons} >= {"out_dim", "momentum"}
    assert all("\n" not in reason and ": " in reason for reason in reasons)


def test_more_images_get_more_prototypes_and_longer_runs_a_slower_teacher() -> None:
    sizes = [AUTO.resolved(facts(num_images=n))[0].out_dim for n in (10, 20_000, 50_000, 100_000, 200_000, 10**6)]
    assert sizes == [1024, 2048, 4096, 16384, 32768, 65536]
    momenta = [AUTO.resolved(facts(total_steps=n))[0].momentum for n in (10, 160, 400, 800, 2000, 10**6)]
    assert momenta == [0.95, 0.95, 0.98, 0.99, 0.996, 0.996]


@pytest.mark.parametrize("total", [1, 7, 50, 299, 3000, 100_000])
def test_no_freeze_and_no_warm_up_exceeds_its_share(total: int) -> None:
    config, reasons = dino.Config().resolved(facts(total_steps=total))
    clock = Clock(0, total, 100)
    frozen, warmup = (clock.in_steps(duration) for duration in (config.freeze_last_layer, config.teacher_temp_warmup))
    assert frozen <= 0.1 * total and warmup <= 0.3 * total
    assert (config.freeze_last_layer == "1ep") == (total >= 1000)
    assert (config.teacher_temp_warmup == "30ep") == (total >= 10_000)
    assert len(reasons) == (total < 1000) + (total < 10_000)


def test_explicit_values_are_kept() -> None:
    config, reasons = SMALL.resolved(facts(total_steps=100_000))
    assert vars(config) == vars(SMALL) and not reasons
