"""Choice of the precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from opendino.core.errors import UsageError
from opendino.engine import precision

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
