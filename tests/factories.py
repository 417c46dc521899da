"""Small images, networks, model folders and runs: what many tests need and how to compare two runs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from opendino.config import Config
from opendino.core.contracts import Backbone, Source
from opendino.data.sources.toy import ToySource
from opendino.methods import dino
from opendino.models.build import backbone
from opendino.models.load import Model, preprocessing, save_backbone
from opendino.recipes import demo
from opendino.views.settings import changed


def noise_image(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """An RGB image of random pixels, the same for the same seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def noise_folder(folder: Path, count: int, width: int = 40, height: int = 30) -> Path:
    """A folder of different images of random pixels: 0.png, 1.png …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise_image(width, height, seed=number).save(folder / f"{number}.png")
    return folder


def plain_image(number: int = 0, width: int = 20, height: int = 20) -> Image.Image:
    """An RGB image of one color, a different one for each number below 256."""
    return Image.new("RGB", (width, height), (number, 99, 255 - number))


def plain_folder(folder: Path, *names: str) -> Path:
    """A folder with an image of one color, each its own, under each of these names (with "/": in subfolders)."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        plain_image(number).save(folder / name)
    return folder


def place_files(root: Path, *names: str) -> Path:
    """Write small images at these paths, or text where the suffix is not one of images."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".csv", ".DS_Store", ".heic", ""):
            path.write_text("text")
        else:
            Image.new("RGB", (4, 3), (len(name), 0, 0)).save(path, "PNG")
    return root


def keys(source: Source) -> list[str]:
    """The keys of a source in order."""
    return [source.key(index) for index in range(len(source))]


def pattern_image(number: int, side: int = 48) -> Image.Image:
    """An RGB image of the toy source "colorful": ten patterns in turn, each drawn a little differently."""
    return Image.fromarray(ToySource("colorful", n=200, size=side).read(number))


def small_vit(name: str = "vit/8", seed: int = 0, **options: Any) -> Backbone:
    """A vision transformer for 16 px with D = 24, one block and two heads, unless the options say otherwise."""
    torch.manual_seed(seed)
    return backbone(name, **{"image_px": 16, "embed_dim": 24, "depth": 1, "num_heads": 2, **options})


def model_of(network: Backbone, image_px: int = 16) -> Model:
    """A network as a loaded model."""
    return Model(network, preprocessing(image_px), {})


def model_folder(folder: Path, teacher: Backbone, image_px: int = 16, **more: Any) -> str:
    """Write a model folder (`more`: a student, arguments of `save_backbone`) and return its path as text."""
    networks = {"teacher": teacher, **({"student": more.pop("student")} if "student" in more else {})}
    save_backbone(folder, networks, preprocessing=preprocessing(image_px), **more)
    return str(folder)


def dino_run(out: Path, data: str = "toy:textures?n=48&size=32", **changes: Any) -> Config:
    """Ten steps of DINO on a small vision transformer, with everything a run has: drop path, evaluations, schedules."""
    recipe = demo.config(data)
    method, views = changes.pop("method", DINO), changed(recipe.views, {"local.number": 2})
    if not isinstance(method, dino.Config):
        views = changed(sys.modules[type(method).__module__].VIEWS, {"global.size": 32})
    base = replace(
        recipe, method=method, views=views, val="toy:textures?n=20&split=val", out=str(out), backbone="vit/8",
        drop_path=0.2, steps=10, batch=16, workers=0, backbone_options={"embed_dim": 24, "depth": 2, "num_heads": 2},
        precision="float32", eval_every="5", checkpoint_every="4", eval_images=40, knn_k=3, report=False,
    )  # fmt: skip
    return replace(base, **changes)


def checkpoint_tensors(run: Path, step: int) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors")


def metric_rows(run: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed_lines(run: Path) -> list[str]:
    """The lines of metrics.jsonl except those about speed, as they are written."""
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"images_per_second"' not in line]


def difference(one: Path, other: Path, step: int) -> str | None:
    """What differs between two runs, bit for bit (checkpoints of this step, metrics); None if nothing does."""
    ours, theirs = checkpoint_tensors(one, step), checkpoint_tensors(other, step)
    if ours.keys() != theirs.keys():
        return "the names of the tensors differ"
    if differing := [key for key, value in ours.items() if not torch.equal(value, theirs[key])]:
        return f"{', '.join(differing)} differ"
    if untimed_lines(one) != untimed_lines(other):
        return "metrics.jsonl differs"
    states = [json.loads((run / "checkpoints" / f"step_{step:08d}" / "state.json").read_text()) for run in (one, other)]
    return None if states[0] == states[1] else "state.json differs"


FAST: dict[str, Any] = {
    "steps": 6, "batch": 8, "workers": 0, "threads": 1, "device": "cpu", "eval_images": 16, "precision": "float32",
    "report": False, "checkpoint_every": "2", "optim": {"lr_warmup": "0"}, "views": {"global": {"size": 32}},
}  # fmt: skip
"""Arguments of `opendino.train` for a run of seconds."""
DINO = dino.Config(
    out_dim=32, hidden_dim=16, bottleneck_dim=8, freeze_last_layer="2", teacher_temp=0.04, momentum=0.95,
    momentum_end=0.99,
)  # fmt: skip
"""DINO of the paper, small: without batch norm and Sinkhorn-Knopp, which depend on the size of micro-batches."""
SMALL_DINO = {"out_dim": 16, "hidden_dim": 8, "bottleneck_dim": 4}
