"""compare from the command line: several models on the same images, with labels and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_folder, small_vit

from opendino.cli import main
from opendino.models.conv4 import Conv4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes along and across, and two networks: one that sees them, and one whose features are all the same."""
    place = tmp_path_factory.mktemp("place")
    noise = np.random.default_rng(0)
    for split, num in (("train", 12), ("val", 10)):
        for name in ("along", "across"):
            (place / split / name).mkdir(parents=True)
            for number in range(num):
                stripes = np.tile(np.repeat([0, 200], 2), 4)[noise.integers(4) :][:12] + noise.integers(0, 40, (12, 12))
                pixels = (stripes if name == "along" else stripes.T).astype(np.uint8)
                Image.fromarray(pixels).convert("RGB").resize((24, 24)).save(place / split / name / f"{number}.png")
    torch.manual_seed(0)
    seeing, blind = Conv4(width=8), Conv4(width=8)
    torch.nn.init.zeros_(blind.get_parameter("net.6.weight"))
    model_folder(place / "seeing", seeing, 24)
    model_folder(place / "blind", blind, 24)
    return place


def compare(place: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    names = [str(place / "seeing"), str(place / "blind")]
    assert main(["compare", *names, *words, "--device", "cpu", "--workers", "1", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_with_labels_neighbors_decide_and_baselines_stand_beside(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = compare(place, capsys, "--train", str(place / "train"), "--val", str(place / "val"), "-k", "3")
    assert told["measure"] == "knn" and told["num_images"] == 20
    seeing, blind, untrained, pixels = told["models"].values()
    assert [*told["models"]][2:] == ["untrained network", "8×8 pixels and color histogram"]
    assert seeing["top1"] >= 90 and seeing["num_queries"] == 20 and "change" not in seeing
    assert blind["top1"] <= 60 and blind["change"]["before"] == seeing["top1"]
    assert blind["change"]["after"] == pytest.approx(blind["top1"]) and untrained["change"]["num_images"] == 20


def test_labels_may_come_from_a_list(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{kind}/{number}.png" for kind in ("along", "across") for number in range(12)]
    (place / "labels.csv").write_text("path,class\n" + "".join(f"{name},{name[:2]}\n" for name in names[:20]))
    told = compare(place, capsys, "--train", str(place / "train"), "--labels", str(place / "labels.csv"), "-k", "3")
    assert told["num_images"] < 5 and told["models"][str(place / "seeing")]["majority"] < 100


def test_the_list_also_names_the_images_to_test_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sub-folders of these are dates, and say nothing of the class."""
    days = place / "days"
    lines = [f"{kind}/{number}.png,{kind}" for kind in ("along", "across") for number in range(12)]
    for number in range(20):
        kind, day = ("along", "across")[number % 2], f"day{number // 10}"
        (days / day).mkdir(parents=True, exist_ok=True)
        shutil.copy(place / "val" / kind / f"{number // 2}.png", days / day / f"v{number}.png")
        lines.append(f"{day}/v{number}.png,{kind}")
    (place / "both.csv").write_text("\n".join(["path,class", *lines]))
    words = ["--train", str(place / "train"), "--val", str(days), "--labels", str(place / "both.csv"), "-k", "3"]
    told = compare(place, capsys, *words)
    assert told["models"][str(place / "seeing")]["top1"] >= 90 and told["num_images"] == 20


def test_without_labels_crops_decide(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = compare(place, capsys, "--data", str(place / "val"))
    assert told["measure"] == "crops" and [*told["models"]] == [str(place / "seeing"), str(place / "blind")]
    seeing, blind = told["models"].values()
    assert blind["crop_match"] == pytest.approx(50, abs=1) and seeing["crop_match"] > 54


def test_the_text_says_what_differs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(place / "seeing")] * 2
    assert main(["compare", *names, "--train", str(place / "train"), "--baselines", "False", "--device", "cpu"]) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.startswith("k-NN, k = 10, of 5 images of a fifth of") and "most frequent class: " in heading
    assert "against" not in first and second.endswith("points: may be chance, less than two standard errors")


def test_each_network_has_its_untrained_row_and_runs_say_what_they_are(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(model_folder(tmp_path / "wide", Conv4(width=12), 24))
    (run / "config.yaml").write_text("data: photos\nsteps: 1200\nmethod: {name: lejepa}\n")
    (run / "metrics.jsonl").write_text('{"step": 1200, "loss": 3.0}\n')
    names = [str(place / "seeing"), str(place / "blind"), str(run)]
    data = ["--train", str(place / "train"), "-k", "3", "--device", "cpu", "--workers", "1"]
    assert main(["compare", *names, *data]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    about = [line.split("  ")[0] for line in lines]
    assert about[3:5] == [f"untrained network of {names[0]}", f"untrained network of {names[2]}"] and len(lines) == 6
    assert "lejepa  1,200 steps  not shown to learn  " in lines[2] and "steps" not in lines[0] + lines[3]
    assert len({line.index("%") for line in lines}) == 1, "one column"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "No model was named"),
        (["a"], "either labeled images or images without labels"),
        (["a", "--train", "x", "--data", "y"], "either labeled images or images without labels"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words]) == 2
    assert says in capsys.readouterr().err


def test_images_that_one_model_cannot_read_are_no_comparison(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = model_folder(tmp_path / "gray", small_vit(in_chans=1), 16)
    assert main(["compare", str(place / "seeing"), other, "--data", str(place / "val"), "--device", "cpu"]) == 1
    assert "channel" in capsys.readouterr().err
