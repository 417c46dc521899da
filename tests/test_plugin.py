"""A method and an augmentation in a package of its own, examples/plugin: listed, trained with, killed, resumed."""

from __future__ import annotations

import json
import os
import re
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
    "--report", "False", "--checkpoint-every", "2", "--views.all.shading.p", "0.5", "--json",
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


def messages(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on stderr without the one that says that PyTorch is imported."""
    return [line for line in ended.stderr.splitlines() if "importing PyTorch" not in line]


def tensors(run: Path) -> dict[str, Any]:
    return load_file(run / "checkpoints/step_00000008/tensors.safetensors")


@pytest.mark.slow
def test_a_plugin_is_listed_trained_killed_and_resumed(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(opendino("list", "methods", "--json", path=installed).stdout)["methods"]
    assert listed["simsiam"] == "from opendino-simsiam 0.1" and "dino" in listed
    listed = json.loads(opendino("list", "augmentations", "--json", path=installed).stdout)["augmentations"]
    assert listed["shading"] == "from opendino-simsiam 0.1" and "gamma" in listed
    crops = ["visualize", "crops", TRAIN[1], "--views.all.shading.p", "1", "--stages", "--out", str(tmp_path / "c.png")]
    (first, _) = json.loads(opendino(*crops, "--json", path=installed).stdout)["images"]
    assert all("shading" in view["augmentations"] for view in first["views"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = json.loads(opendino(*TRAIN, "--out", str(whole), path=installed).stdout)
    assert result["steps"] == 8 and next(iter(result["knn"])) == "student"
    text = (whole / "config.yaml").read_text()
    assert "name: simsiam" in text and "from: opendino-simsiam 0.1" in text
    assert re.search(r"shading:\n *p: 0\.5\n *strength: 0\.5\n *from: opendino-simsiam 0\.1\n", text)
    assert opendino(*TRAIN, "--out", str(killed), path=installed, code=KILLING).returncode == -signal.SIGKILL
    ended = opendino("resume", str(killed), "--json", path=installed)
    assert ended.returncode == 0, ended.stderr
    one, other = tensors(whole), tensors(killed)
    assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
    without = opendino("resume", str(killed))
    assert without.returncode == 1 and len(messages(without)) == 1
    assert "came from opendino-simsiam 0.1, which is not here. Install opendino-simsiam 0.1" in without.stderr
    named = [word for word in TRAIN if "shading" not in word and word != "0.5"]
    unknown = opendino(*named, "--out", str(tmp_path / "x"))
    assert unknown.returncode == 2 and "Unknown method 'simsiam'" in json.loads(unknown.stdout)["error"]["message"]


BROKEN = {
    "methods": ("", "broken 0.2 cannot be loaded: ModuleNotFoundError"),
    "augmentations": ("ORDER = 1", "The augmentation 'broken' from broken 0.2 has no Config"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_plugin_that_does_not_work_says_which(tmp_path: Path, kind: str) -> None:
    code, message = BROKEN[kind]
    site = tmp_path / "site"
    metadata = site / "broken-0.2.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.2\n")
    (metadata / "entry_points.txt").write_text(f"[opendino.{kind}]\nbroken = broken_plugin\n")
    if code:
        (site / "broken_plugin.py").write_text(code)
    method = "dino" if kind == "augmentations" else "broken"
    words = [{"simsiam": method}.get(word, word) for word in TRAIN if word != "--json" and "shading" not in word]
    ended = opendino(*[word for word in words if word != "0.5"], "--out", str(tmp_path / "x"), path=site)
    assert ended.returncode == 1 and len(messages(ended)) == 1
    assert message in ended.stderr


def test_the_page_about_it_has_its_code_in_order() -> None:
    page = (PLUGIN.parents[1] / "docs/own_method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    text = [line for block in blocks for line in block.splitlines() if line.strip()]
    for name, most in (("opendino_simsiam", 60), ("opendino_shading", 60)):
        lines = [line for line in (PLUGIN / f"{name}.py").read_text(encoding="utf-8").splitlines() if line.strip()]
        assert text[: len(lines)] == lines and len(lines) < most, name
        del text[: len(lines)]
    assert not text
