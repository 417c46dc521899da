"""The commands of docs/camera.md and docs/micrographs.md run in their order."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.factories import noise_folder

from opendino.cli import main

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"```\n(.*?)```", re.DOTALL)
QUICK = (
    "--steps 2 --batch 6 --backbone conv4 --workers 0 --threads 1 --device cpu --precision float32 --report False "
    "--method.out-dim 16 --method.hidden-dim 8 --method.bottleneck-dim 4 --eval-images 8"
)
pytestmark = pytest.mark.slow


def run(page: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the commands of a page that end by themselves, with a short training."""
    lines = [line for block in FENCE.findall((DOCS / page).read_text(encoding="utf-8")) for line in block.splitlines()]
    commands = [re.sub(r" --watch \d+", "", line) for line in lines if re.match(r"opendino (?!serve)", line)]
    for command in commands:
        words = shlex.split(re.sub(r"--minutes \d+", QUICK, command))[1:]
        assert main(words) == 0, (command, capsys.readouterr().err)
    return commands


def test_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    folders = ("camera/2026-06", "camera/2026-07", "labeled/good", "labeled/scratch", "checked/good", "checked/scratch")
    for number, folder in enumerate(folders):
        noise_folder(Path(folder), 12, width=32 + number)  # other pixels for another width
    assert len(run("camera.md", capsys)) == 12
    made = ("odd.png", "odd.csv", "classes.csv", "to-label.txt", "all.lance", "runs/camera-2/backbone.safetensors")
    assert [name for name in made if not Path(name).exists()] == []


def test_micrographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    rng, rows = np.random.default_rng(0), [["path", "plate"]]
    for folder in ("cells/plate1", "cells/plate2", "labeled/a", "labeled/b", "checked/a", "checked/b"):
        Path(folder).mkdir(parents=True)
        for number in range(40 if folder.startswith("cells") else 8):
            path = Path(folder, f"a{number + 10 * folder.startswith('checked'):02}.tif")
            pixels = rng.integers(0, 4000, (5, 36, 36), np.uint16)
            tifffile.imwrite(path, pixels, photometric="minisblack")
            rows.append([f"{path.parent.name}/{path.name}", f"plate{number % 2}"])
    with open("plates.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    assert len(run("micrographs.md", capsys)) == 10
    assert [name for name in ("crops.png", "map.png", "odd.png", "pca.png") if not Path(name).exists()] == []
