"""Large folders are remembered: their list is saved, and what comes, goes or changes is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.factories import keys, place_files

from opendino.data.mmap_table import cache_folder
from opendino.data.open_source import open_source
from opendino.data.sources import folder


@pytest.fixture
def remembering(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Save the list of every folder, however small; returns the folders that are scanned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(folder, "_LARGE", 1)
    monkeypatch.setattr(folder, "_SETTLED_NS", -(10**18))
    scanned: list[str] = []
    scan = folder._scan
    monkeypatch.setattr(folder, "_scan", lambda root, prefix: scanned.append(prefix) or scan(root, prefix))
    return scanned


def test_a_remembered_folder_notices_what_comes_and_goes(tmp_path: Path, remembering: list[str]) -> None:
    place_files(tmp_path, "a/1.png", "a/2.png", "b/deep/3.png")
    names = ["a/1.png", "a/2.png", "b/deep/3.png"]
    assert keys(open_source(tmp_path)) == names
    assert sorted(remembering) == ["", "a/", "b/", "b/deep/"]
    remembering.clear()
    again = open_source(tmp_path)
    assert (keys(again), again.classes, again.read(2)) == (names, ("a", "b"), (tmp_path / names[2]).read_bytes())
    assert remembering == [], "nothing is scanned"
    for change in (
        lambda: place_files(tmp_path, "b/deep/4.png"),
        lambda: (tmp_path / "a/1.png").unlink(),
        lambda: (tmp_path / "a/2.png").rename(tmp_path / "a/0.png"),
        lambda: place_files(tmp_path, "c/new/5.png"),
        lambda: (tmp_path / "b").rename(tmp_path / "z"),
    ):
        change()
        remembering.clear()
        found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
        assert keys(open_source(tmp_path)) == found
        assert remembering, "scanned again"


def test_a_damaged_memory_is_none(tmp_path: Path, remembering: list[str]) -> None:
    place_files(tmp_path, "1.png", "2.png")
    open_source(tmp_path)
    (path,) = cache_folder().glob("folder-*.index")
    path.write_bytes(path.read_bytes()[:-1])
    assert keys(open_source(tmp_path)) == ["1.png", "2.png"]


@pytest.mark.parametrize("changed", ["version", "SUFFIXES"])
def test_what_another_version_remembered_is_discarded_with_a_line(
    tmp_path: Path, remembering: list[str], monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(folder.index.log, "say", said.append)
    place_files(tmp_path, "1.png", "2.png")
    open_source(tmp_path)
    monkeypatch.setattr(folder, changed, (lambda _: "0.0.9") if changed == "version" else frozenset({".png"}))
    remembering.clear()
    for _ in range(2):
        assert keys(open_source(tmp_path)) == ["1.png", "2.png"]
    assert remembering == [""] and len(said) == 1 and "discarded" in said[0]


def test_a_folder_with_parts_that_may_not_be_opened_is_not_remembered(
    tmp_path: Path, remembering: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place_files(tmp_path, "a/1.png", "b/2.png")
    scan = folder._scan
    monkeypatch.setattr(folder, "_scan", lambda root, prefix: None if prefix == "b/" else scan(root, prefix))
    assert keys(open_source(tmp_path)) == ["a/1.png"]
    monkeypatch.setattr(folder, "_scan", scan)
    assert keys(open_source(tmp_path)) == ["a/1.png", "b/2.png"]


def test_a_folder_that_has_just_changed_is_not_relied_on(
    tmp_path: Path, remembering: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_SETTLED_NS", 10**9 * 3600)
    place_files(tmp_path, "1.png")
    open_source(tmp_path)
    assert not list(cache_folder().glob("*.index"))
