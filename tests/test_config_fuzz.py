"""Any settings file or command line gives a Config or a one-line error."""

# ruff: noqa: PT017 - either outcome is right here, each in its way

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opendino import config as configs
from opendino.cli.train_command import parse
from opendino.config import Config
from opendino.core.errors import UserError

SEEDS = Path(__file__).parent / "seeds" / "config"
TREE = configs.to_tree(Config(data="photos"))
KEYS = [*TREE]
PARTS = {name: [*TREE[name]] for name in ("method", "optim")}
FLAGS = [f"--{key}".replace("_", "-") for key in KEYS if key not in ("data", "method", "optim")] + [
    f"--{part}.{key}".replace("_", "-") for part, keys in PARTS.items() for key in keys if key != "name"
]
fuzz = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(["auto", "10%", "5ep", "dino", "byol", "1e-4", "nan", "-1", "0", "1e999", "off", "cuda:99"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda v: st.one_of(st.lists(v, max_size=4), st.dictionaries(st.text(max_size=8), v, max_size=4)),
    max_leaves=8,
)


def sane(tree: Any) -> None:
    """A Config, or one line that says what is wrong."""
    try:
        made = configs.from_tree(tree)
    except UserError as error:
        assert error.message
        return
    assert isinstance(made, Config)
    assert configs.from_tree(msgspec.yaml.decode(configs.dump(made))) == made


@fuzz
@given(st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), values, max_size=6))
def test_any_tree(tree: dict[str, Any]) -> None:
    sane({"data": "photos", **tree})


@fuzz
@given(st.sampled_from([*PARTS]), st.data())
def test_any_part(part: str, data: st.DataObject) -> None:
    keys = st.one_of(st.sampled_from(PARTS[part]), st.text(max_size=6))
    sane({"data": "photos", part: data.draw(st.dictionaries(keys, values, max_size=5))})


@fuzz
@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda t: t.encode("utf-8", "replace"))))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    try:
        tree = configs.read_tree(path)
    except UserError as error:
        assert "\n" not in error.message
        return
    sane(tree)


@fuzz
@given(
    st.lists(st.tuples(st.sampled_from(FLAGS), scalars.map(str)), max_size=4), st.lists(st.text(max_size=6), max_size=1)
)
def test_any_flags(flags: list[tuple[str, str]], more: list[str]) -> None:
    try:
        assert isinstance(parse(["photos", *(word for pair in flags for word in pair), *more]), Config)
    except UserError as error:
        assert error.message
    except SystemExit as stop:  # --help among the words
        assert stop.code in (0, None)


@pytest.mark.parametrize("path", sorted(SEEDS.glob("*")), ids=lambda path: path.name)
def test_earlier_failures(path: Path) -> None:
    try:
        sane(configs.read_tree(path))
    except UserError as error:
        assert "\n" not in error.message
