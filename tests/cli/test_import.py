"""`opendino import`: what it prints, and that it writes a whole model or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from opendino.cli import main
from opendino.models.build import backbone
from opendino.models.load import load


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = backbone("vit_tiny/16", image_px=32).state_dict()
    networks = {"student": {f"module.backbone.{key}": value for key, value in state.items()}}
    networks["teacher"] = {f"backbone.{key}": value + 1 for key, value in state.items()}
    torch.save({**networks, "epoch": 7}, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


def test_the_text_names_checkpoint_and_next_command(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = checkpoint.with_name("model")
    assert main(["import", str(checkpoint), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "backbone of vit_tiny/16 with the keys of DINO v1, for 32 px, 12 blocks of 3 heads, after 7 epochs",
        f"teacher and student, 5.5 million parameters each, feature dimension 192 → {out}",
        f"Try it: opendino eval knn {out} --train DIR --val DIR",
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "backbone.json", "backbone.safetensors", "backbone_student.safetensors",
    ]  # fmt: skip
    bias = [load(out, which).backbone.state_dict()["norm.bias"] for which in ("teacher", "student")]
    assert torch.equal(bias[0], bias[1] + 1)


def test_scripts_get_one_document(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = checkpoint.with_name("new") / "model"
    assert main(["import", str(checkpoint), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"path", "recognized", "networks", "fingerprint"}
    assert (found["path"], found["networks"]) == (str(out), ["teacher", "student"])
    assert found["fingerprint"] == load(out).fingerprint


def test_nothing_is_overwritten_or_half_written(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = checkpoint.with_name("model")
    before = sorted(checkpoint.parent.iterdir())
    torch.save({"student": {"a": torch.ones(1)}}, checkpoint.with_name("other.pth"))
    assert main(["import", str(checkpoint.with_name("other.pth")), "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert (
        told.startswith("opendino: ")
        and told.count("\n") == 1
        and "has no known format" in told
        and "keys are a" in told
    )
    checkpoint.with_name("other.pth").unlink()
    assert sorted(checkpoint.parent.iterdir()) == before
    out.mkdir()
    assert main(["import", str(checkpoint), "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err and not list(out.iterdir())
    assert main(["import", str(checkpoint), "--out", str(checkpoint / "model")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "opendino import lacks CHECKPOINT"),
        (["x.pth"], "--out"),
        (["x.pth", "--out", "m", "--num-heads", "0"], "--num-heads is 0"),
        (["x.pth", "--out", "m", "--architektur", "x"], "Did you mean --architecture"),
    ],
)
def test_wrong_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", *words]) == 2
    assert said in capsys.readouterr().err
