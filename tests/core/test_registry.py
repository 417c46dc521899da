"""The folder is the registry."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from opendino.core import registry
from opendino.core.errors import UsageError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "some_folder_of_colors"
    folder.mkdir()
    for name in ("__init__", "_hidden", "red", "green"):
        (folder / f"{name}.py").write_text(f"NAME = {name!r}\n")
    (folder / "broken.py").write_text("raise ImportError('a library is missing')\n")
    (folder / "notes.txt").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder.name
    for module in [module for module in sys.modules if module.startswith(folder.name)]:
        del sys.modules[module]


def test_every_public_file_is_a_name_and_none_is_imported(package: str) -> None:
    assert registry.names(package) == ["broken", "green", "red"]
    assert [module for module in sys.modules if module.startswith(f"{package}.")] == []


def test_a_name_loads_only_its_module(package: str) -> None:
    assert registry.load(package, "red").NAME == "red"
    assert f"{package}.green" not in sys.modules


def test_a_new_module_is_found_immediately(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "blue.py").touch()
    assert "blue" in registry.names(package)


@pytest.mark.parametrize("name", ["gren", "_hidden", "__init__", "", "red.x", "../red"])
def test_an_unknown_name_gets_the_list(package: str, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.load(package, name)
    assert f"Unknown some_folder_of_color '{name}'" in str(caught.value)
    assert "Available: broken, green, red" in caught.value.hint


def test_import_errors_of_a_module_are_not_hidden(package: str) -> None:
    with pytest.raises(ImportError, match="a library is missing"):
        registry.load(package, "broken")
