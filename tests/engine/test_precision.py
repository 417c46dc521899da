"""Choice of the precision."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from opendino.core.errors import UsageError
from opendino.engine import precision
from opendino.views import kernels

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_what_was_asked_for_is_taken(name: precision.Precision, dtype: torch.dtype) -> None:
    assert precision.choose(name, CPU) == (dtype, "as configured")


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match=r"Unknown precision 'half'\. Use auto, float32 or bfloat16"):
        precision.choose("half", CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("native", "gain", "dtype"), [(False, 9.0, torch.float32), (True, 1.1, torch.float32), (True, 2.0, torch.bfloat16)]
)
def test_on_a_cpu_it_must_be_native_and_faster(
    monkeypatch: pytest.MonkeyPatch, native: bool, gain: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_is_mkldnn_bf16_supported=lambda: native))
    monkeypatch.setattr(precision, "_seconds", lambda dtype: gain if dtype == torch.float32 else 1.0)
    chosen, why = precision.choose("auto", CPU)
    assert chosen == dtype
    assert why != "as configured"


def test_products_inside_the_context_have_that_precision_and_weights_keep_theirs() -> None:
    layer = torch.nn.Linear(3, 4)
    for dtype in (torch.float32, torch.bfloat16):
        with precision.autocast(CPU, dtype):
            assert layer(torch.randn(2, 3)).dtype == dtype
    with precision.autocast(CPU, torch.float64):  # no half precision, no autocast
        assert layer.double()(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thread_that_makes_views_does_not_change_the_gradient(dtype: torch.dtype) -> None:
    weight, inputs = torch.randn(32, 32, requires_grad=True), torch.randn(2, 8, 32)

    def gradient(between: Callable[[], None]) -> torch.Tensor:
        with precision.autocast(torch.device("cpu"), dtype):
            first = torch.nn.functional.linear(inputs[0], weight)
            between()
            second = torch.nn.functional.linear(inputs[1], weight)
        return torch.autograd.grad(first.float().square().sum() + second.float().square().sum(), weight)[0]

    def make_views() -> None:
        with ThreadPoolExecutor(1) as other:
            other.submit(kernels.product, torch.ones(2, 2), torch.ones(2, 2)).result()

    assert torch.equal(gradient(lambda: None), gradient(make_views))
