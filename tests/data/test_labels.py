"""Which labels a run may use; batches begin with labeled images if the method needs them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import plain_folder

from opendino.core.errors import UsageError, UserError
from opendino.core.types import ViewGroup, ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.labels import all_labels, labels_for_val, match_labels, relabel
from opendino.data.loader import Batches
from opendino.data.open_source import open_source
from opendino.views.settings import view


def folder(home: Path, *names: str) -> str:
    for number, name in enumerate(names):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(home / name)
    return str(home)


def test_all_labels_are_the_source_itself() -> None:
    source = open_source("toy:textures?n=30")
    assert relabel(source, "auto", 0) is source and relabel(source, "folders", 0) is source


def test_none_leaves_no_classes(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path, "2024-01-01/1.png", "2024-01-02/2.png"))
    none = relabel(source, "none", 0)
    assert none.classes == () and all_labels(none).tolist() == [-1, -1] and none.key(1) == source.key(1)


def test_folders_that_do_not_exist_cannot_be_classes(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path, "1.png", "2.png"))
    assert relabel(source, "auto", 0) is source
    with pytest.raises(UserError, match="have no classes, so --labels folders has none"):
        relabel(source, "folders", 0)


def test_a_source_says_whether_its_classes_are_just_folders(tmp_path: Path) -> None:
    assert open_source(folder(tmp_path, "a/1.png", "b/2.png")).folder_classes
    assert not open_source("toy:textures?n=30").folder_classes


@pytest.mark.parametrize("share", [1, 10, 50, 100])
def test_a_share_is_drawn_from_each_class(share: int) -> None:
    source = open_source("toy:textures?n=200")
    some = relabel(source, f"{share}%", 3)
    labels, every = all_labels(some), all_labels(source)
    kept = labels >= 0
    assert Counter(labels[kept].tolist()) == dict.fromkeys(range(10), max(1, share * 20 // 100))
    assert (labels[kept] == every[kept]).all()
    assert (some.key(7), some.classes, len(some)) == (source.key(7), source.classes, len(source))
    assert np.array_equal(all_labels(relabel(source, f"{share}%", 3)), labels), "a resumed run draws the same"


def test_another_seed_draws_another_share() -> None:
    source = open_source("toy:textures?n=200")
    assert not np.array_equal(all_labels(relabel(source, "10%", 0)), all_labels(relabel(source, "10%", 1)))


@pytest.mark.parametrize("third", ["3.png", "3", "elsewhere/b/3.png", "/home/me/b/3.png", "C:\\b\\3.png"])
def test_a_csv_names_classes_by_key_or_by_a_unique_file_name(tmp_path: Path, third: str) -> None:
    source = open_source(plain_folder(tmp_path / "photos", "a/1.png", "a/2.png", "b/3.png", "4.png"))
    listed = tmp_path / "labels.csv"
    listed.write_text(f"path,class\na/1.png,dog\n{third},cat\n4.png,\n")
    some = relabel(source, str(listed), 0)
    assert some.classes == ("cat", "dog")
    assert {some.key(i): some.label(i) for i in range(4)} == {"4.png": -1, "a/1.png": 1, "a/2.png": -1, "b/3.png": 0}


def test_a_line_for_another_folder_names_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(plain_folder(tmp_path / "photos", "cat/5.png", "cat/6.png", "cat/7.png"))
    listed = tmp_path / "labels.csv"
    listed.write_text("path,class\ncat/5.png,cat\ndog/5.png,dog\ncat/6.png,cat\ndog/6.png,dog\ndog/7.png,dog\n")
    some = relabel(source, str(listed), 0)
    assert some.classes == ("cat",) and all_labels(some).tolist() == [0, 0, -1]
    assert "3 of the 5 paths" in capsys.readouterr().err


def test_the_key_of_an_image_counts_before_other_paths_to_it(tmp_path: Path) -> None:
    keys, listed = ["cat/5.png", "cat/6.png"], tmp_path / "labels.csv"
    listed.write_text("path,class\nold/cat/5.png,dog\ncat/5.png,cat\n6.png,cat\n/x/cat/6.png,cat\n")
    found, unmatched = match_labels(keys, str(listed))
    assert found == {0: "cat", 1: "cat"} and unmatched.startswith("1 of the 4 paths")
    listed.write_text("path,class\nold/cat/5.png,dog\nnew/cat/5.png,cat\n")
    with pytest.raises(UserError, match=r"different things about cat/5\.png, as old/cat/5\.png and as new/cat/5\.png"):
        match_labels(keys, str(listed))


def test_a_list_is_that_of_the_images_to_test_on_if_it_names_them_alone(tmp_path: Path) -> None:
    train, val = (open_source(plain_folder(tmp_path / name, *names)) for name, names in (
        ("train", ("a/1.png", "b/2.png")), ("val", ("2024/7.png", "2025/8.png", "a/1.png"))
    ))  # fmt: skip
    listed = tmp_path / "labels.csv"
    for lines, found in (("a/1.png,x", "auto"), ("a/1.png,x\n2024/7.png,y", str(listed)), ("7.png,x", "auto")):
        listed.write_text(f"path,class\n{lines}\n")
        assert labels_for_val(str(listed), train, val) == found
    assert labels_for_val("folders", train, val) == labels_for_val("10%", train, val) == "auto"


def test_a_folder_called_unlabeled_has_no_class(tmp_path: Path) -> None:
    source = open_source(plain_folder(tmp_path, "cats/1.png", "dogs/2.png", "Unlabeled/3.png", "Unlabeled/deep/4.png"))
    assert source.classes == ("cats", "dogs")
    assert {source.key(i): source.label(i) for i in range(4)} == {
        "Unlabeled/3.png": -1, "Unlabeled/deep/4.png": -1, "cats/1.png": 0, "dogs/2.png": 1
    }  # fmt: skip


@pytest.mark.parametrize("wrong", ["some", "all", "0%", "101%", "10", "5ep", ""])
def test_other_words_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"labels is .*CSV file of path,class"):
        relabel(open_source("toy:textures?n=20"), wrong, 0)


def test_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = open_source(plain_folder(tmp_path / "photos", "1.png", "x/2.png"))
    listed = tmp_path / "labels.csv"
    listed.write_text("nobody.png,dog\n")
    with pytest.raises(UserError, match=r"1 of the 1 paths .* match no image, e\.g\. nobody\.png.*e\.g\. 1\.png"):
        relabel(source, str(listed), 0)
    listed.write_text("1.png\n")
    with pytest.raises(UserError, match="names no classes"):
        relabel(source, str(listed), 0)
    with pytest.raises(UserError, match="have no classes"):
        relabel(source, "10%", 0)


def test_a_row_without_its_image_is_counted_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(plain_folder(tmp_path / "photos", "1.png", "x/2.png"))
    listed = tmp_path / "labels.csv"
    listed.write_text("nobody.png,dog\n1.png,cat\nx/2.png,cow\n")
    some = relabel(source, str(listed), 0)
    assert some.classes == ("cat", "cow")
    assert [some.label(i) for i in range(2)] == [0, 1]
    assert "1 of the 3 paths" in (said := capsys.readouterr().err) and "nobody.png" in said


@pytest.mark.parametrize(
    "table",
    [
        "lesion_id,image_id,dx,dx_type,age\nl1,1,mel,histo,80\nl2,2,nv,histo,\n",
        "filename,split,label\nx/1.png,train,mel\nx/2.png,val,nv\n",
        "picture;kind\n1.png;mel\n2.png;nv\n",
        "mel,1.png\nnv,2.png\n",
    ],
)
def test_columns_are_known_by_their_names(tmp_path: Path, table: str) -> None:
    source = open_source(plain_folder(tmp_path / "photos", "x/1.png", "x/2.png", "x/3.png"))
    (tmp_path / "labels.csv").write_text(table)
    some = relabel(source, str(tmp_path / "labels.csv"), 0)
    assert [some.classes[some.label(i)] if some.label(i) >= 0 else "" for i in range(3)] == ["mel", "nv", ""]


SPEC = ViewSpec((ViewGroup("global", 16, (view({"crop.scale": (0.5, 1.0)}),)),), labeled_frac=0.25)


def stream(micro_batches: int = 1, rank: int = 0, world: int = 1) -> Batches:
    source = relabel(open_source("toy:textures?n=60&size=16"), "10%", 0)  # ten labeled images
    return Batches(DecodedImages(source, 16 * 16), SPEC, 5, 16, micro_batches, rank, world)


def test_every_batch_begins_with_labeled_images_that_all_come_round() -> None:
    seen: Counter[int] = Counter()
    for n in range(10):
        batch = stream()[n]
        assert (batch.labels[:4] >= 0).all()
        seen.update(batch.indices[:4].tolist())
    assert len(seen) == 10 and set(seen.values()) == {4}, "40 places for 10 images"


def test_the_unlabeled_stream_visits_the_whole_set() -> None:
    seen = Counter(index for n in range(15) for index in stream()[n].indices[4:].tolist())
    assert len(seen) == 60 and set(seen.values()) == {3}, "180 places for 60 images"


@pytest.mark.parametrize(("micro_batches", "world"), [(2, 1), (1, 2), (2, 2)])
def test_parts_and_ranks_share_them_evenly(micro_batches: int, world: int) -> None:
    whole = stream()[3]
    parts = [
        stream(micro_batches, rank, world)[3 * micro_batches + part]
        for rank in range(world)
        for part in range(micro_batches)
    ]
    count = SPEC.num_labeled(16 // (micro_batches * world))
    assert all((part.labels[:count] >= 0).all() for part in parts)
    assert sorted(i for part in parts for i in part.indices.tolist()) == sorted(whole.indices.tolist())


def test_an_image_gets_new_views_each_time_it_is_visited() -> None:
    batches = stream()
    boxes: dict[int, list[torch.Tensor]] = {}
    for n in range(10):
        batch = batches[n]
        for place, index in enumerate(batch.indices[:4].tolist()):
            boxes.setdefault(index, []).append(batch.draws["global"]["color_jitter"]["factors"][0, place])
    for factors in boxes.values():
        assert len({tuple(each.tolist()) for each in factors}) > 1


def test_a_method_without_labels_gets_the_same_batches_as_ever() -> None:
    plain = ViewSpec(SPEC.groups)
    labeled = relabel(open_source("toy:textures?n=60&size=16"), "10%", 0)
    one, other = (
        Batches(DecodedImages(s, 256), plain, 5, 16)[4] for s in (labeled, open_source("toy:textures?n=60&size=16"))
    )
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.draws["global"]["crop"]["box"], other.draws["global"]["crop"]["box"])
