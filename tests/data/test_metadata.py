"""Columns of a CSV that say how images were taken: which are groups, and where a CSV is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from opendino.core.errors import UsageError, UserError
from opendino.data.metadata import confounders_hint, folder_column, group_columns, known_metadata, read_metadata
from opendino.data.open_source import open_source


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images in two folders, and a CSV beside them."""
    lines = ["path,label,device,session,note"]
    for number in range(20):
        name = f"{'ab'[number % 2]}/{number}.png"
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        lines.append(f"photos/{name},{'ab'[number % 2]},{'xy'[number // 10]},one,{number}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path / "photos"


def keys(photos: Path) -> list[str]:
    source = open_source(str(photos))
    return [source.key(index) for index in range(len(source))]


def test_values_are_those_of_the_images(photos: Path) -> None:
    found = read_metadata(str(photos.parent / "labels.csv"), keys(photos))
    assert list(found) == ["label", "device", "session", "note"]
    assert all(keys(photos)[i] == f"{found['label'][i]}/{found['note'][i]}.png" for i in range(20))
    assert group_columns(found) == ["device"]  # one session, twenty notes, and the label is the class


def test_images_that_the_csv_lacks_have_no_value(photos: Path) -> None:
    (photos.parent / "few.csv").write_text("path,device\n3.png,x\nelsewhere/a/4.png,y\nphotos/no.png,z\n")
    found = read_metadata(str(photos.parent / "few.csv"), keys(photos))
    assert sorted(found["device"]) == [""] * 18 + ["x", "y"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a/0.png,x\na/2.png,y\n", "has no header"),
        ("path,device\n", "has no header"),
        ("path,device\nno.png,x\n", "None of the 1 paths"),
        ("left,right,device\na/0.png,a/2.png,x\n", "may name the images"),
    ],
)
def test_a_csv_that_does_not_fit(photos: Path, text: str, told: str) -> None:
    (photos.parent / "bad.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        read_metadata(str(photos.parent / "bad.csv"), keys(photos))


def test_the_csv_of_a_run_is_found_and_the_hint_is_a_command(photos: Path, tmp_path: Path) -> None:
    csv = str(tmp_path / "labels.csv")
    assert known_metadata(str(photos), "all") == (csv, ["device"])
    assert known_metadata("elsewhere", csv) == (csv, ["device"])
    assert known_metadata("toy:textures?n=20", "10%") is None
    hint = confounders_hint("runs/one", str(photos), "all")
    assert hint.startswith("device in ") and hint.endswith(f"opendino eval confounders runs/one --labels {csv}")
    (tmp_path / "labels.csv").write_text("path,label\nphotos/a/0.png,a\n")
    assert confounders_hint("runs/one", str(photos), "all") == ""


def test_an_image_beside_the_sub_folders_has_none(photos: Path) -> None:
    assert folder_column(open_source(str(photos))) == {"folder": ["a"] * 10 + ["b"] * 10}
    (photos / "a/0.png").rename(photos / "line.png")
    assert folder_column(open_source(str(photos))) == {"folder": ["a"] * 9 + ["b"] * 10 + [""]}
    with pytest.raises(UsageError, match="not in two sub-folders or more"):
        folder_column(open_source(str(photos / "a")))
