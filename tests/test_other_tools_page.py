"""The lines of docs/other_tools.md run, each where its tool is installed."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.factories import model_folder, noise_folder, small_vit

from opendino.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the tools
PAGE = Path(__file__).parents[1] / "docs/other_tools.md"
SECTIONS = {
    title.partition(":")[0]: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page starts from: a model, images, their table and a list of some."""
    monkeypatch.chdir(tmp_path)
    noise_folder(Path("photos"), 12, width=40)
    model_folder(Path("RUN"), small_vit())
    commands = re.findall(r"^opendino (?:embed|select) .*?(?= {2}|$)", PAGE.read_text(encoding="utf-8"), re.M)
    assert [main(command.split()[1:]) for command in commands] == [0, 0]
    return tmp_path


def run(section: str) -> dict[str, Any]:
    """Run the snippets of a section; skipped if a package that they import is missing."""
    names: dict[str, Any] = {}
    for snippet in SECTIONS[section]:
        imports = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in imports:
            for name in [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]:
                pytest.importorskip(str(name), reason=f"{name} is not installed")
        exec(snippet, names)
    return names


def test_fiftyone(home: Path) -> None:
    try:
        names = run("FiftyOne")
    except Exception as error:
        if "MongoDB" not in str(error):
            raise
        pytest.skip(f"fiftyone has no database: {error}")
    assert len(names["dataset"]) == 12 and set(names["dataset"].list_brain_runs()) == {"map", "similar"}


def test_embedding_atlas(home: Path) -> None:
    pytest.importorskip("embedding_atlas", reason="embedding-atlas is not installed")
    (command,) = re.findall(r"^opendino (explore .*)$", PAGE.read_text(encoding="utf-8"), re.M)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "opendino", *command.split(), "--port", str(port)])
    try:
        page, last = b"", time.monotonic() + 400
        while not page and server.poll() is None and time.monotonic() < last:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                page = answer.read()
            time.sleep(0.2)
        assert b"<html" in page.lower()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def test_label_studio(home: Path) -> None:
    run("Label Studio")
    tasks = json.loads(Path("tasks.json").read_text())
    images = [Path("/", task["data"]["image"].removeprefix("/data/local-files/?d=")) for task in tasks]
    assert len(images) == 10 and all(image.is_file() for image in images)
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    choices = '<Choices name="c" toName="i"><Choice value="a"/></Choices>'
    interface = sdk.LabelInterface(f'<View><Image name="i" value="$image"/>{choices}</View>')
    assert all(interface.validate_task(task) for task in tasks)


def test_pictures_for_napari_have_the_size_of_the_image(home: Path) -> None:
    Path("masks").mkdir()
    Image.fromarray(np.eye(40, dtype=np.uint8)[:30]).save("masks/0.png")
    exec(SECTIONS["napari"][0], {})
    with Image.open("pca.tif") as picture:
        colors = np.array(picture)
    assert colors.shape == (30, 40, 3) and colors[15, 20].any() and not colors[0, 0].any()
    assert [layer.data.shape[:2] for layer in run("napari")["layers"]] == [(30, 40)] * 3
