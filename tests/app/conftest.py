"""Runs, a table and photographs for the page, made once."""

from __future__ import annotations

import json
import math
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.app.browser import CHROMIUM, Visit
from tests.factories import model_folder, small_vit

from opendino import config as configs
from opendino.cli import main
from opendino.recipes import demo


def write_run(folder: Path, steps: int, done: int, seed: int = 0) -> Path:
    """A run as `opendino train` leaves it, with weights by chance and curves made up."""
    folder.mkdir(parents=True)
    model_folder(folder, small_vit("vit/4", seed, image_px=32, embed_dim=48, depth=2, num_heads=3), 32)
    config = replace(demo.config(), steps=steps, out=str(folder))
    (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        file.writelines(row(step, steps, seed) for step in range(1, done + 1))
    return folder


def row(step: int, steps: int, seed: int = 0) -> str:
    """Lines of metrics.jsonl for one step."""
    part, noise = step / steps, 0.1 * math.sin(12.9898 * (step + seed) ** 1.5)
    numbers = {
        "step": step, "ok": 1.0, "loss": 1 + 4.5 * math.exp(-3 * part) + noise + 0.2 * seed,
        "teacher_entropy": 3 - 2 * part + noise, "kl": 0.4 + math.exp(-2 * part) + noise, "entropy_frac": 0.5,
        "marginal_frac": 0.9, "feature_spread": 0.6 + 0.2 * part, "momentum": 0.95 + 0.04 * part,
    }  # fmt: skip
    lines = [numbers]
    if step % max(1, steps // 8) == 0:
        knn = {"teacher": 30 + 50 * part**0.5, "student": 28 + 48 * part**0.5, "untrained": 31.0, "pixels": 18.0}
        lines.append({"step": step, "knn": knn, "effective_rank": 5 + 20 * part})
    return "".join(json.dumps(each) + "\n" for each in lines)


def scene(number: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A picture of a disc on a slope of colors; another number, another place and hue."""
    height, width = size[1], size[0]
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([40 + x * 120 // width, 70 + y * 90 // height, np.full_like(x, 60 + 20 * number % 150)], -1)
    disc = (x - width * (0.3 + 0.05 * (number % 8))) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2
    pixels[disc] = (230, 60 + 25 * number % 190, 40)
    return Image.fromarray(pixels.astype(np.uint8))


def gigapixel() -> bytes:
    """A PNG of 32,000 by 32,000 pixels in a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 32_000, 32_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(4001 * 32_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/first, runs/second, photos/*.png, photos.parquet of first's vectors, and secret.txt beside."""
    folder = tmp_path_factory.mktemp("page")
    write_run(folder / "runs/first", 800, 800)
    write_run(folder / "runs/second", 800, 430, seed=1)
    (folder / "photos").mkdir()
    for number in range(24):
        scene(number).save(folder / f"photos/{number:02d}.png")
    (folder / "secret.txt").write_text("do not tell", encoding="utf-8")
    words = ["embed", str(folder / "runs/first"), str(folder / "photos"), "--out", str(folder / "photos.parquet")]
    assert main([*words, "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A page on runs and a table, as the command line serves it."""
    (place / "more").mkdir()
    scene(30, (40, 40)).save(place / "more/30.png")
    words = ["app", "photos", "more", "runs", "photos.parquet", "--port", "0", "--device", "cpu"]
    command = [sys.executable, "-m", "opendino", *words]
    said = place / "server.txt"  # a file and not a pipe, which would fill up and hold the server
    with open(said, "w", encoding="utf-8") as stderr:
        server = subprocess.Popen(command, cwd=place, stderr=stderr)
    while not (found := re.search(r"opendino is at (http://127\.0\.0\.1:\d+)", said.read_text(encoding="utf-8"))):
        assert server.poll() is None, said.read_text(encoding="utf-8")
        time.sleep(0.1)
    yield found[1]
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    assert "internal error" not in said.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address)
    yield visit
    assert visit.elsewhere == []
    visit.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    scene(5, (240, 180)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"
