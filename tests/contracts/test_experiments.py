"""Every experiment is one documented file: its settings, help and errors (`tests/experiments` conducts them)."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

from opendino.cli import main
from opendino.core import registry

PACKAGE = "opendino.experiments"
NAMES = registry.names(PACKAGE)


def typed(name: str, *words: str) -> int:
    """The exit code of `opendino experiment NAME WORDS`, however it ends."""
    try:
        return main(["experiment", name, *words])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_promised_ones_are_there() -> None:
    assert {"collapse", "defaults"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_gives_the_command_and_the_cost(name: str) -> None:
    text = registry.load(PACKAGE, name).__doc__
    assert text.splitlines()[0].endswith(".")
    assert re.search(rf"^Command: `opendino experiment {name}\b", text, re.MULTILINE)
    assert re.search(r"\b[Cc]ost\b.*\d", text)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_frozen_config_with_a_folder_and_a_conduct(name: str) -> None:
    module = registry.load(PACKAGE, name)
    config = module.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.out = "elsewhere"
    assert config.out.startswith("runs/")
    assert list(inspect.signature(module.conduct).parameters) == ["config"]
    assert inspect.getdoc(module.conduct)


@pytest.mark.parametrize("name", NAMES)
def test_its_runs_have_names_of_their_own_and_are_the_same_when_asked_again(name: str) -> None:
    module = registry.load(PACKAGE, name)
    one, two = (module.trials(dataclasses.replace(module.Config(), seeds=seeds)) for seeds in (1, 2))
    assert len({trial.name for trial in two}) == len(two) == 2 * len(one) > 2
    assert module.trials(dataclasses.replace(module.Config(), seeds=1)) == one
    assert all(trial.config.steps and trial.config.out is None for trial in two)


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(name, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == "" and registry.summary(PACKAGE, name) in " ".join(captured.out.split())
    fields = dataclasses.fields(registry.load(PACKAGE, name).Config)
    assert [field.name for field in fields if f"--{field.name.replace('_', '-')}" not in captured.out] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("words", "told"),
    [(["--no-such-flag"], "--no-such-flag"), (["--only", "nonsense"], "nonsense"), (["--seeds", "0"], "--seeds is 0")],
)
def test_a_mistake_is_one_line(name: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(name, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("opendino: ") and told in captured.err
