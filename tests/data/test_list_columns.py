"""Which columns of a list are used, what is logged, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.factories import plain_folder

from opendino.core.errors import UserError
from opendino.data.list_columns import read_list
from opendino.data.open_source import open_source

KNOWN = {"1.png": "a", "2.png": "b", "3.png": "a"}


def rows(template: str) -> str:
    """One line for each image of `KNOWN`."""
    return "".join(template.format(image=image, stem=image[0], name=name) + "\n" for image, name in KNOWN.items())


UNDERSTOOD = {
    "path,label": "{image},{name}",
    "filepath,label": "{image},{name}",
    "image_id,dx": "{image},{name}",
    "filename,split,label": "{image},train,{name}",
    "path,width,height,label": "{image},64,48,{name}",
    "label,path": "{name},{image}",
    "Image Path,Class": "{image},{name}",
    "\ufefffile,species": "{image},{name}",
    "anything,kind": "{image},{name}",
    "image,mask,class": "{image},m{image},{name}",
    "id,url,file_name,category": "7,http://x/{image},{image},{name}",
    ",filename,label": "0,{image},{name}",
    "patient,age,image,target": "P1,70,{image},{name}",
    "path;label": "{image};{name}",
    "path\tlabel": "{image}\t{name}",
}


@pytest.mark.parametrize("header", UNDERSTOOD)
def test_columns_are_taken_by_their_names(tmp_path: Path, header: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n{rows(UNDERSTOOD[header])}", encoding="utf-8")
    assert read_list(str(tmp_path / "a.csv"), KNOWN.__contains__) == KNOWN
    assert "a.csv: images in column '" in capsys.readouterr().err


REFUSED = {
    "path,size_class,age\n1.png,x,70\n": "'size_class', 'age' may name the classes",
    "image,label,target\n1.png,a,b\n": "'label', 'target' may name the classes",
    "path,file,label\n1.png,2.png,a\n": "'path', 'file' may name the images",
    "x,y1,z\nu,v,w\n": "'x', 'y1', 'z' may name the images",
    "image,a,b\n1.png,1,0\n2.png,0,1\n": "'a', 'b' may each be a class; one-hot columns are not read",
    "1.png,train,a\n2.png,val,b\n": "3 columns have no header",
}


@pytest.mark.parametrize("table", REFUSED)
def test_what_may_mean_two_things_is_refused(tmp_path: Path, table: str) -> None:
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(UserError, match=REFUSED[table]) as caught:
        read_list(str(tmp_path / "a.csv"), KNOWN.__contains__)
    assert "path,label" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.png,a\n2.png,b\n3.png,a\n", KNOWN),
        ("gone.png,b\n1.png,a\n", {"gone.png": "b", "1.png": "a"}),
        ("path,split\n1.png,train\n", {"1.png": ""}),
        ("path\n1.png\n", {"1.png": ""}),
        ("1.png,file\n2.png,path\n", {"1.png": "file", "2.png": "path"}),
        ("", {}),
    ],
)
def test_headers_and_rows_are_distinguished(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert read_list(str(tmp_path / "a.csv"), KNOWN.__contains__) == expected


def test_a_text_file_may_have_a_header_but_its_first_path_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("path\tlabel\n1.png\ta\n")
    assert read_list(str(tmp_path / "a.txt")) == {"1.png": "a"}
    (tmp_path / "a.txt").write_text("scans/0001\n1.png\n")
    assert list(read_list(str(tmp_path / "a.txt"))) == ["scans/0001", "1.png"]


def test_an_image_with_two_classes_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("path,label\n1.png,a\n1.png,b\n2.png,b\n2.png,b\n")
    assert read_list(str(tmp_path / "a.csv")) == {"1.png": "a", "2.png": "b"}
    assert "1 images have more than one class in" in capsys.readouterr().err


def test_names_without_a_suffix_are_those_of_files(tmp_path: Path) -> None:
    plain_folder(tmp_path, *["x/1.jpg", "x/2.tif"])
    (tmp_path / "a.csv").write_text("image_id,dx\nx/1,mel\nx/2,nv\nx/3,nv\nx/1.jpg,nv\n")
    source = open_source(tmp_path / "a.csv")
    assert [source.key(i) for i in range(len(source))] == ["x/1.jpg", "x/2.tif", "x/3"]
    assert source.classes == ("mel", "nv")
    assert source.read(1) == (tmp_path / "x/2.tif").read_bytes()


def test_the_csv_of_label_studio(tmp_path: Path) -> None:
    path = tmp_path / "project-1.csv"
    path.write_text(
        "annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at\n"
        "1,1,cat,2026-01-01T10:00:00Z,11,/data/local-files/?d=photos/a%20b.jpg,2.5,2026-01-01T10:00:00Z\n"
        "2,1,dog,2026-01-01T10:00:00Z,12,/data/upload/3/0a1b2c3d-c-d.jpg,3.5,2026-01-01T10:00:00Z\n"
        "3,1,dog,2026-01-01T10:00:00Z,13,/data/mine/e%20f.jpg,3.5,2026-01-01T10:00:00Z\n"
    )
    assert read_list(str(path)) == {"photos/a b.jpg": "cat", "c-d.jpg": "dog", "/data/mine/e%20f.jpg": "dog"}
