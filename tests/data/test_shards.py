"""Shards: WebDataset's rule for samples, when the index is created again, damage."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.data import mmap_table, shard_index, shards
from opendino.data.open_source import absolute, open_source
from opendino.data.shard_index import ShardIndex, scan
from opendino.data.sources.wds import WdsSource, expand


def contents(source: Source) -> dict[str, bytes]:
    return {source.key(i): source.read(i) for i in range(len(source))}


def names(path: Path) -> list[str]:
    return list(scan(path).names)


# --- which images there are


def test_img2dataset_layout_by_pattern_folder_and_scheme(make: Any, tmp_path: Path) -> None:
    make.shards(tmp_path / "s", 3, 4)
    (tmp_path / "s/00000.parquet").write_bytes(b"metadata")
    (tmp_path / "s/00000_stats.json").write_text("{}")
    for data in (f"{tmp_path}/s/{{00000..00002}}.tar", f"wds:{tmp_path}/s/{{00000..00002}}.tar", f"wds:{tmp_path}/s"):
        source = open_source(data)
        assert type(source) is WdsSource
        assert len(source) == 12
        assert source.key(5) == "00001.tar/000010001"
        assert source.read(5) == make.png(5)
        assert source.classes == ("0", "1")
        assert [source.label(i) for i in range(4)] == [0, 1, 0, 1]
        assert source.shard_sizes.tolist() == [4, 4, 4]
    assert len(open_source(f"wds:{tmp_path}/s/00000.tar::{tmp_path}/s/00002.tar")) == 8
    for name in ("00000.parquet", "00000_stats.json"):
        (tmp_path / "s" / name).unlink()
    assert type(open_source(tmp_path / "s")) is WdsSource, "a folder of shards needs no scheme"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_samples_are_what_webdataset_makes_of_them(webdataset: Any, make: Any, tmp_path: Path) -> None:
    members = {
        "a/1.jpg": b"1", "a/1.cls": b"7", "./a/2.b.JPG": b"2", "a.d/3.png": b"3", "4.txt": b"t", "5.seg.png": b"no",
        "5.png": b"5", "noext": b"x", "6.png": b"6", "6.cls": b"07", ".hid.png": b"h", "7.PNG": b"7",
    }  # fmt: skip
    path = make.shard(tmp_path / "a.tar", members)
    theirs = {
        sample["__key__"]: {k for k in sample if k[0] != "_"}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    }
    ours = names(path)
    assert ours == ["a/1", "./a/2", "a.d/3", "5", "6", "7"]
    assert set(theirs) - set(ours) <= {"4"}, "a sample without an image"
    source = open_source(f"wds:{path}")
    assert [source.read(i) for i in range(6)] == [b"1", b"2", b"3", b"5", b"6", b"7"]
    assert [source.classes[label] if (label := source.label(i)) >= 0 else "" for i in range(6)] == [
        *"7",
        "",
        "",
        "",
        *"7",
        "",
    ]


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_as_tarfile_reads_them(make: Any, tmp_path: Path, layout: int) -> None:
    members = {
        f"{'d' * 60}/{i}/{'n' * (30 if layout == tarfile.USTAR_FORMAT else 120)}.png": make.png(i) for i in range(3)
    }
    if layout != tarfile.USTAR_FORMAT:
        members |= {"ünï.png": make.png(4)}
    path = make.shard(tmp_path / "a.tar", members, layout=layout)
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    found = scan(path)
    assert [(f"{n}.png", o, s) for n, o, s in zip(found.names, found.offsets, found.sizes, strict=True)] == expected
    assert not found.damage


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdatasets_own_writer_and_gnu_tar(webdataset: Any, make: Any, tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"{i:03d}", "png": make.png(i), "cls": i, "json": {"a": 1}})
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert contents(source) == {f"a.tar/{i:03d}": make.png(i) for i in range(3)}
    assert source.classes == ("0", "1", "2")
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "1.png").write_bytes(make.png(1))
    (folder / "2.png").symlink_to("1.png")
    os.link(folder / "1.png", folder / "3.png")
    subprocess.run(["tar", "-cf", tmp_path / "b.tar", "-C", folder, "."], check=True)
    assert len(names(tmp_path / "b.tar")) == 1, "links have no bytes of their own"


def test_a_name_that_comes_twice_is_two_images(make: Any, tmp_path: Path) -> None:
    one, other = (make.shard(tmp_path / f"{i}.tar", {"1.png": make.png(i), "2.png": make.png(9)}) for i in range(2))
    joined = one.read_bytes()[: 3072 - 1024] + other.read_bytes()
    (tmp_path / "a.tar").write_bytes(joined)
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert len(set(contents(source))) == len(source) == 4


def test_braces_as_webdataset_expands_them() -> None:
    from webdataset.shardlists import expand_urls

    for pattern in ("a{000..012}.tar", "{a,b}/{8..11}.tar", "{0..2}{x,y}.tar", "plain.tar", "{05..3}.tar"):
        assert list(expand(pattern)) == list(expand_urls(pattern))


def test_names_of_classes(make: Any, tmp_path: Path) -> None:
    make.shards(tmp_path / "s", 1, 4)
    (tmp_path / "s/classes.txt").write_text("cat\ndog\n")
    assert open_source(f"wds:{tmp_path}/s").classes == ("cat", "dog")
    (tmp_path / "s/classes.txt").write_text("cat\n")
    assert open_source(f"wds:{tmp_path}/s").classes == ("0", "1"), "a list too short names nothing"


# --- the index


def test_the_index_is_made_once_and_follows_its_shards(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make.shards(tmp_path / "s", 3, 2)
    before = contents(open_source(f"wds:{tmp_path}/s"))
    scanned: list[Path] = []
    monkeypatch.setattr("opendino.data.shards.scan", lambda path, rule: scanned.append(path) or scan(path))
    assert contents(open_source(f"wds:{tmp_path}/s")) == before
    assert scanned == []
    make.shard(made[1], {"new.png": make.png(77)})
    os.utime(made[1], ns=(0, 1))
    after = contents(open_source(f"wds:{tmp_path}/s"))
    assert scanned == [made[1]], "unchanged shards are not read again"
    assert after == {k: v for k, v in before.items() if "00001.tar" not in k} | {"00001.tar/new": make.png(77)}


def test_a_damaged_index_is_created_again(make: Any, tmp_path: Path, cache: Path) -> None:
    make.shards(tmp_path / "s", 2, 3)
    before = contents(open_source(f"wds:{tmp_path}/s"))
    (path,) = cache.glob("*.index")
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:20], b"", whole[:-40] + b"\xff" + whole[-39:], whole.replace(b"note", b"n0te")):
        path.write_bytes(damaged)
        assert mmap_table.load(path) is None
        assert contents(open_source(f"wds:{tmp_path}/s")) == before
        assert path.read_bytes() == whole


def test_an_index_by_other_rules_is_discarded_with_a_line(
    make: Any, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(mmap_table.log, "say", said.append)
    make.shards(tmp_path / "s", 2, 3)
    before = contents(open_source(f"wds:{tmp_path}/s"))
    monkeypatch.setattr(shards, "RULES", "another")
    scanned: list[Path] = []
    monkeypatch.setattr(shards, "scan", lambda path, *rule: scanned.append(path) or scan(path, *rule))
    for _ in range(2):
        assert contents(open_source(f"wds:{tmp_path}/s")) == before
    assert len(scanned) == 2 and len(said) == 1 and "discarded" in said[0]


def test_an_index_takes_no_python_object_an_image(make: Any, tmp_path: Path) -> None:
    make.shards(tmp_path / "s", 2, 50)
    source = open_source(f"wds:{tmp_path}/s")
    assert len(pickle.dumps(source)) < 100 * 60 + 2000
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_without_a_place_for_the_index(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make.shards(tmp_path / "s", 1, 3)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_source(f"wds:{tmp_path}/s")) == 3


# --- damage


def test_a_shard_cut_short_gives_what_it_has(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make.shards(tmp_path / "s", 2, 5)
    made[0].write_bytes(made[0].read_bytes()[:5000])
    source = open_source(f"wds:{tmp_path}/s")
    assert 5 < len(source) < 10
    assert all(contents(source).values())
    assert "00000.tar is damaged after" in capsys.readouterr().err


def test_missing_and_foreign_shards_are_left_out_and_named(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make.shards(tmp_path / "s", 2, 2)
    (tmp_path / "s/00002.tar").write_bytes(gzip.compress(b"x" * 5000))
    source = open_source(f"wds:{tmp_path}/s/{{00000..00003}}.tar")
    assert len(source) == 4
    assert "2 of 4 shards cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"None of 2 shards can be used, .*compressed"):
        open_source(f"wds:{tmp_path}/s/{{00002..00003}}.tar")
    make.shard(tmp_path / "t/a.tar", {"a.txt": b"x"})
    with pytest.raises(UserError, match="no images"):
        open_source(f"wds:{tmp_path}/t")


def test_a_shard_that_changes_or_goes_while_a_run_reads(make: Any, tmp_path: Path) -> None:
    made = make.shards(tmp_path / "s", 3, 2)
    source = open_source(f"wds:{tmp_path}/s")
    made[0].unlink()
    make.shard(made[1], {"longer.png": bytes(4000)})
    for place, reason in ((0, "No such file"), (2, "changed")):
        with pytest.raises(BadImage, match=reason):
            source.read(place)
    assert source.read(4) == make.png(4)
    assert len(open_source(f"wds:{tmp_path}/s")) == 3, "a new start sees what is there"


# --- wrong words


def test_wrong_words(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, reason in (
        ("wds:pipe:cat a.tar", "start a program"), ("wds:ftp://a.org/{0..3}.tar", "neither a web address"),
        ("wds:", "names no shards"), ("wds:{0..9999999}.tar", "more than"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=reason) as caught:
            open_source(data)
        assert caught.value.hint
    monkeypatch.chdir(tmp_path)
    make.shards(tmp_path / "s", 1, 1)
    assert absolute("wds:s") == f"wds:{tmp_path}/s"
    assert absolute("wds:s/{0..3}.tar::s/9.tar") == f"wds:{tmp_path}/s/{{0..3}}.tar::{tmp_path}/s/9.tar"
    assert absolute("s/{0..3}.tar") == f"{tmp_path}/s/{{0..3}}.tar"
    for same in (
        "toy:forms?n=3",
        "toy",
        "wds:https://a.org/{0..3}.tar",
        "https://a.org/{0..3}.tar",
        "10%",
        "hf:me/set?split=a",
    ):
        assert absolute(same) == same


def test_names_packed_and_back() -> None:
    every = ["a", "ünï", "b\udcff", "x/y\n"]
    packed = mmap_table.Names.of(every)
    assert list(packed) == every
    assert packed[-1] == every[-1] and packed[1:3] == every[1:3]
    with pytest.raises(IndexError):
        packed[4]
    assert len(mmap_table.Names.of([])) == 0
    assert np.array_equal(packed.ends, [1, 6, 8, 12])


# --- names with dots, members without bytes


def test_images_with_dots_in_their_names_are_all_found(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in range(2):
        members = {f"scan{shard}.{i:04d}.png": make.png(i) for i in range(5)}
        make.shard(tmp_path / f"s/{shard}.tar", members | {f"scan{shard}.0004.cls": b"cat"})
    source = open_source(tmp_path / "s")
    assert [source.key(i) for i in range(2, 7)] == [
        "0.tar/scan0.0002", "0.tar/scan0.0003", "0.tar/scan0.0004", "1.tar/scan1.0000", "1.tar/scan1.0001",
    ]  # fmt: skip
    assert [source.label(i) for i in range(3, 6)] == [-1, 0, -1]
    said = capsys.readouterr().err
    assert "10 images in 2 shards have dots in their names" in said and "?names=first-dot" in said
    for data in (f"{tmp_path}/s?names=first-dot", f"wds:{tmp_path}/s/{{0..1}}.tar?names=first-dot"):
        assert len(open_source(data)) == 2
    assert "8 images in 2 shards are ignored" in capsys.readouterr().err
    with pytest.raises(UsageError, match="names is 'dots'"):
        open_source(f"wds:{tmp_path}/s?names=dots")


def test_further_images_of_a_sample_are_counted_and_to_be_had(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {f"{i}.{part}": make.png(i) for i in range(3) for part in ("png", "mask.png")}
    make.shard(tmp_path / "a.tar", members)
    assert names(tmp_path / "a.tar") == ["0", "1", "2"]
    assert len(open_source(f"wds:{tmp_path}/a.tar")) == 3
    said = capsys.readouterr().err
    assert "3 images in 1 shards are ignored" in said and "?names=last-dot" in said
    assert len(open_source(f"wds:{tmp_path}/a.tar?names=last-dot")) == 6


def test_sparse_members_keep_their_place_and_have_a_reason(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.png").write_bytes(make.png(1))
    with open(tmp_path / "2.png", "wb") as file:
        file.truncate(2**20)
    subprocess.run(["tar", "-Scf", "a.tar", "1.png", "2.png"], check=True, cwd=tmp_path)
    for _ in range(2):  # scanned, then from the index
        source = open_source(f"wds:{tmp_path}/a.tar")
        assert source.read(0) == make.png(1)
        with pytest.raises(BadImage, match="sparse"):
            source.read(1)
    assert "1 images in 1 shards cannot be read: stored as a sparse file" in capsys.readouterr().err


def test_sizes_beyond_31_bits_stay_large() -> None:
    contents = ShardIndex(
        mmap_table.Names.of(["a"]), np.array([512]), np.array([2**32 + 5]), np.array([-1], np.int32), (), 2**33
    )
    columns, _ = shard_index.merge([("a.tar", [], contents)])
    assert columns["sizes"].tolist() == [2**31 - 1], "and are refused as too large when they are read"


HOSTILE = (
    {"bytes": 8, "columns": [], "note": {}},
    {"bytes": 8, "columns": {"text": ["|u1", 0, 10**30]}, "note": {}},
    {"bytes": 8, "columns": {"text": ["|u1", -5, 4]}, "note": {}},
    {"bytes": 8, "columns": {"text": ["|O", 0, 1]}, "note": {}},
    {"bytes": 8, "columns": {"text": ["i4, (", 0, 1]}, "note": {}},
    {"bytes": 8, "columns": {"text": ["|V9999999999", 0, 0]}, "note": {}},
    {"bytes": 8, "columns": {"text": [["|u1", "|u1"], 0, 0]}, "note": {}},
    [],
    7,
)


@pytest.mark.parametrize("header", HOSTILE, ids=str)
def test_a_foreign_index_is_complete_or_none(header: Any) -> None:
    if isinstance(header, dict):
        header = header | {"crc32": zlib.crc32(bytes(8))}
    encoded = json.dumps(header).encode()
    content = b"opendino index 1\n" + len(encoded).to_bytes(8, "little") + encoded + bytes(8)
    assert mmap_table.parse(np.frombuffer(content, np.uint8)) is None


@pytest.mark.parametrize(
    ("offset", "size", "num_bytes"), [(2**63 - 1, 1, 1000), (0, 2**40, 1000), (0, -7, 1000), (5, 5, -(10**30))]
)
def test_an_index_that_points_outside_its_shard_is_none(offset: int, size: int, num_bytes: int) -> None:
    columns = {
        "text": np.frombuffer(b"ab", np.uint8), "ends": np.array([1, 2]), "offsets": np.array([0, offset]),
        "sizes": np.array([1, size]), "labels": np.array([-1, -1], np.int32),
    }  # fmt: skip
    assert shard_index.read_index(
        columns | {"offsets": np.array([0, 1]), "sizes": np.array([1, 1])}, {"bytes": 9, "classes": []}
    )
    assert shard_index.read_index(columns, {"bytes": num_bytes, "classes": []}) is None
