"""Images given to train on and to test on: refused if it is all of them, else left out of the test, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.factories import place_files

from opendino.core import log
from opendino.core.errors import UsageError
from opendino.data.open_source import open_source
from opendino.data.train_val_overlap import only_in_val

NAMES = ("a/1.png", "a/2.png", "b/3.png")


def given(data: Path | str) -> tuple[str, list[str]]:
    source = open_source(str(data))
    return str(data), [source.key(index) for index in range(len(source))]


def test_files_are_the_same_by_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place_files(tmp_path, *(f"all/{name}" for name in NAMES), "other/a/1.png"))
    (tmp_path / "link").symlink_to("all")
    (tmp_path / "list.txt").write_text("all/b/3.png\nother/a/1.png\n")
    for again in ("all", "./all/../all", tmp_path / "all", "link", "all/a"):
        with pytest.raises(UsageError, match=r"each would find itself.*without --val"):
            only_in_val(given("all"), given(again))
    assert only_in_val(given("all"), given("other")) == [0]  # the same key, another file
    log.write_to(None)
    assert capsys.readouterr().err == ""
    assert only_in_val(given("all"), given("list.txt")) == [1]
    assert "1 of 2 images of --val list.txt are in --train all too: they are not tested on" in capsys.readouterr().err


def test_what_is_no_file_is_the_same_by_data_and_key() -> None:
    toy = "toy:textures?n=20&size=16"
    with pytest.raises(UsageError, match="All 20 images"):
        only_in_val(given(toy), given(toy))
    assert len(only_in_val(given(toy), given(f"{toy}&seed=1"))) == 20
