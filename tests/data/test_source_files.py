"""Paths as text and back: different for all paths, with any bytes in them."""

from __future__ import annotations

import csv
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opendino.data.labels import all_labels, relabel
from opendino.data.list_columns import read_list
from opendino.data.open_source import list_paths, open_source
from opendino.data.source_files import cell, line, printable, unescape

PIECES = [b"\\", b"x", b"5c", b"ff", b"0a", b"\xff", b"\\xff", b"\n", b"\r", b"\t", b"=", b"#", b" ", b"a", b",", b'"']
PIECES += ["\u3000".encode(), "\ufeff".encode(), "é".encode()]
NAMES = st.one_of(
    st.binary(min_size=1, max_size=8), st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map(b"".join)
).map(lambda name: os.fsdecode(name.replace(b"\0", b"0").replace(b"/", b"|")))

HOSTILE = [
    b"\xff",
    b"\\xff",
    b"\\x5cxff",
    b"a\nb",
    b"a\tb",
    b" a ",
    b"=1+1",
    b"+1",
    b"-1",
    b"@A1",
    b"#a",
    b"'a",
    b'a,"b"',
]
HOSTILE += ["\ufeffa".encode(), b"caf\xe9", "café".encode(), b"a\\xffb", b"plain"]


@settings(max_examples=500, deadline=None)
@given(name=NAMES)
def test_every_name_comes_back(name: str) -> None:
    for text in (printable(name), cell(printable(name)), line(printable(name))):
        text.encode("utf-8")
        assert unescape(text) == name
    assert cell(printable(name))[0] not in "=+-@# \t"
    assert line(printable(name)).isprintable() or not {*line(printable(name))} & {*"\n\r\t\0"}


@pytest.mark.parametrize("text", ["a.png", "é图.png", r"C:\data\1.png", "a\\", r"\x", r"\xg0", r"\xFF", r"a\x41.png"])
def test_text_that_was_never_escaped_stays_as_it_is(text: str) -> None:
    assert printable(unescape(text)) in (text, printable(text)) and unescape(text) == text


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Files with odd names in two classes, all with different content."""
    for folder in (b"=cmd", b"\xfe"):
        (tmp_path / "images" / os.fsdecode(folder)).mkdir(parents=True)
        for name in HOSTILE:
            path = os.fsencode(tmp_path) + b"/images/" + folder + b"/" + name + b".png"
            Path(os.fsdecode(path)).write_bytes(folder + name)
    return tmp_path / "images"


def test_no_two_files_share_a_key(odd: Path, tmp_path: Path) -> None:
    source = open_source(odd)
    keys = {source.key(index) for index in range(len(source))}
    assert len(keys) == len(source) == 2 * len(HOSTILE)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(odd, "")
    packed = open_source(tmp_path / "a.tar")
    assert {packed.key(index) for index in range(len(packed))} == keys
    assert packed.classes == source.classes == ("=cmd", r"\xfe")


@pytest.mark.parametrize("kind", ["list.txt", "list.csv"])
def test_a_list_of_any_names_is_data_and_labels_again(odd: Path, tmp_path: Path, kind: str) -> None:
    source = open_source(odd)
    keys = [source.key(index) for index in range(len(source))]
    classes = [source.classes[source.label(index)] for index in range(len(source))]
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / kind
    rows = list(zip(list_paths(str(odd), keys), classes, strict=True))
    with open(path, "w", encoding="utf-8", newline="") as file:
        if kind == "list.csv":
            csv.writer(file).writerows([("path", "class"), *((cell(name), cell(label)) for name, label in rows)])
        else:
            file.writelines(f"{line(name)}\t{line(label)}\n" for name, label in rows)
    again = open_source(path)
    assert [again.read(index) for index in range(len(source))] == [source.read(i) for i in range(len(source))]
    assert again.classes == source.classes and (all_labels(again) == all_labels(source)).all()
    relabeled = relabel(source, str(path), 0)
    assert relabeled.classes == source.classes and (all_labels(relabeled) == all_labels(source)).all()


def test_no_cell_begins_a_formula(odd: Path) -> None:
    source = open_source(odd)
    for index in range(len(source)):
        for text in source.key(index).split("/"):
            assert cell(text)[0] not in "=+-@\t\r"


def test_lists_made_by_others_are_read_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one.png\tcat\n\xff.png\n# not this\n\na\\b.png\tdog\n")
    assert read_list(str(tmp_path / "a.txt")) == {"one.png": "cat", "\udcff.png": "", "a\\b.png": "dog"}


def test_images_that_are_no_files_are_named_by_their_keys(tmp_path: Path) -> None:
    assert list_paths("toy:", ["toy/1"]) == ["toy/1"]
    assert list_paths("folder:" + str(tmp_path), ["a.png"]) == [str(tmp_path / "a.png")]
