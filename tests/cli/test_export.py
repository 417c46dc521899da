"""The verb: flags by the software exported to, one JSON document, one line where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.factories import model_folder, small_vit

from opendino.cli import main
from opendino.models.load import load


@pytest.fixture
def model(tmp_path: Path) -> str:
    return model_folder(tmp_path / "model", small_vit("vit/4", num_heads=3))


def test_one_json_document(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["export", model, "--to", "opendino", "--out", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"path": out, "max_difference": 0.0, "to": "opendino", "fingerprint": load(model).fingerprint}


def test_people_read_how_large_the_difference_is(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", model, "--to=timm", "--out", str(tmp_path / "out")]) == 0
    assert "features differ by" in capsys.readouterr().out
    assert main(["export", model, "--to", "torch-export", "--out", str(tmp_path / "out.pt2")]) == 0
    told = capsys.readouterr().out
    assert "values 0 to 1 minus mean 0.485 0.456 0.406, divided by std" in told and "the middle 16 px" in told


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--out", "x"], "export lacks --to"),
        (["--to", "onxx", "--out", "x"], "Did you mean onnx"),
        (["--to", "timm", "--out", "x", "--attention"], "Unknown option '--attention'"),
        (["--to", "onnx", "--out", "x.onnx", "--opset", "3"], "--opset is 3"),
        (["--to", "timm", "--out", "x", "--which", "pupil"], "--which is 'pupil'. Choose from student, teacher"),
        (["--to", "timm"], "out"),
    ],
)
def test_wrong_usage_is_one_line(
    model: str, args: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", model, *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and said in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_help_of_each_says_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert "huggingface" in capsys.readouterr().out
    assert main(["export", "--to", "onnx", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--attention" in told and "--which" in told and "must not exist" in told
