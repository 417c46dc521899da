"""Flags made of a Config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

import opendino
from opendino.cli import flag_table, flags, search_command, train_command
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
        ("--fast false here --all_of_it=TRUE", True, False),
    ],
)
def test_a_switch_without_a_value_is_true(words: str, all_of_it: bool, fast: bool) -> None:
    found = flags.parse(Config, words.split(), "prog", "Some.")
    assert (found.where, found.all_of_it, found.fast) == ("here", all_of_it, fast)


def test_true_and_false_in_any_case_also_where_auto_is_allowed() -> None:
    words = ["train", "photos", "--report", "false", "--method.head-batch-norm", "true", "--out", "true"]
    assert flag_table.shipped_help("train", words[1:]) is None
    config = train_command.parse(words[1:])
    assert (config.report, config.out) == (False, "true") and vars(config.method)["head_batch_norm"] is True


def test_another_value_is_wrong_usage() -> None:
    with pytest.raises(UsageError):
        flags.parse(Config, ["here", "--all-of-it", "--fast", "maybe"], "prog", "Some.")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--views.local.size -16", "--views.local.size is -16. Use a whole number from 1 to 16,384, or "),
        ("--method byol --views.second.flip.p=2", "--views.second.flip.p is 2. Use a number from 0 to 1"),
        ("--optim.lr nan", "--optim.lr is nan. Use a number above 0 and at most 1,000,000"),
        ("--mean 124 116 104",
         "--mean is 124.0 116.0 104.0. Pixels lie in [0, 1]. Divided by 255: 0.4863 0.4549 0.4078"),
        ("--cache disc", "--cache is 'disc'. Choose from auto, device, disk, off, ram"),
        ("--steps " + "9" * 5000, f"--steps is '{'9' * 60}'... (5,000 characters). Use a whole number from 1"),
        ("--workers x", "--workers is 'x'. Use a whole number from 0 to 4,096, or auto"),
        ("--batch", "--batch lacks a value. See opendino train --help"),
        ("--mean 0.5 0.5", "mean has 2 values and std has 3. Give one per channel"),
        ("--mean 0.5 x 0.5", "--mean is '0.5 x 0.5', not of type [float [float ...]]. Expected one or more values"),
        ("--seed 1 2", "Unexpected argument '2'. See opendino train --help"),
        ("--views.all.flip.p 2", "--views.global.flip.p is 2. Use a number from 0 to 1"),
        ("--backbone-options nan", "--backbone-options is 'nan'. Expected pairs of NAME VALUE"),
        ("--views.local.size x", "--views.local.size is 'x', not of type"),
        ("--method byol --views.local.number 3", "Unknown option '--views.local.number'"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named_as_it_was_written(words: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        train_command.parse(["photos", *words.split()])
    assert str(caught.value).startswith(says)


def test_a_missing_word_and_a_wrong_choice_are_named() -> None:
    with pytest.raises(UsageError, match=r"^opendino x lacks WHERE\. See opendino x --help$"):
        flags.parse(Config, [], "opendino x", "")
    with pytest.raises(UsageError, match=r"^--fast is 'maybe'\. Use True or False$"):
        flags.parse(Config, ["here", "--fast=maybe"], "opendino x", "")


@pytest.mark.parametrize(
    "words",
    [
        "--views.all.flip.p 0 photos --views.local.flip.p 0.2 --views.global.size 32 48",
        "--views.global.size 32 48 photos --views.local.flip.p=0.2 --views.all.flip.p=0",
        "photos --views.local.flip.p .2 --views.all.flip.p 0 --views.global.size 32 48",
    ],
)
def test_flags_of_all_views_come_before_those_of_a_group(words: str) -> None:
    config = train_command.parse([*words.split(), "--views.all.crop.fixed"])
    assert config.data == "photos" and config.views["global"].size == (32, 48)
    assert [view.flip.p for view in config.views.values()] == [0.0, 0.0, 0.2]
    assert all(view.crop.fixed for view in config.views.values())
    config = train_command.parse([*words.split(), "--views.all.crop.scale", "0.4", "0.9"])
    assert config.data == "photos" and {view.crop.scale for view in config.views.values()} == {(0.4, 0.9)}


@pytest.mark.parametrize(("words", "flag"), [("-k 0", "-k"), ("--k 0", "--k"), ("--k=0", "--k")])
def test_an_alias_is_named_where_it_was_written(words: str, flag: str) -> None:
    with pytest.raises(UsageError, match=rf"^{flag} is 0\. Use a whole number from 1"):
        flags.parse(search_command.Config, ["model", "table", "image", *words.split()], "opendino search", "")


def test_help_shows_plain_types_and_no_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_command.parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--batch INT|{auto}", "--mean [FLOAT [FLOAT ...]]", "--eval-every STR", "--steps {None}|INT"):
        assert flag in text
    assert "(required)" in text
    assert "Meta" not in text and "ge=" not in text


def test_the_options_of_a_recipes_network_are_replaced_with_it() -> None:
    from opendino.cli.train_command import parse

    assert parse(["x", "--recipe", "demo"]).backbone_options == {"width": 16}
    assert parse(["x", "--recipe", "demo", "--backbone-options", "width", "8"]).backbone_options == {"width": 8}
    assert parse(["x", "--recipe", "demo", "--backbone", "vit_tiny/8"]).backbone_options == {}
    assert opendino.Config("x", recipe="demo", backbone="vit_tiny/8").backbone_options == {}
    assert opendino.Config("x", recipe="demo", epochs=3.0).backbone_options == {"width": 16}
