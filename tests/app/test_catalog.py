"""What the page may open, and the cache of open models."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.app.conftest import scene, write_run

from opendino.app.catalog import Catalog
from opendino.app.model_cache import ModelCache, encoder_for
from opendino.core.errors import UserError


def test_runs_models_and_tables_are_found_by_the_names_they_were_given(place: Path) -> None:
    catalog = Catalog([str(place / "runs"), str(place / "photos.parquet"), "timm:resnet50"])
    runs = [str(place / "runs" / name) for name in ("first", "second")]
    assert sorted(catalog.runs()) == runs
    assert list(catalog.models()) == [*runs, "timm:resnet50"]
    assert list(catalog.tables()) == [str(place / "photos.parquet")]


def test_a_new_run_turns_up_and_the_newest_comes_first(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/one", 10, 5)
    catalog = Catalog([str(tmp_path / "runs")])
    write_run(tmp_path / "runs/two", 10, 5)
    os.utime(tmp_path / "runs/two/metrics.jsonl", (0, 0))
    assert [Path(name).name for name in catalog.runs()] == ["one", "two"]


def test_models_without_a_classifier_come_first(tmp_path: Path) -> None:
    for name in ("cells", "a-probe"):
        write_run(tmp_path / "runs" / name, 10, 5)
    (tmp_path / "runs/a-probe/classifier.json").write_text("{}")
    assert [Path(name).name for name in Catalog([str(tmp_path / "runs")]).models()] == ["cells", "a-probe"]


def test_a_link_out_of_a_named_folder_is_not_followed(tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere", 10, 5)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/link").symlink_to(tmp_path / "elsewhere")
    assert Catalog([str(tmp_path / "runs")]).runs() == {}


@pytest.mark.parametrize("name", ["nowhere", "secret.txt"])
def test_what_is_neither_run_nor_table_is_refused(place: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        Catalog([str(place / name)])


def test_a_model_is_opened_once_until_its_weights_change(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 10, 5)
    cache = ModelCache(torch.device("cpu"))
    first = cache.model(str(run))
    assert cache.model(str(run)) is first
    os.utime(run / "backbone.safetensors", (1, 1))
    assert cache.model(str(run)) is not first


def test_thumbnails_are_gray_where_an_image_is_gone(place: Path) -> None:
    catalog = Catalog([str(place / "photos.parquet"), str(place / "photos")])
    shown = ModelCache(torch.device("cpu"), catalog.images).table(str(place / "photos.parquet"))
    assert shown.thumbnail("03.png").size == (96, 72)
    assert shown.thumbnail("../secret.txt").getcolors() == [(96 * 96, (0xDD, 0xDD, 0xDD))]


def test_a_table_does_not_decide_what_is_opened(place: Path) -> None:
    shown = ModelCache(torch.device("cpu"), Catalog([str(place / "photos.parquet")]).images).table(
        str(place / "photos.parquet")
    )
    assert shown.images is None
    assert shown.thumbnail("03.png").getcolors() == [(96 * 96, (0xDD, 0xDD, 0xDD))]


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        ("photos", True),
        ("photos/deep", True),
        ("photos.zip", True),
        ("toy:forms?n=1000000000000", False),
        ("photos/../private", False),
        ("private", False),
        ("photos/link", False),
        ("photos/list.txt", False),  # names files anywhere
        ("photos/nothing", False),
        ("hf:somebody/images", False),
        ("wds:https://example.com/{000..127}.tar", False),
        ("", False),
    ],
)
def test_images_are_opened_only_within_what_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, allowed: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos/deep", "private", "runs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos/link").symlink_to(tmp_path / "private")
    (tmp_path / "photos/list.txt").write_text("/etc/passwd\n")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    (tmp_path / "table.parquet").write_bytes(b"")
    catalog = Catalog(["runs", "photos", "photos.zip", "table.parquet"])
    assert (catalog.images(data) is not None) == allowed


def test_a_long_picture_is_seen_small_enough_for_memory(place: Path) -> None:
    model = ModelCache(torch.device("cpu")).model(str(place / "runs/first"))
    image = np.asarray(scene(0, (400, 100)))
    prepared = encoder_for(model, image, 480).prepare(image)  # 480 × 1920 px would be 57,600 patches of 4 px
    assert 3500 < prepared.shape[0] * prepared.shape[1] / 4**2 < 4300


def test_folders_and_archives_of_images_are_told_from_folders_of_runs(place: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "photos.zip").write_bytes(b"PK")
    drawn = write_run(tmp_path / "drawn/run", 10, 5)
    scene(1).save(drawn / "attention.png")  # a picture of a run is no image to train on
    names = [place / "photos", place / "runs", place / "photos.parquet", tmp_path / "new", tmp_path / "photos.zip"]
    catalog = Catalog([*map(str, names), str(tmp_path / "drawn")])
    assert list(catalog.data()) == [str(place / "photos"), str(tmp_path / "photos.zip")]
    assert str(drawn) in catalog.runs()
    scene(1).save(tmp_path / "drawn/map.png")  # and of a table, beside the runs
    catalog = Catalog([str(tmp_path / "drawn")])
    assert list(catalog.data()) == [] and str(drawn) in catalog.runs()


def test_a_csv_beside_the_images_is_read_only_within_what_was_named(tmp_path: Path) -> None:
    (tmp_path / "set/photos").mkdir(parents=True)
    scene(1).save(tmp_path / "set/photos/a.png")
    (tmp_path / "set/labels.csv").write_text("path,device\na.png,x\n")
    photos = str(tmp_path / "set/photos")
    assert Catalog([photos]).metadata(photos) is None
    assert Catalog([str(tmp_path / "set")]).metadata(photos) == str(tmp_path / "set/labels.csv")
