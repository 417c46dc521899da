"""A method in a package of its own, examples/plugin: built, installed, listed, trained with, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

PLUGIN = Path(__file__).parents[1] / "examples/plugin"
TRAIN = [
    "train", "toy:textures?n=24&size=32", "--method", "simsiam", "--backbone", "conv4", "--steps", "8", "--batch", "8",
    "--workers", "0", "--threads", "1", "--device", "cpu", "--eval-images", "16", "--precision", "float32",
    "--report", "False", "--checkpoint-every", "2", "--json",
]  # fmt: skip
KILLING = """
import os, signal, sys
from opendino.engine import run_monitor
step = run_monitor.RunMonitor.step
def killing(self, done, *rest):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, done, *rest)
run_monitor.RunMonitor.step = killing
from opendino.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip would leave it in site-packages."""
    home = tmp_path_factory.mktemp("plugin")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(home / "dist")]
    subprocess.run(build, cwd=PLUGIN, check=True, capture_output=True)
    (wheel,) = (home / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "site")
    return home / "site"


def opendino(*words: str, path: Path | None = None, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a new process, with `path` among the installed packages."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, *(["-c", code] if code else ["-m", "opendino"]), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def tensors(run: Path) -> dict[str, Any]:
    return load_file(run / "checkpoints/step_00000008/tensors.safetensors")


@pytest.mark.slow
def test_a_plugin_is_listed_trained_killed_and_resumed(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(opendino("list", "methods", "--json", path=installed).stdout)["methods"]
    assert listed["simsiam"] == "from opendino-simsiam 0.1" and "dino" in listed
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = json.loads(opendino(*TRAIN, "--out", str(whole), path=installed).stdout)
    assert result["steps"] == 8 and next(iter(result["knn"])) == "student"
    text = (whole / "config.yaml").read_text()
    assert "name: simsiam" in text and "from: opendino-simsiam 0.1" in text
    assert opendino(*TRAIN, "--out", str(killed), path=installed, code=KILLING).returncode == -signal.SIGKILL
    ended = opendino("resume", str(killed), "--json", path=installed)
    assert ended.returncode == 0, ended.stderr
    one, other = tensors(whole), tensors(killed)
    assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
    without = opendino("resume", str(killed))
    assert without.returncode == 1 and len(without.stderr.splitlines()) == 1
    assert "came from opendino-simsiam 0.1, which is not here. Install opendino-simsiam 0.1" in without.stderr
    unknown = opendino(*TRAIN, "--out", str(tmp_path / "x"))
    assert unknown.returncode == 2 and "Unknown method 'simsiam'" in json.loads(unknown.stdout)["error"]["message"]


def test_a_plugin_that_cannot_be_imported_says_which(installed: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    metadata = site / "broken-0.2.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.2\n")
    (metadata / "entry_points.txt").write_text("[opendino.methods]\nbroken = nowhere_to_be_found\n")
    words = [{"simsiam": "broken"}.get(word, word) for word in TRAIN if word != "--json"]
    ended = opendino(*words, "--out", str(tmp_path / "x"), path=site)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1
    assert "broken 0.2 cannot be loaded: ModuleNotFoundError" in ended.stderr
