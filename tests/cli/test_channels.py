"""Commands on a model of five 16-bit channels: every verb that opens a model reads images as the model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.factories import noise_folder, small_vit

from opendino.cli import main
from opendino.models.load import preprocessing, save_backbone

pytest.importorskip("pyarrow.parquet")
CHANNELS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "five"
    wanted = preprocessing(16, [0.4] * CHANNELS, [0.2] * CHANNELS)
    wanted["images"] = {"names": list("abcde"), "intensity": [100, 3000]}
    save_backbone(folder, {"teacher": small_vit(in_chans=CHANNELS)}, preprocessing=wanted)
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Micrographs `[24 20 5]` of two classes, which differ in the fifth channel alone; and a table of devices."""
    folder, rng, rows = tmp_path_factory.mktemp("images"), np.random.default_rng(0), ["path,class,device"]
    for number in range(40):
        pixels = rng.integers(100, 800, (24, 20, CHANNELS), dtype=np.uint16)
        pixels[..., 4] += 2000 * (number % 2)
        path = folder / "set" / "ab"[number % 2] / f"{number:02d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
        rows.append(f"{path.relative_to(folder / 'set')},{'ab'[number % 2]},{'xy'[number // 2 % 2]}")
    (folder / "meta.csv").write_text("\n".join(rows))
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The JSON that a command prints."""
    code = main([*map(str, words), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    return found


def test_tables_and_search_with_a_sheet(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, query, sheet = tmp_path / "t.parquet", images / "set/b/01.tif", tmp_path / "sheet.png"
    assert run(capsys, "embed", model, images / "set", "--out", table, "--device", "cpu")["written"] == 40
    found = run(capsys, "search", model, table, query, "-k", 3, "--sheet", sheet, "--device", "cpu")
    assert found["results"][0]["path"] == "b/01.tif" and found["results"][0]["score"] > 0.9999
    with Image.open(sheet) as drawn:
        colors = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    assert (colors.max(1).astype(int) - colors.min(1) > 30).mean() > 0.1, "images are shown in colors"
    gray = np.all(colors == np.array([0xDD] * 3), 1).mean()
    assert gray < 0.5, "not as missing ones"


def test_evaluations_use_all_channels(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = images / "set"
    assert run(capsys, "eval", "knn", model, "--train", data, "--k", 3, "--device", "cpu")["top1"] > 90
    assert run(capsys, "eval", "retrieval", model, data, "--device", "cpu")["mAP"] > 60
    found = run(capsys, "eval", "label-free", model, data, "--views", 2, "--workers", 1, "--device", "cpu")
    assert found["num_images"] == 40 and found["alignment"] is not None
    shutil.copytree(data, tmp_path / "set")
    found = run(
        capsys, "eval", "confounders", model, "--train", data, "--val", tmp_path / "set",
        "--labels", images / "meta.csv", "--columns", "device", "--device", "cpu",
    )  # fmt: skip
    assert "device" in json.dumps(found)


def test_a_classifier_predicts_from_all_channels(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = images / "set"
    run(capsys, "eval", "linear", model, "--train", data, "--out", tmp_path / "classifier", "--device", "cpu")
    found = run(capsys, "predict", tmp_path / "classifier", data, "--device", "cpu")["predictions"]
    assert sum(Path(each["path"]).parts[-2] == each["class"] for each in found) >= 38


@pytest.mark.parametrize("kind", ["attention", "pca", "correspondence"])
def test_pictures_have_the_colors_of_the_first_three_channels(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    files = [images / "set/a/00.tif", images / "set/b/01.tif"]
    run(capsys, "visualize", kind, model, *files, "--out", tmp_path / "x.png", "--size-px", 32, "--device", "cpu")
    with Image.open(tmp_path / "x.png") as drawn:
        assert drawn.width > 60


def test_the_channels_to_show_are_chosen(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["visualize", "pca", model, images / "set/b/01.tif", "--size-px", 32, "--device", "cpu"]
    run(capsys, *words, "--out", tmp_path / "x.png", "--show-channels", "e")
    with Image.open(tmp_path / "x.png") as drawn:
        tile = np.asarray(drawn.convert("RGB"))[32:48, 12:28].astype(int)  # below its title
    assert (tile.max(2) == tile.min(2)).all() and tile.mean() > 150, "the bright channel, gray"
    assert main([*map(str, words), "--out", str(tmp_path / "y.png"), "--show-channels", "f"]) == 1
    assert "--show-channels: no channel 'f': it has 5 channels (0 a, 1 b" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "{model}", "{photos}", "--out", "{photos}.csv"),
        ("eval", "label-free", "{model}", "{photos}"),
        ("visualize", "correspondence", "{model}", "{photos}/0.png", "{photos}/1.png"),
    ],
)
def test_photographs_are_refused_with_both_numbers(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    photos = noise_folder(tmp_path / "photos", 3)
    code = main([word.format(model=model, photos=photos) for word in words] + ["--device", "cpu"])
    said = " ".join(capsys.readouterr().err.split())
    assert code == 1 and "it has 3 channels (0 red, 1 green, 2 blue), but the model takes 5 channels (0 a, 1 b" in said


def test_copies_are_made_of_photographs_only(model: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "copy-detection", model, str(images / "set"), "--device", "cpu"]) == 1
    assert "these have 5 channels" in " ".join(capsys.readouterr().err.split())
    words = ["eval", "copy-detection", model, images / "set", "--mode", "duplicates", "--device", "cpu"]
    assert run(capsys, *words)["images"] == 40
