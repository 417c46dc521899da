"""Atomic writes: a reader sees the old or the new file, never a part of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opendino.core import atomic_write


@pytest.mark.parametrize("content", [b"\x00\xff", "π and \n lines", ""])
def test_writes_and_replaces_and_leaves_nothing_else(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "note.txt"
    for _ in range(2):
        atomic_write.write(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
        assert os.listdir(tmp_path) == ["note.txt"]


def test_names_that_are_not_text_survive(tmp_path: Path) -> None:
    atomic_write.write(tmp_path / "list", os.fsdecode(b"caf\xe9.jpg"))
    assert (tmp_path / "list").read_bytes() == b"caf\xe9.jpg"


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    path = tmp_path / "note.txt"
    atomic_write.write(path, "old")
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write.write(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    atomic_write.write(path, "new")  # what the failed write left is no obstacle
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_content_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        order.append("forced to disk")
        fsync(descriptor)

    def recorded_replace(path: Path, target: Path) -> Path:
        order.append("renamed")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    atomic_write.write(tmp_path / "note.txt", "new")
    assert order == ["forced to disk", "renamed"]


def test_sync_takes_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    atomic_write.sync(tmp_path)
    atomic_write.sync(tmp_path / "note.txt")
    with pytest.raises(FileNotFoundError):
        atomic_write.sync(tmp_path / "gone")
