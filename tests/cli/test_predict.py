"""Classifying images with a classifier of `eval linear`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from tests.factories import model_of, small_vit

from opendino.cli import main
from opendino.data.open_source import open_source
from opendino.models.classifier import Classifier, given_labels, save
from opendino.models.feature_tokens import Tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    classifier = Classifier(torch.randn(3, 48), torch.zeros(3), ("ape", "bee, honey", "cat"), Tokens(2))
    given = {str(tmp_path / "photos/3.png"): "bee, honey"}
    save(tmp_path / "classifier", model_of(small_vit(depth=2)), classifier, {"top1": 50.0}, given)
    return tmp_path / "classifier"


def test_a_row_for_every_readable_image(folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos.parent / "found.csv"
    assert main(["predict", str(folder), str(photos), "--out", str(out), "--device", "cpu"]) == 0
    assert "5 images, 1 unusable left out, e.g. broken.jpg" in capsys.readouterr().out
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(photos / f"{number}.png") for number in range(5)]
    again = open_source(out)  # what it found is data, with classes
    assert [again.read(i) for i in range(5)] == [(photos / f"{number}.png").read_bytes() for number in range(5)]
    assert [again.classes[again.label(i)] for i in range(5)] == [row["class"] for row in rows]
    assert {row["class"] for row in rows} <= {"ape", "bee, honey", "cat"}
    assert all(1 / 3 < float(row["probability"]) <= 1 for row in rows)  # the best of three
    marked = [(row["path"], row["labeled"]) for row in rows if row["labeled"]]
    assert marked == [(str(photos / "3.png"), "bee, honey")] == [*given_labels(folder).items()]
    assert main(["predict", str(folder), str(photos), "--device", "cpu", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["written"], fields["skipped"]) == (5, 1)
    assert [row["class"] for row in fields["predictions"]] == [row["class"] for row in rows]
    assert main(["predict", str(folder), str(photos), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == out.read_text()


def test_how_good_the_classifier_is_known_to_be_is_said(
    folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(folder), str(photos), "--out", str(photos.parent / "found.csv"), "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classifier"] is None, "an earlier version did not tell all"
    told = json.loads((folder / "classifier.json").read_text())
    told["extra"] = {"top1": 82.0, "balanced_accuracy": 70.0, "majority": 60.0, "num_queries": 150}
    (folder / "classifier.json").write_text(json.dumps(told))
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(each in said for each in ("82.0% on 150 images (95% interval 75", "balanced 70.0%", "60.0%"))
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classifier"]["majority"] == 60


def spoil(folder: Path, how: str) -> None:
    told = json.loads((folder / "classifier.json").read_text())
    if how == "json":
        (folder / "classifier.json").write_text("{")
    elif how == "weights":
        (folder / "classifier.safetensors").write_bytes(b"cut")
    elif how == "classes":
        (folder / "classifier.json").write_text(json.dumps(told | {"classes": ["one"]}))
    elif how == "tokens":
        (folder / "classifier.json").write_text(json.dumps(told | {"tokens": {"blocks": 1}}))
    else:
        (folder / "classifier.json").unlink()


WRONG = {
    "json": "cannot be read",
    "weights": "cannot be read",
    "classes": "has shapes that do not match",
    "tokens": "takes 48 features and the network gives 24",
    "absent": "holds no classifier.json",
}


@pytest.mark.parametrize("how", WRONG)
def test_a_spoilt_classifier_is_one_line_and_writes_nothing(
    folder: Path, photos: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder, how)
    out = photos.parent / "found.csv"
    assert main(["predict", str(folder), str(photos), "--out", str(out), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and WRONG[how] in captured.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        ([], 2, "FOLDER"),
        (["{folder}"], 2, "No images were named"),
        (["{folder}", "{photos}", "--out", "{photos}/no/such/folder/x.csv"], 1, "There is no folder to write"),
        (["{folder}", "nowhere"], 1, "nowhere does not exist"),
        (["{folder}", "{photos}", "--batch", "0"], 2, "--batch is 0"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, photos: Path, words: list[str], exit_code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", *(word.format(folder=folder, photos=photos) for word in words)]) == exit_code
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and told in captured.err
