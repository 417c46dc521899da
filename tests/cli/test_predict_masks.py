"""Masks by a segmentation head: names, resuming, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_of, noise_image, small_vit

from opendino.cli import main
from opendino.cli.predict_masks import mask_names
from opendino.models.segmentation_head import SegmentationHead, save


@pytest.fixture
def head(tmp_path: Path) -> Path:
    head = SegmentationHead(torch.randn(2, 24), torch.zeros(2), (0, 7), 1, names=("sky", "bird"))
    save(tmp_path / "head", model_of(small_vit()), head, {})
    return tmp_path / "head"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "day").mkdir(parents=True)
    noise_image(70, 33).save(tmp_path / "photos" / "a.jpg")
    noise_image(5, 9, seed=1).save(tmp_path / "photos" / "day" / "b.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "photos"


def predict(head: Path, images: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["predict", str(head), str(images), "--out", str(out), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_mask_for_every_readable_image(
    head: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    found = predict(head, images, out, capsys)
    assert (found["written"], found["existing"], found["skipped"]) == (2, 0, 1)
    for name, size in (("a.png", (70, 33)), ("day/b.png", (5, 9))):
        with Image.open(out / name) as mask:
            assert mask.mode == "P" and mask.size == size
            assert set(np.unique(np.array(mask)).tolist()) <= {0, 7}
    assert sum(found["classes"].values()) == pytest.approx(100)

    (out / "a.png").unlink()  # as after an interruption: only what is missing is made again
    before = (out / "day" / "b.png").stat().st_mtime_ns
    again = predict(head, images, out, capsys)
    assert (again["written"], again["existing"]) == (1, 1)
    assert (out / "a.png").is_file() and (out / "day" / "b.png").stat().st_mtime_ns == before
    assert main(["predict", str(head), str(images), "--out", str(out), "--device", "cpu"]) == 0
    assert "0 masks → " in (said := capsys.readouterr().out) and "2 were there already" in said


def test_polygons_are_written_beside_the_masks_also_later(
    head: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    predict(head, images, out, capsys)
    before = (out / "a.png").read_bytes()
    words = ["predict", str(head), str(images), "--out", str(out), "--device", "cpu", "--json", "--polygons"]
    assert main(words) == 0 and json.loads(capsys.readouterr().out)["written"] == 2
    found = json.loads((out / "day/b.geojson").read_text())["features"]
    assert sum(each["properties"]["pixels"] for each in found) == 5 * 9 and (out / "a.png").read_bytes() == before
    assert all(0.5 <= each["properties"]["mean_probability"] <= 1 for each in found)  # the better one of two
    called = {(each["properties"]["class"], each["properties"]["name"]) for each in found}
    assert called <= {(0, "sky"), (7, "bird")}
    assert json.loads((out / "masks.json").read_text())["names"] == ["sky", "bird"]
    assert main(words) == 0 and json.loads(capsys.readouterr().out)["existing"] == 2


def test_masks_of_something_else_are_not_mixed_or_overwritten(
    head: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mine = tmp_path / "masks", tmp_path / "mine"
    predict(head, images, out, capsys)
    mine.mkdir()
    Image.new("L", (4, 4)).save(mine / "a.png")
    other = tmp_path / "other"
    save(other, model_of(small_vit()), SegmentationHead(torch.ones(2, 24), torch.zeros(2), (0, 7), 1), {})
    for folder, data, place, told in (
        (other, images, out, "has masks of another head"),
        (head, images / "day", out, "has masks of"),
        (head, images, mine, "has files that are not masks of this command"),
    ):
        assert main(["predict", str(folder), str(data), "--out", str(place), "--device", "cpu"]) == 1
        said = capsys.readouterr().err
        assert told in said and "Choose another --out" in said and len(said.splitlines()) == 1
    assert main(["predict", str(head), str(images)]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_names_of_masks() -> None:
    keys = ["a.jpg", "b/a.jpg", "c.png", "c.tif", "/etc/x.png", "../y.png", "well.B2", "z.tar/0.jpg"]
    wanted = ["a.png", "b/a.png", "c.png.png", "c.tif.png", "etc/x.png", "y.png", "well.B2.png", "z.tar/0.png"]
    assert mask_names(keys) == wanted
    same = mask_names(["x.jpg", "../x.jpg", "/b/x.jpg", "b/x.jpg", "a.jpg", "a.tif", "a.jpg.png"])
    assert len(set(same)) == 7 and all(name.endswith(".png") for name in same)
