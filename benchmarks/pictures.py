"""How long pictures take: attention and PCA of an image, curves of a million steps, the page itself.

Run: python benchmarks/pictures.py [--steps 1000000] [--out FILE.json]. Needs `opendino[app]`. The network is a
ViT-S/16 with random weights; a metrics.jsonl is written in the format of a run. A table goes to stderr; the last line
of stdout is one JSON document. Best of three each; the page once, from `opendino app` to its first answer and, where
playwright and Chromium are installed, from its address to its tabs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import keep, machine

from opendino.app import chart_grid
from opendino.app import curves_tab as page_curves
from opendino.models import load
from opendino.models.build import backbone
from opendino.visualize import attention, curves, pca


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        found = of_images(home) | of_curves(home, args.steps) | of_the_page(home)
    document = {
        "what": "seconds until a picture is there",
        "machine": machine(),
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": {key: round(value, 3) for key, value in found.items()},
    }
    for key, value in found.items():
        print(f"{key:<48}{value:8.2f} s", file=sys.stderr)
    keep(document, args.out)


def of_images(home: Path) -> dict[str, float]:
    """From a loaded model: read, encode, draw, write. The command's own time starts when the model is loaded."""
    images = {"480 x 480": home / "square.jpg", "640 x 480": home / "wide.jpg"}
    for size, path in images.items():
        width, height = map(int, size.split(" x "))
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        noise.resize((width, height), Image.Resampling.BICUBIC).save(path)
    model = home / "vits16"
    torch.manual_seed(0)
    load.save_backbone(model, {"teacher": backbone("vit_small/16")}, preprocessing=load.preprocessing(224))
    found = {}
    for name, module in (("attention", attention), ("pca", pca)):
        for size, path in images.items():
            config: Any = module.Config(model=str(model), images=(str(path),), out=str(home / "out.png"), size_px=480)
            seconds = min(module.show(config).fields["seconds"] for _ in range(3))
            found[f"{name} of ViT-S/16 at {size} px"] = seconds
    return found


def of_curves(home: Path, steps: int) -> dict[str, float]:
    """A run of that many steps: the page's first paint, all of it, and the picture of the command line."""
    run = home / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"data: photos\nsteps: {steps}\n", encoding="utf-8")
    names = (
        "loss", "teacher_entropy", "kl", "entropy_frac", "marginal_frac", "feature_spread", "grad_norm", "ok", "lr",
        "weight_decay", "momentum", "teacher_temp",
    )  # fmt: skip
    with open(run / "metrics.jsonl", "w", encoding="utf-8") as file:
        for first in range(0, steps, 10_000):
            table = np.random.default_rng(first).random((10_000, len(names))).tolist()
            rows = (
                {"step": first + n + 1} | dict(zip(names, values, strict=True)) | {"ok": True}
                for n, values in enumerate(table)
            )
            file.writelines(json.dumps(row) + "\n" for row in rows)
    said = f"{steps:,} steps"

    def first_paint() -> None:
        reader = page_curves.Reader()
        columns = {"run": reader.columns(run)}
        page_curves.table({"run": run}, columns, reader)
        for chart in page_curves.charts({"run": run}, columns, reader):
            chart_grid.options(chart)

    found = {f"page: first paint of {said}": best(first_paint)}
    found[f"show curves of {said}"] = best(
        lambda: curves.show(curves.Config(runs=(str(run),), out=str(home / "c.png")))
    )
    return found


def of_the_page(home: Path) -> dict[str, float]:
    """From the start of the program."""
    said, began = home / "said.txt", time.monotonic()
    words = [sys.executable, "-m", "opendino", "app", str(home / "vits16"), "--port", "0", "--device", "cpu"]
    found = {}
    with open(said, "w", encoding="utf-8") as stderr:
        server = subprocess.Popen(words, stderr=stderr)
    try:
        while not (address := re.search(r"opendino is at (http://[\d.]+:\d+)", said.read_text(encoding="utf-8"))):
            assert server.poll() is None, said.read_text(encoding="utf-8")
            time.sleep(0.02)
        with urllib.request.urlopen(address[1]) as answer:
            assert answer.status == 200
        found["page: from the command to its first answer"] = time.monotonic() - began
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if chromium:
            from playwright.sync_api import sync_playwright

            with sync_playwright() as playwright:
                page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
                began = time.monotonic()
                page.goto(address[1])
                page.get_by_role("tab", name="Curves").wait_for()
                found["page: from the address to its tabs, in Chromium"] = time.monotonic() - began
    finally:
        server.terminate()
        server.wait(60)
    return found


def best(function: Callable[[], Any]) -> float:
    """Seconds of the fastest of three."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        function()
        times.append(time.monotonic() - began)
    return min(times)


if __name__ == "__main__":
    main()
