"""Every verb says what it is, helps, and refuses what it does not know."""

from __future__ import annotations

import re

import pytest

from opendino.cli import main
from opendino.core import registry

PACKAGE = "opendino.cli"
SUFFIX = "_command"
NAMES = [name.removesuffix(SUFFIX) for name in registry.names(PACKAGE) if name.endswith(SUFFIX)]


def code(args: list[str]) -> int:
    """The exit code, however the verb ends."""
    try:
        return main(args)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_first_verbs_are_there() -> None:
    assert {"demo", "train", "resume", "list"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_its_first_line_is_in_the_overview_with_its_form(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    module = registry.load(PACKAGE, name + SUFFIX)
    first = (module.__doc__ or "").splitlines()[0]
    assert first in capsys.readouterr().out
    assert f"opendino {name}" in first
    assert callable(module.run)


@pytest.mark.parametrize("name", NAMES)
def test_help_goes_to_stdout_and_is_no_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code([name, "--help"]) == 0
    captured = capsys.readouterr()
    assert f"opendino {name}" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_flag_is_wrong_usage_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code([name, "--no-such-flag"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and "--no-such-flag" in captured.err


@pytest.mark.parametrize("name", ["train", "demo"])
def test_the_help_of_training_is_short_and_names_the_full_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 130
    assert "`opendino train --help-all` shows all options." in lines
    assert code([name, "--help-all"]) == 0
    full = capsys.readouterr().out
    assert len(full.splitlines()) > 100
    read_before = {"--recipe", "--config", "--method", "--json"}  # not fields of the Config
    shown = {flag for line in lines for flag in re.findall(r"^  (--[a-z-]+)", line)}
    assert {"--val", "--out", "--recipe", "--epochs", "--batch", "--method", "--backbone", "--init"} <= shown
    assert {"--device", "--devices", "--labels", "--optim"} <= shown
    assert all(f"{flag} " in full or f"{flag}." in full for flag in shown - read_before)


def test_the_short_help_shows_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert code(["train", "--recipe", "vitb16", "--help"]) == 0
    assert "default: vit_base/16" in capsys.readouterr().out
