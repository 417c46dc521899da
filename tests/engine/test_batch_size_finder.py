"""The largest micro-batch that fits is found by trying."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.contracts.test_methods import NAMES, PACKAGE, built
from tests.contracts.test_methods import spec as small_spec

from opendino.core import registry
from opendino.engine import batch_size_finder

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", NAMES)
def test_every_method_can_be_tried(name: str) -> None:
    module = registry.load(PACKAGE, name)
    spec = small_spec(module)
    assert batch_size_finder.fewest_micro_batches(lambda: built(module), spec, 4, "adamw", torch.bfloat16, CPU) == 1


@pytest.mark.parametrize(("fitting", "parts"), [(24, 1), (23, 2), (12, 2), (7, 4), (1, 24), (0, None)])
def test_the_fewest_parts_that_fit_are_taken(monkeypatch: pytest.MonkeyPatch, fitting: int, parts: int | None) -> None:
    module = registry.load(PACKAGE, "dino")
    tries = []

    def limited() -> Any:
        method = built(module)
        usual = method.forward

        def forward(views: Any, clock: Any) -> Any:
            tries.append(len(views.indices))
            assert all(p.grad is None for p in method.parameters())
            if len(views.indices) > fitting:
                raise torch.OutOfMemoryError("no memory")
            return usual(views, clock)

        monkeypatch.setattr(method, "forward", forward)
        return method

    spec = small_spec(module)
    assert batch_size_finder.fewest_micro_batches(limited, spec, 24, "adamw", torch.float32, CPU) == parts
    assert tries == [n for n in (24, 12, 8, 6, 4, 3, 2, 1) if n >= max(1, 24 // (parts or 24))]


def test_weights_that_do_not_fit_are_no_failure() -> None:
    def make() -> Any:
        raise torch.OutOfMemoryError("no memory")

    spec = small_spec(registry.load(PACKAGE, "dino"))
    assert batch_size_finder.fewest_micro_batches(make, spec, 4, "adamw", torch.float32, CPU) is None


@pytest.mark.gpu
def test_a_gpu_is_filled_and_left_empty() -> None:
    module, gpu = registry.load(PACKAGE, "dino"), torch.device("cuda")
    before = torch.cuda.memory_allocated(gpu)
    assert (
        batch_size_finder.fewest_micro_batches(
            lambda: built(module), small_spec(module), 4, "adamw", torch.bfloat16, gpu
        )
        == 1
    )
    assert torch.cuda.memory_allocated(gpu) == before
