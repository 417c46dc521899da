"""Every Config that becomes flags: each field states its range, and no value gets past it."""

from __future__ import annotations

import functools
import importlib
import math
import re
import tomllib
import types
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta

from opendino.cli import flags as _flags
from opendino.core import registry
from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, hints
from opendino.engine import optim

ROOT = Path(__file__).parents[2]
PACKAGES = ("cli", "evals", "interop.formats", "experiments", "methods", "views.augmentations", "visualize")
GIVEN = {"out": "x.lance", "num": 1, "images": ("x",), "models": ("x",), "runs": ("x",), "scale": (0.2, 1.0)}
fuzz = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@functools.cache
def configs() -> dict[str, type]:
    """Where it is declared → each dataclass that becomes flags."""
    modules = [
        importlib.import_module(f"opendino.{package}.{name}")
        for package in PACKAGES
        for name in registry.names(f"opendino.{package}")
    ]
    found = [module.Config for module in modules if hasattr(module, "Config")] + [optim.Config]
    return {f"{kind.__module__}.{kind.__name__}": kind for kind in found}


@functools.cache
def example(name: str) -> Any:
    """One that is right."""
    kind, given = configs()[name], {}
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING:
            given[field.name] = GIVEN.get(field.name, "x")
    if name == "opendino.cli.select_command.Config":
        given["out"] = "x.txt"
    return kind(**given)


def unbounded(hint: Any) -> bool:
    """Whether an annotation lets through a number of any size."""
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        metas = [note for note in notes if isinstance(note, Meta)]
        low = any(meta.ge is not None or meta.gt is not None for meta in metas)
        high = any(meta.le is not None or meta.lt is not None for meta in metas)
        return unbounded(base) and not (low and high)
    if get_origin(hint) in (Union, types.UnionType, tuple, dict):
        return any(unbounded(part) for part in get_args(hint))
    return hint in (int, float)


def sane(value: Any) -> bool:
    """Whether all numbers in a value are finite and of a size that a computer counts to."""
    if isinstance(value, tuple | list):
        return all(map(sane, value))
    if isinstance(value, dict):
        return all(map(sane, value.values()))
    if is_dataclass(value):
        return all(sane(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) < 2**63
    return isinstance(value, str | None)


def test_there_are_many() -> None:
    assert {
        "opendino.config.Config",
        "opendino.cli.embed_command.Config",
        "opendino.evals.knn.Config",
    } <= configs().keys()
    assert {"opendino.interop.formats.onnx.Config", "opendino.experiments.collapse.Config"} <= configs().keys()


@pytest.mark.parametrize("name", sorted(configs()))
def test_every_number_has_a_range_and_is_checked(name: str) -> None:
    kind = configs()[name]
    assert issubclass(kind, Checked)
    assert not [field for field, hint in hints(kind).items() if unbounded(hint)]
    assert sane(example(name))


def test_the_rule_about_ranges_can_fail() -> None:
    assert unbounded(int | Literal["auto"]) and unbounded(tuple[float, ...]) and unbounded(dict[str, float | str])
    assert unbounded(Annotated[float, Meta(gt=0)]) and not unbounded(Annotated[float, Meta(gt=0, le=1)])


PLACES = [(name, field) for name in sorted(configs()) for field in hints(configs()[name])]
HOSTILE = [
    math.nan, math.inf, -math.inf, -1, 0, -0.0, 1e9, 1e-300, 10**400, 10**5000, -(10**5000), 2**63, "", "x" * 9999,
    "\0", "nan", "auto", True, None, (), (0,), (math.nan,) * 3, (0.5,) * 3, (0.9, 0.1), (1e9,) * 4, (10**5000,),
    (None,), ((1,),), [], [math.nan, 1, 1], [0.5, 0.5, 0.5], {}, {"depth": 10**9}, {"depth": math.nan}, {1: 2},
    b"x", 1j, np.float64("nan"), np.float32(0.5), np.int64(-1), np.zeros(3), object(), int,
]  # fmt: skip
hostile = st.one_of(
    st.sampled_from(HOSTILE), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.floats(), max_size=5),
    st.lists(st.floats() | st.integers(), max_size=5).map(tuple),
)  # fmt: skip


def attempted(name: str, field: str, value: Any) -> None:
    try:
        made = replace(example(name), **{field: value})
    except UsageError as error:
        text = str(error)
        assert "\n" not in text and 0 < len(text) < 600
        return
    assert sane(getattr(made, field)), f"{name}.{field} took {value!r:.99}"


@pytest.mark.parametrize("name", sorted(configs()))
def test_known_nuisances_are_refused_or_harmless(name: str) -> None:
    for field in hints(configs()[name]):
        for value in HOSTILE:
            attempted(name, field, value)


@fuzz
@given(st.sampled_from(PLACES), hostile)
def test_any_value_of_any_field_is_refused_or_harmless(place: tuple[str, str], value: Any) -> None:
    attempted(*place, value)


WORDS = ["nan", "inf", "-1", "0", "1e9", "1e400", "9" * 5000, "", "x", "auto", "None", "0.5 0.1", "1 2 3", "-0.0"]
NAMES = sorted(name for name, kind in configs().items() if fields(kind) and kind is not optim.Config)


@settings(fuzz, max_examples=50)
@given(st.sampled_from(NAMES), st.data())
def test_any_word_of_any_flag_is_refused_or_harmless(name: str, data: st.DataObject) -> None:
    flags = [
        flag
        for flag in _flags.describe(None, "opendino x", example(name)).flags
        if flag not in ("--method", "--report")
    ]
    words = [data.draw(st.sampled_from(flags)), *data.draw(st.sampled_from(WORDS)).split(" ")]
    try:
        made = _flags.parse(configs()[name], words, "opendino x", "", example(name))
    except UsageError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 600
        assert "Traceback" not in text and "[...]" not in text
        return
    assert sane(made)


def test_every_extra_in_an_advice_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, advised = project["optional-dependencies"], {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for names in re.findall(r"opendino\[([a-z,_-]+)\]", path.read_text(encoding="utf-8")):
            advised |= dict.fromkeys(names.split(","), path.name)
    assert {"export", "search", "explore"} <= advised.keys()
    assert not {extra: where for extra, where in advised.items() if extra not in extras}
