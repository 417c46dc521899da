"""The snippets of docs/python.md run from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.factories import noise_folder

import opendino

PAGE = Path(__file__).parents[1] / "docs/python.md"
QUICK: dict[str, Any] = {
    "steps": 2, "batch": 6, "backbone": "conv4", "workers": 0, "threads": 1, "device": "cpu", "precision": "float32",
    "report": False, "val": "labeled", "method": {"out_dim": 16, "hidden_dim": 8, "bottleneck_dim": 4},
}  # fmt: skip


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    noise_folder(Path("photos"), 8)
    for name in ("a", "b"):
        noise_folder(Path("labeled") / name, 6)
    train = opendino.train
    monkeypatch.setattr(opendino, "train", lambda data, minutes: train(data, **QUICK))  # two steps, not 20 minutes
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(snippet, names)
    assert names["vectors"].shape[0] == 1 and len(names["images"]) == 8 and len(names["hits"]) == 5
    assert names["hits"][0].path == "0.png" and len(names["chosen"]) == 3
    assert "k-NN of" in capsys.readouterr().out
