"""Every recipe builds, says what it is and where its numbers are from, and survives the trip through YAML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from opendino import config as configs
from opendino.cli.train_command import parse
from opendino.config import Config
from opendino.core import registry
from opendino.core.types import Facts

PACKAGE = "opendino.recipes"
NAMES = registry.names(PACKAGE)
FACTS = {
    "a short run": Facts(100, 300, 0, 16, 40, 6, "cpu"),
    "a long run": Facts(1_281_167, 400, 1000, 512, 250_200, 2502, "cuda"),
}


def recipe(name: str) -> Config:
    return registry.load(PACKAGE, name).config("some/images")


def test_the_promised_ones_are_there() -> None:
    assert {"demo", "small", "vits16_100ep", "vits16_300ep", "vitb16", "resnet50"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_for_any_data_and_has_one_length(name: str) -> None:
    config = recipe(name)
    assert isinstance(config, Config)
    assert config.data == "some/images"
    assert (config.epochs is None) != (config.steps is None)
    assert config.out is None, "where a run goes is not a recipe's to say"


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_gives_the_command_and_what_to_expect(name: str) -> None:
    text = registry.load(PACKAGE, name).__doc__
    assert text.splitlines()[0].strip().endswith("."), "the first line is what `opendino list` shows"
    command = re.search(r"^Command: `(.+?)`", text, re.MULTILINE)
    assert command
    assert {"small": "opendino train FOLDER", "demo": "make demo"}.get(name, f"--recipe {name} ") in f"{command[1]} "
    if re.search(r"Expected on", text):
        assert "Source of the numbers:" in text
        assert re.search(r"\d\d\.\d ?%", text), "a figure to compare with"


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_starts_it_by_name(name: str) -> None:
    assert parse(["some/images", "--recipe", name]) == recipe(name)


@pytest.mark.parametrize("name", NAMES)
def test_yaml_gives_the_same_settings_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(configs.dump(recipe(name)))
    assert configs.from_tree(configs.read_tree(path)) == recipe(name)


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
@pytest.mark.parametrize("name", NAMES)
def test_no_auto_of_method_or_optimizer_is_left_and_yaml_holds_the_result(
    name: str, facts: Facts, tmp_path: Path
) -> None:
    config, reasons = configs.resolve_parts(recipe(name), facts)
    tree = configs.to_tree(config)
    assert "auto" not in tree["method"].values()
    assert "auto" not in str(tree["views"])
    assert tree["optim"].pop("grad_accum_steps") == "auto"  # decided later, from the memory there is
    assert "auto" not in tree["optim"].values()
    assert all(reason.startswith(("method.", "views.", "optim.")) for reason in reasons)
    path = tmp_path / "config.yaml"
    path.write_text(configs.dump(config))
    assert configs.to_tree(configs.from_tree(configs.read_tree(path))) == configs.to_tree(config)
