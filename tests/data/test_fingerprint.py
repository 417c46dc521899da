"""Fingerprints of sources: equal for a copy, different for other images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.factories import plain_folder, plain_image

from opendino.core.errors import UserError
from opendino.data import fingerprint
from opendino.data.labels import relabel
from opendino.data.open_source import open_source
from opendino.data.subset import Subset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plain_folder(tmp_path / "images", *[f"{'ab'[number % 2]}/{number:02d}.png" for number in range(40)])


def replace(folder: Path, numbers: range) -> None:
    for number in numbers:
        plain_image(99).save(folder / f"{'ab'[number % 2]}/{number:02d}.png")


def test_a_copy_is_the_same_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    then, whole = fingerprint.sample(open_source(folder)), fingerprint.whole(open_source(folder))
    copy = tmp_path / "elsewhere/pictures"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    os.utime(copy / "a/00.png", (1, 1))
    fingerprint.check(open_source(copy), then, "then")
    assert fingerprint.whole(open_source(copy)) == whole


def test_other_images_are_distinguished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(fingerprint.log, "warn", said.append)
    then, whole = fingerprint.sample(open_source(folder)), fingerprint.whole(open_source(folder))
    replace(folder, range(3))  # of the same size and under the same names
    fingerprint.check(open_source(folder), then, "step 3")
    assert len(said) == 1 and "other content under the same name" in said[0]
    assert fingerprint.whole(open_source(folder)) != whole
    replace(folder, range(40))
    with pytest.raises(UserError, match=r"changed since step 3: 32 of 32 looked at .*Put them back"):
        fingerprint.check(open_source(folder), then, "step 3")
    (folder / "a/00.png").rename(folder / "a/x.png")
    with pytest.raises(UserError, match="40 then, 40 now"):
        fingerprint.check(open_source(folder), then, "step 3")
    (folder / "a/x.png").unlink()
    with pytest.raises(UserError, match="40 then, 39 now"):
        fingerprint.check(open_source(folder), then, "step 3")


def test_what_cannot_be_read_just_now_is_no_other_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint.log, "warn", lambda text: pytest.fail(text))
    then = fingerprint.sample(open_source(folder))
    source = open_source(folder)
    for path in folder.rglob("*.png"):
        path.unlink()
    fingerprint.check(source, then, "then")


def test_of_checkpoints_from_before_there_was_a_sample_only_the_names_are_compared(folder: Path) -> None:
    then = fingerprint.sample(open_source(folder))
    del then["contents"]
    fingerprint.check(open_source(folder), then, "then")


def test_sources_of_sources_know_their_images(folder: Path) -> None:
    source = open_source(folder)
    assert relabel(source, "10%", 0).checksum(5) == source.checksum(5)
    assert Subset(source, [7, 5]).checksum(1) == source.checksum(5)
