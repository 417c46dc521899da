"""Every evaluation is one documented file with a Config, an `evaluate` and functions of its own."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from opendino.cli import main
from opendino.core import registry

PACKAGE = "opendino.evals"
NAMES = registry.names(PACKAGE)


def typed(name: str, *words: str) -> int:
    """The exit code of `opendino eval NAME WORDS`, however it ends."""
    try:
        return main(["eval", name.replace("_", "-"), *words])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_two_shown_while_training_are_there() -> None:
    assert {"knn", "label_free"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_imports_and_every_public_function_says_what_it_does(name: str) -> None:
    module = registry.load(PACKAGE, name)
    assert (module.__doc__ or "").strip()
    public = [
        value
        for key, value in vars(module).items()
        if key[0] != "_" and inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    assert public
    assert all(inspect.getdoc(function) for function in public)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_frozen_config_with_the_model_first_and_an_evaluate(name: str) -> None:
    module = registry.load(PACKAGE, name)
    assert dataclasses.is_dataclass(module.Config)
    assert [field.name for field in dataclasses.fields(module.Config)][:2] == ["model", "which"]
    config = module.Config("a model")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model = "another"
    assert list(inspect.signature(module.evaluate).parameters) == ["config"]


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_every_flag_with_its_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(name, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    fields = dataclasses.fields(registry.load(PACKAGE, name).Config)
    shown = " ".join(captured.out.split())
    assert all(f"--{field.name.replace('_', '-')}" in shown or field.name.upper() in shown for field in fields)
    assert "MODEL" in shown and "run folder" in shown


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("words", "exit_codes", "told"),
    [
        (["--no-such-flag"], {2}, "--no-such-flag"),
        (["model", "--no-such-flag", "3"], {2}, "--no-such-flag"),
        ([], {2}, "No model was named"),
        (["no/such/folder"], {1, 2}, ""),  # 2 where it misses another word first
        (["no/such/folder", "--which", "pupil"], {2}, "pupil"),
    ],
)
def test_a_mistake_is_one_line(
    name: str, words: list[str], exit_codes: set[int], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(name, *words) in exit_codes
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("opendino: ") and told in captured.err
