"""Folders, lists and archives: images, keys, classes, and the errors if there are no images."""

from __future__ import annotations

import os
import pickle
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from tests.factories import keys, place_files

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.types import ViewGroup, ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.loader import Batches
from opendino.data.open_source import absolute, list_paths, open_source
from opendino.data.source_files import detect_layout
from opendino.data.sources import toy
from opendino.data.sources.archive import ArchiveSource
from opendino.data.sources.folder import FolderSource
from opendino.views.settings import view


def labeled(source: Source) -> dict[str, str]:
    return {source.key(i): source.classes[source.label(i)] if source.label(i) >= 0 else "" for i in range(len(source))}


def error_of(data: object) -> UserError:
    with pytest.raises(UserError) as caught:
        open_source(data)
    assert "\n" not in str(caught.value)
    assert caught.value.hint, "says what to do next"
    return caught.value


# --- folder


def test_folder_of_any_depth_sorted_with_any_suffix(tmp_path: Path) -> None:
    names = ["b/deep/er/2.JPG", "b/1.jpeg", "a.PNG", "z.WebP", "B.tif", "c/x.jp2", "n.txt", ".hidden.png"]
    place_files(tmp_path, *names, ".git/x.png", "__MACOSX/x.png", "b/._1.jpeg", "empty/.DS_Store")
    source = open_source(tmp_path)
    assert keys(source) == ["B.tif", "a.PNG", "b/1.jpeg", "b/deep/er/2.JPG", "c/x.jp2", "z.WebP"]
    assert source.read(1) == (tmp_path / "a.PNG").read_bytes()
    assert source.classes == ()
    assert source.label(0) == -1


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (
            ["cat/1.png", "dog/2.png", "dog/black/3.png"],
            {"cat/1.png": "cat", "dog/2.png": "dog", "dog/black/3.png": "dog"},
        ),
        (["cat/1.png", "dog/2.png", "3.png"], None),  # an image beside the folders
        (["2023/1.png", "2023/may/2.png"], None),  # one folder tells nothing apart
        (["1.png", "2.png"], None),
        (["train/1.png", "val/2.png"], None),  # splits are no classes
        (
            ["train/cat/1.png", "train/dog/2.png", "Val/cat/3.png"],
            {"Val/cat/3.png": "cat", "train/cat/1.png": "cat", "train/dog/2.png": "dog"},
        ),
        (["test/cat/1.png", "test/dog/2.png"], {"test/cat/1.png": "cat", "test/dog/2.png": "dog"}),
        (["train/cat/1.png", "train/dog/2.png", "test/3.png"], None),
        (["train/1.png", "tram/2.png"], {"train/1.png": "train", "tram/2.png": "tram"}),  # a railway, no split
    ],
)
def test_classes_are_folders(tmp_path: Path, names: list[str], classes: dict[str, str] | None) -> None:
    place_files(tmp_path, *names)
    (tmp_path / "notes/only").mkdir(parents=True)  # a folder without images is no class
    source = open_source(tmp_path)
    assert labeled(source) == (classes or dict.fromkeys(sorted(names), ""))
    assert list(source.classes) == sorted(set((classes or {}).values()))


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    place_files(tmp_path / "elsewhere", "1.png")
    root = place_files(tmp_path / "root", "b/2.png")
    (root / "a_link").symlink_to(tmp_path / "elsewhere")
    (root / "b/up").symlink_to(root)
    (root / "a_twin").symlink_to(root / "b")
    (root / "self").symlink_to(root / "self")
    (root / "self.png").symlink_to(root / "self.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "file.png").symlink_to(tmp_path / "elsewhere/1.png")
    source = open_source(root)
    assert keys(source) == ["a_link/1.png", "b/2.png", "file.png", "gone.png", "self.png"]
    for index, readable in enumerate([True, True, True, False, False]):
        if readable:
            assert source.read(index)
        else:
            with pytest.raises(BadImage):
                source.read(index)


def test_pipes_and_vanished_files_never_block(tmp_path: Path) -> None:
    place_files(tmp_path, "a.png", "b.png")
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(tmp_path)
    (tmp_path / "b.png").unlink()
    outcome: list[str] = []

    def read_all() -> None:
        for index in range(3):
            try:
                outcome.append(str(len(source.read(index)) > 0))
            except BadImage as error:
                outcome.append(str(error))

    thread = threading.Thread(target=read_all, daemon=True)
    thread.start()
    thread.join(10)
    assert outcome == ["True", "No such file or directory", "not a regular file"]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    place_files(tmp_path, "a.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(513 * 2**20)  # takes no room on disk
    with pytest.raises(BadImage, match="513 MB"):
        open_source(tmp_path).read(1)


def test_an_unreadable_folder_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_files(tmp_path, "a/1.png", "locked/2.png")
    scandir = os.scandir

    def guarded(path: object) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert keys(open_source(tmp_path)) == ["a/1.png"]


def test_names_that_are_not_text(tmp_path: Path) -> None:
    place_files(tmp_path, "ünï.png", "two\nlines.png", "комната/ä.png")
    raw = os.fsencode(tmp_path) + b"/byte\xff.png"
    try:
        Path(os.fsdecode(raw)).write_bytes((tmp_path / "ünï.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    source = open_source(tmp_path)
    assert keys(source) == ["byte\\xff.png", "two\nlines.png", "ünï.png", "комната/ä.png"]
    (tmp_path / "keys.csv").write_text("\n".join(keys(source)), encoding="utf-8")
    assert all(source.read(index)[:4] == b"\x89PNG" for index in range(4))


def test_folder_pickles_and_is_stable(tmp_path: Path) -> None:
    place_files(tmp_path, *(f"{name}/{i}.png" for name in "cab" for i in range(3)))
    one, other = FolderSource(str(tmp_path)), pickle.loads(pickle.dumps(open_source(tmp_path)))
    assert labeled(one) == labeled(other)
    assert one.classes == ("a", "b", "c")


# --- list


def test_list_of_paths(tmp_path: Path) -> None:
    place_files(tmp_path, "x/1.png", "x/2.png", "x/3 4.png")
    lines = ["\ufeff# a comment", "", "x/2.png", "  x/1.png \r", str(tmp_path / "x/3 4.png"), "x/2.png", "gone.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    source = open_source(tmp_path / "list.txt")
    assert keys(source) == ["x/2.png", "x/1.png", str(tmp_path / "x/3 4.png"), "gone.png"]
    assert source.classes == ()
    assert source.read(0) == (tmp_path / "x/2.png").read_bytes()
    with pytest.raises(BadImage, match="No such file"):
        source.read(3)


def test_list_with_classes(tmp_path: Path) -> None:
    place_files(tmp_path, "1.png", "2.png", "3, x.png", "4.png")
    (tmp_path / "a.lst").write_text("1.png\t10\n2.png\t9\n3, x.png\t10\n4.png\n")
    source = open_source(tmp_path / "a.lst")
    assert labeled(source) == {"1.png": "10", "2.png": "9", "3, x.png": "10", "4.png": ""}
    assert source.classes == ("9", "10")
    (tmp_path / "b.csv").write_text('path,label\n1.png,cat\n"3, x.png",dog\n')
    assert labeled(open_source(tmp_path / "b.csv")) == {"1.png": "cat", "3, x.png": "dog"}
    (tmp_path / "c.csv").write_text("2.png\n1.png\n")
    assert labeled(open_source(tmp_path / "c.csv")) == {"2.png": "", "1.png": ""}


def test_list_without_images(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x/1.png\n/nowhere/2.png\nbad\0name.png\n")
    error = error_of(tmp_path / "a.txt")
    assert "None of the 3 paths" in error.message
    assert str(tmp_path / "x/1.png") in error.message
    (tmp_path / "a.txt").write_text("# nothing\n\n")
    assert "names no images" in error_of(tmp_path / "a.txt").message


# --- archive


def packed(root: Path, path: Path, prefix: str = "", mode: str = "w") -> Path:
    files = sorted(file for file in root.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, mode, zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, f"{prefix}{file.relative_to(root)}")
    else:
        with tarfile.open(path, mode) as tar:
            for file in files:
                tar.add(file, f"{prefix}{file.relative_to(root)}")
    return path


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize("prefix", ["", "./", "photos/2024/", "./photos/"])
def test_archive(tmp_path: Path, suffix: str, prefix: str) -> None:
    names = ("cat/1.PNG", "dog/2.png", "dog/old/3.png", "dog/.x.png", "__MACOSX/dog/2.png", "n.txt")
    root = place_files(tmp_path / "in", *names)
    source = open_source(packed(root, tmp_path / f"a{suffix}", prefix))
    assert type(source) is ArchiveSource
    base = prefix.removeprefix("./")
    expected = {f"{base}cat/1.PNG": "cat", f"{base}dog/2.png": "dog", f"{base}dog/old/3.png": "dog"}
    assert labeled(source) == expected
    for index in (2, 0, 1, 0):
        assert source.read(index) == (root / source.key(index).removeprefix(base)).read_bytes()
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(1) == source.read(1)
    (tmp_path / f"a{suffix}").unlink()
    assert source.read(0), "an open archive stays readable"
    with pytest.raises(BadImage, match="No such file"):
        pickle.loads(pickle.dumps(source)).read(0)


def test_a_member_that_came_twice_counts_once_and_late(tmp_path: Path) -> None:
    for suffix in (".tar", ".zip"):
        for name, size in (("old", 3), ("new", 9)):
            place_files(tmp_path / name, "x/1.png")
            Image.new("RGB", (size, size)).save(tmp_path / name / "x/1.png")
        path = packed(tmp_path / "old", tmp_path / f"a{suffix}")
        if suffix == ".zip":
            with pytest.warns(UserWarning, match="Duplicate"):
                packed(tmp_path / "new", path, mode="a")
        else:
            packed(tmp_path / "new", path, mode="a")
        source = open_source(path)
        assert keys(source) == ["x/1.png"]
        assert source.read(0) == (tmp_path / "new/x/1.png").read_bytes()


def test_links_in_a_tar_are_no_way_out(tmp_path: Path) -> None:
    place_files(tmp_path / "in", "a.png")
    (tmp_path / "in/b.png").symlink_to("/etc/passwd")
    assert keys(open_source(packed(tmp_path / "in", tmp_path / "a.tar"))) == ["a.png"]


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_tar_is_refused_with_a_hint(tmp_path: Path, mode: str) -> None:
    place_files(tmp_path / "in", "a.png")
    for name in (f"a.tar.{mode}", "a.tar"):  # by its bytes, for any name
        error = error_of(packed(tmp_path / "in", tmp_path / name, mode=f"w:{mode}"))
        assert "compressed" in error.message
        assert "tar -xf" in error.hint


def test_damaged_archives(tmp_path: Path) -> None:
    place_files(tmp_path / "in", *(f"{i}.png" for i in range(9)))
    for suffix in (".tar", ".zip"):
        path = packed(tmp_path / "in", tmp_path / f"a{suffix}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
        assert "damaged" in error_of(path).message
        path.write_bytes(b"")
        assert "damaged" in error_of(path).message
        path.write_bytes(b"not an archive at all" * 100)
        assert "damaged" in error_of(path).message


def test_damaged_members(tmp_path: Path) -> None:
    place_files(tmp_path / "in", "0.png", "1.png")
    for suffix in (".tar", ".zip"):
        path = packed(tmp_path / "in", tmp_path / f"a{suffix}")
        source = open_source(path)
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(BadImage):
            source.read(1)


# --- errors, schemes


def test_missing_path_names_the_nearest(tmp_path: Path) -> None:
    place_files(tmp_path, "Photos/deep/a.png")
    assert f"Did you mean {tmp_path / 'Photos'}?" in error_of(tmp_path / "fotos").hint
    assert f"Did you mean {tmp_path / 'Photos'}?" in error_of(tmp_path / "photoss/deep").hint
    hint = error_of(tmp_path / "qqq/deep").hint
    assert "'qqq'" in hint
    assert str(tmp_path) in hint
    assert "does not exist" in error_of("x" * 5000).message
    assert "No images were named" in error_of("").message


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert "No files in folder" in error_of(tmp_path).message
    place_files(tmp_path, "a.txt", "b.TXT", "sub/c.csv", "README")
    error = error_of(tmp_path)
    assert "4 files seen (2 .txt, 1 without suffix, 1 .csv)" in error.message
    assert ".jpg" in error.hint
    place_files(tmp_path, "x.heic")
    assert "HEIC" in error_of(tmp_path).hint
    place_files(tmp_path / "in", "a.csv")
    assert "1 file seen" in error_of(packed(tmp_path / "in", tmp_path / "a.zip")).message


def test_files_that_are_no_source(tmp_path: Path) -> None:
    place_files(tmp_path, "a.png")
    error = error_of(tmp_path / "a.png")
    assert "single image" in error.message
    assert str(tmp_path) in error.hint
    (tmp_path / "a.docx").write_text("x")
    assert "not a source of images" in error_of(tmp_path / "a.docx").message
    (tmp_path / "dead").symlink_to("nowhere")
    assert "link" in error_of(tmp_path / "dead").message


def test_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_files(tmp_path, "a.png", "toy:/b.png", "2024:05/c.png")
    assert keys(open_source(f"folder:{tmp_path}")) == ["2024:05/c.png", "a.png", "toy:/b.png"]
    assert isinstance(open_source("toy:forms?n=3"), toy.ToySource)
    with pytest.raises(UsageError, match=r"Unknown source 'toys'.*toy"):
        open_source("toys:forms")
    with pytest.raises(UsageError, match="Unknown source 'http'"):
        open_source("http://example.org/a.png")
    assert "Cannot open folder" in error_of("folder:nowhere").message
    monkeypatch.chdir(tmp_path)
    assert keys(open_source("toy:")) == ["b.png"], "a path that exists wins"
    assert keys(open_source("2024:05")) == ["c.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_source("~")) == 3
    assert len(open_source("folder:~")) == 3


def test_files_that_come_and_go_while_a_run_reads(tmp_path: Path) -> None:
    place_files(tmp_path, *(f"{i}.png" for i in range(8)))
    data = Batches(
        DecodedImages(open_source(tmp_path), 400),
        ViewSpec((ViewGroup("global", 8, (view({"crop.scale": (0.4, 1.0)}),)),)),
        0,
        4,
    )
    first = data[0]
    gone, changed = (int(i) for i in data[1].indices[:2])
    (tmp_path / f"{gone}.png").unlink()
    (tmp_path / f"{changed}.png").write_bytes(b"torn")
    place_files(tmp_path, "late.png")
    second = data[1]
    assert dict(second.bad).keys() == {f"{gone}.png", f"{changed}.png"}
    assert not {gone, changed} & set(second.indices.tolist())
    assert len(second.indices) == 4 and len(data.images) == 8
    assert data[0].indices.equal(first.indices)


def test_a_folder_with_colons_stays_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_files(tmp_path / "set::2024", "a.png")
    monkeypatch.chdir(tmp_path)
    assert absolute("set::2024") == str(tmp_path / "set::2024") and len(open_source(absolute("set::2024"))) == 1


def test_videos_beside_a_table_are_images(tmp_path: Path) -> None:
    for name in ("clip.mp4", "metadata.parquet"):
        (tmp_path / name).write_bytes(b"x")
    assert detect_layout(str(tmp_path)) == "images"
    (tmp_path / "clip.mp4").unlink()
    assert detect_layout(str(tmp_path)) == "tables"


def test_of_two_links_to_a_folder_the_first_by_name_counts(tmp_path: Path) -> None:
    place_files(tmp_path / "elsewhere", "a.png")
    for name in ("z", "b", "m"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "link").symlink_to(tmp_path / "elsewhere")
    source = open_source(str(tmp_path / "set"))
    assert [source.key(index) for index in range(len(source))] == ["b/link/a.png"]


def test_paths_of_a_list_with_its_scheme_are_absolute(tmp_path: Path) -> None:
    place_files(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text("a.png\n")
    assert list_paths(f"file_list:{tmp_path / 'list.txt'}", ["a.png"]) == [str(tmp_path / "a.png")]
