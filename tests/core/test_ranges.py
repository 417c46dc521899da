"""Settings are checked against their annotations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from msgspec import Meta

from opendino.core import ranges
from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, Count, Duration, Fraction, FractionRange, Mean, OutOfRange, Seed, Std


@dataclass(frozen=True)
class Inner(Checked):
    size: Count | Literal["auto"] = "auto"
    mean: Mean = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Outer(Checked):
    inner: Inner = field(default_factory=Inner)
    anything: Any = None
    num: Count | None = None
    fraction: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    several: Annotated[tuple[Count, ...], Meta(min_length=1)] = (1,)
    scale: FractionRange | Literal["auto"] = (0.1, 1.0)
    std: Std = (1.0, 1.0, 1.0)
    every: Duration = "10%"
    seed: Seed = 0
    kind: Literal["a", "b"] | None = "a"
    switch: bool = False
    text: str = ""
    options: dict[str, Annotated[int, Meta(le=9)] | bool | str] = field(default_factory=dict)


REFUSED = [
    ("num", 0, "num is 0. Use a whole number from 1 to 1,000,000,000"),
    ("num", 10**9 + 1, "num is 1000000001. Use a whole number from 1 to 1,000,000,000"),
    ("num", 1.0, "num is 1.0. Use a whole number from 1 to 1,000,000,000"),
    ("num", True, "num is True. Use a whole number from 1 to 1,000,000,000"),
    ("num", 10**5000, "num is a number of 5,001 digits. Use a whole number from 1 to 1,000,000,000"),
    ("num", "7", "num is '7'. Use a whole number from 1 to 1,000,000,000"),
    ("fraction", 1, "fraction is 1. Use a number from 0 to below 1"),
    ("fraction", math.nan, "fraction is nan. Use a number from 0 to below 1"),
    ("fraction", 10**400, "fraction is a number of 401 digits. Use a number from 0 to below 1"),
    ("fraction", None, "fraction is None. Use a number from 0 to below 1"),
    ("fraction", np.float32("inf"), "fraction is inf. Use a number from 0 to below 1"),
    ("several", (), "several is empty. Use 1 or more values, each a whole number from 1 to 1,000,000,000"),
    ("several", (3, 0), "several is 3 0. Use 1 or more values, each a whole number from 1 to 1,000,000,000"),
    ("several", 3, "several is 3. Use 1 or more values, each a whole number from 1 to 1,000,000,000"),
    (
        "scale", (0.9, 0.2),
        "scale is 0.9 0.2. Use 2 values, each a number above 0 and at most 1, the smaller first, or auto",
    ),
    (
        "scale", (0.9, math.nan),
        "scale is 0.9 nan. Use 2 values, each a number above 0 and at most 1, the smaller first, or auto",
    ),
    (
        "std", (58.395, 57.12, 57.375),
        "std is 58.395 57.12 57.375. Pixels lie in [0, 1]. Divided by 255: 0.229 0.224 0.225",
    ),
    ("std", (), "std is empty. Use 1 to 1,024 values, each a number from 1e-06 to 1"),
    ("std", (0.2, 0.2, 0.0), "std is 0.2 0.2 0.0. Use 1 to 1,024 values, each a number from 1e-06 to 1"),
    (
        "every", "soon",
        "every is 'soon'. Use a duration: epochs as 10ep, a share of the run as 5%, steps as 1500 or 20k",
    ),
    ("seed", 2**63, f"seed is {2**63}. Use a whole number from 0 to 2^63 - 1"),
    ("kind", "c", "kind is 'c'. Choose from a, b"),
    ("switch", 1, "switch is 1. Use True or False"),
    ("text", 1, "text is 1. Use text"),
    ("text", "a\0", "text is 'a\\x00'. Text must not contain a NUL character"),
    ("text", b"a" * 999, f"text is {str(b'a' * 999)[:240]}.... Use text"),
    (
        "options", {"a": 10},
        "options is {'a': 10}. Use names with values, each a whole number up to 9, or True or False, or text",
    ),
    ("inner", 3, "inner is 3. Use Inner"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "says"), REFUSED, ids=[f"{n}-{case[0]}" for n, case in enumerate(REFUSED)])
def test_values_out_of_range_are_rejected_with_the_allowed_range(name: str, value: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Outer(**{name: value})
    assert str(caught.value) == says


def test_values_in_range_are_kept() -> None:
    made = Outer(
        Inner(3), num=None, fraction=0, several=(1, 10**9), scale="auto", every="1.5ep", seed=2**63 - 1, kind=None,
        options={"a": 9, "b": True, "c": "x"},
    )  # fmt: skip
    assert (made.inner.size, made.fraction, made.several, made.seed) == (3, 0, (1, 10**9), 2**63 - 1)


def test_lists_and_numpy_scalars_are_converted() -> None:
    made = Outer(several=[1, 2], fraction=np.float32(0.5), num=np.int64(3))  # type: ignore[arg-type]
    assert (made.several, made.fraction, made.num) == ((1, 2), 0.5, 3)
    assert type(made.fraction) is float and type(made.num) is int


def test_a_setting_inside_another_has_its_whole_name() -> None:
    @dataclass(frozen=True)
    class Unchecked:
        size: Fraction = 3.0

    with pytest.raises(OutOfRange, match=r"anything\.size is 3\.0\. Use a number from 0 to 1") as caught:
        Outer(anything=Unchecked())
    assert (caught.value.field, caught.value.value) == ("anything.size", 3.0)
    assert str(caught.value.named("--x")) == "--x is 3.0. Use a number from 0 to 1"


def test_means_in_0_to_255_get_a_hint_with_values_in_0_to_1() -> None:
    with pytest.raises(UsageError, match=r"Divided by 255: 0\.485 0\.456 0\.406"):
        Inner(mean=(123.675, 116.28, 103.53))
    with pytest.raises(UsageError, match="each a number from 0 to 1"):
        Inner(mean=(300.0, 0.5, 0.5))
    with pytest.raises(UsageError, match="each a number from 0 to 1"):
        Inner(mean=(math.nan, 116.0, 103.0))


def test_long_values_are_shortened() -> None:
    assert ranges.shown("x" * 5000) == f"'{'x' * 60}'... (5,000 characters)"
    assert len(ranges.shown((0.123456789,) * 500)) < 300
    assert len(ranges.shown({"x" * 99: 1})) < 300
    assert "\n" not in ranges.shown("a\nb") and "\n" not in ranges.shown(np.zeros((9, 9)))
