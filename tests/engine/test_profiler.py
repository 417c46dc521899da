"""The profiler's table and trace of a few steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from opendino.cli import main
from opendino.engine.profiler import SECTIONS, Profiler


def test_a_profiled_run_says_where_its_time_went(tmp_path: Path) -> None:
    words = [
        "train",
        "toy:textures?n=32&size=16",
        "--recipe",
        "demo",
        "--backbone-options",
        "width",
        "4",
        "--steps",
        "12",
    ]
    words += [
        "--batch",
        "8",
        "--workers",
        "0",
        "--cache",
        "off",
        "--views.local.number",
        "1",
        "--eval-images",
        "0",
        "--profile",
    ]
    assert main([*words, "--out", str(tmp_path / "run"), "--json"]) == 0
    text = (tmp_path / "run" / "profile.txt").read_text()
    lines = text.split("\n\n")[0].splitlines()
    assert [line[:18].strip() for line in lines[1:-1]] == list(SECTIONS)
    shares = [int(line.split("%")[0].split()[-1]) for line in lines[1:-1]]
    assert 80 <= sum(shares) <= 103  # the rest is the loop's own
    assert "aten::convolution" in text
    with gzip.open(tmp_path / "run" / "profile.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("backward") == 5


def test_without_a_folder_it_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Profiler(None, torch.device("cpu")) as profiler:
        for _ in range(20):
            profiler.step()
    assert not list(tmp_path.iterdir())
