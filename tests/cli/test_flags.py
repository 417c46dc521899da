"""Flags made of a Config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

from opendino.cli import _flags
from opendino.core.errors import UsageError


@dataclass(frozen=True)
class Config:
    """Some of each kind."""

    where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WHERE")]
    all_of_it: bool = False
    fast: bool = True
    num: tuple[int, ...] = (1,)


@pytest.mark.parametrize(
    ("words", "all_of_it", "fast"),
    [
        ("here", False, True),
        ("here --all-of-it", True, True),
        ("--all-of-it here", True, True),
        ("here --all_of_it --fast False", True, False),
        ("here --all-of-it True --num 2 3", True, True),
        ("here --fast --num 2 --all-of-it=False", False, True),
    ],
)
def test_a_switch_without_a_value_is_true(words: str, all_of_it: bool, fast: bool) -> None:
    found = _flags.parse(Config, words.split(), "prog", "Some.")
    assert (found.where, found.all_of_it, found.fast) == ("here", all_of_it, fast)


def test_another_value_is_wrong_usage() -> None:
    with pytest.raises(UsageError):
        _flags.parse(Config, ["here", "--all-of-it", "--fast", "maybe"], "prog", "Some.")
