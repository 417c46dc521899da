"""`opendino serve` as a process: from its address to its end by SIGTERM; and refusals before it starts."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tests.factories import model_folder, noise_folder, small_vit

from opendino.cli import main

pytest.importorskip("fastapi", reason="FastAPI is not installed")


@pytest.mark.slow
def test_a_service_answers_until_it_is_stopped(tmp_path: Path) -> None:
    name, photos = model_folder(tmp_path / "model", small_vit()), noise_folder(tmp_path / "photos", 1)
    said = tmp_path / "said.txt"
    with open(said, "w", encoding="utf-8") as stderr:
        command = [sys.executable, "-m", "opendino", "serve", name, "--port", "0", "--device", "cpu"]
        server = subprocess.Popen(command, stderr=stderr)
    try:
        while not (found := re.search(r"at (http://127\.0\.0\.1:\d+),", said.read_text(encoding="utf-8"))):
            assert server.poll() is None, said.read_text(encoding="utf-8")
            time.sleep(0.1)
        request = urllib.request.Request(
            f"{found[1]}/embed", (photos / "0.png").read_bytes(), {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert len(json.load(answer)["vector"]) == 24
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
    assert "Traceback" not in said.read_text(encoding="utf-8")


def test_a_port_in_use_and_a_table_of_another_model_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (model_folder(tmp_path / str(seed), small_vit(seed=seed)) for seed in (0, 1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", one, "--port", str(taken.getsockname()[1]), "--device", "cpu"]) == 1
    assert "Choose another --port" in capsys.readouterr().err
    table = str(tmp_path / "photos.parquet")
    assert main(["embed", other, str(noise_folder(tmp_path / "photos", 2)), "--out", table]) == 0
    capsys.readouterr()
    assert main(["serve", one, "--table", table, "--port", "0", "--device", "cpu"]) == 1
    assert f"holds vectors of {other}, not of {one}" in capsys.readouterr().err
