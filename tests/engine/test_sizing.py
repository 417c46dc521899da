"""Batch, parts and workers: as asked where that can be, else as the machine and the set allow."""

from __future__ import annotations

import os

import pytest
import torch

from opendino.core import dist
from opendino.core.errors import UserError
from opendino.core.types import Augment, ViewGroup, ViewSpec
from opendino.engine import sizing

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SPEC = ViewSpec((ViewGroup("global", 224, (Augment((0.4, 1.0)),) * 2),))


@pytest.mark.parametrize(
    ("images", "device", "world", "batch"),
    [
        (2, CPU, 1, 2), (3, CPU, 1, 2), (15, CPU, 1, 2), (16, CPU, 1, 4), (255, CPU, 1, 32), (256, CPU, 1, 64),
        (10**6, CPU, 1, 64), (10**6, GPU, 1, 256), (10**6, GPU, 8, 2048), (10**6, CPU, 3, 192), (100, GPU, 4, 16),
    ],
)  # fmt: skip
def test_a_batch_is_at_most_a_quarter_of_the_set(
    monkeypatch: pytest.MonkeyPatch, images: int, device: torch.device, world: int, batch: int
) -> None:
    monkeypatch.setattr(dist, "world", lambda: world)
    size, why = sizing.batch("auto", images, device)
    assert size == batch
    assert size % world == 0 and size <= images
    assert why != "as asked"


def test_a_batch_that_was_asked_for_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizing.batch(30, 30, CPU) == (30, "as asked")
    with pytest.raises(UserError, match=r"The set has 30 images, fewer than one batch of 31\. Use --batch 30 or less"):
        sizing.batch(31, 30, CPU)
    monkeypatch.setattr(dist, "world", lambda: 4)
    with pytest.raises(UserError, match="A batch of 30 does not divide over 4 processes"):
        sizing.batch(30, 30, CPU)


def test_parts_that_were_asked_for_must_divide_the_share_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizing.accumulate(4, 32, SPEC, 384, CPU) == (4, "as asked")
    monkeypatch.setattr(dist, "world", lambda: 4)
    with pytest.raises(UserError, match=r"8 images do not divide into accumulate=3 parts\. Use a divisor of 8"):
        sizing.accumulate(3, 32, SPEC, 384, CPU)


@pytest.mark.parametrize(("memory", "parts"), [(13e9, 1), (12e9, 2), (6e9, 3), (1.1e9, 12), (1e9, 24), (1.0, 24)])
def test_as_few_parts_as_fit(monkeypatch: pytest.MonkeyPatch, memory: float, parts: int) -> None:
    # Two views of 224 px at a width of 384 need 1300 bytes a pixel: 130.5 MB an image, 3.13 GB for 24. A quarter of
    # the memory must hold a part, or a part is one image.
    monkeypatch.setattr(os, "sysconf", lambda name: int(memory) if name == "SC_PAGE_SIZE" else 1)
    found, why = sizing.accumulate("auto", 24, SPEC, 384, CPU)
    assert found == parts
    assert "MiB" in why


def test_workers_share_the_cores_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert sizing.workers(0, CPU) == (0, "as asked")
    assert (sizing.workers("auto", CPU)[0], sizing.workers("auto", GPU)[0]) == (4, 15)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (sizing.workers("auto", CPU)[0], sizing.workers("auto", GPU)[0]) == (1, 1)
