"""How often is the verdict on a run right? Tiny runs, healthy and not, and their k-NN accuracy before and after.

Run: OPENDINO_DATA=DIR python benchmarks/verdicts.py --out FILE.json. A run takes half a minute of one core, one with
the default settings minutes. The packs are folders or .tar.gz files in DIR. FILE.json holds what the verdict uses of
each run's metrics; runs that are in it are not run again, so that a stopped benchmark continues, and thresholds can be
compared without training: --runs 0 only prints. A run of the split "fit" may set thresholds; those of "held out" have
other images or another seed and only test them. The tables go to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import packs
import torch
from PIL import Image
from record import keep, machine

import opendino
from opendino.config import Config
from opendino.core import atomic_write, metrics_log
from opendino.core.errors import UserError
from opendino.data.sources.toy import ToySource
from opendino.engine import verdict
from opendino.engine.collapse_detection import SIGNS
from opendino.engine.interrupt import Interrupted
from opendino.experiments import collapse
from opendino.methods import byol
from opendino.recipes import demo, small
from opendino.views.settings import changed

_TOYS, _PACKS = (
    ("textures", "forms", "colorful", "plates"),
    ("steel96", "eurosat64", "leaf96", "bloodcells", "clothing96"),
)
_FIT = ("textures", "forms", "steel96", "eurosat64")
_BAD_IMAGES = ("constant", "duplicate", "noise", "shuffled")
_RATES = {"useless": 1e-5, "low": 2e-3, "good": 1.2e-2, "high": 5e-2, "too high": 1.0}
_VIEWS = {"global.size": 32, "local.size": 16, "local.number": 2}
_NEVER, _SURELY = 2.0, 8.0  # points of k-NN accuracy above the untrained network
_KEPT = (*verdict.EXAMINED, *SIGNS)


@dataclass(frozen=True)
class Run:
    """One run: `images` is a toy, a pack or one of `_BAD_IMAGES`; `changes` are settings of `config_of`."""

    images: str
    what: str
    seed: int
    held_out: bool
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        """Unique name of the run."""
        return f"{self.images}, {self.what}, seed {self.seed}"


def plan() -> list[Run]:
    """All runs, in random order."""
    runs = []
    for what, lr in _RATES.items():
        runs += [Run(images, f"{what} rate", 0, images not in _FIT, {"lr": lr}) for images in (*_TOYS, *_PACKS)]
    for images, held_out in (("textures", False), ("steel96", True)):
        seed = int(held_out)
        for what, setting in collapse.SETTINGS.items():
            runs.append(Run(images, what, seed, held_out, {"method": setting.changes}))
        for what, setting in collapse.BYOL.items():
            runs.append(Run(images, what, seed, held_out, {"byol": setting.changes}))
    for images in ("textures", "steel96", "leaf96", "clothing96"):
        runs.append(Run(images, "more steps", 2, images not in _FIT, {"steps": 500}))
    for images in ("forms", "plates"):
        runs.append(Run(images, "ViT", 0, images not in _FIT, {"vit": True, "lr": 2e-3}))
        runs.append(Run(images, "few steps", 0, images not in _FIT, {"steps": 12}))
    for images in ("textures", "steel96", "eurosat64", "leaf96", "bloodcells"):
        steps, seeds = (150, range(3, 15)) if images == "textures" else (400, range(3, 7))
        runs += [Run(images, "default settings", seed, True, {"default": True, "steps": steps}) for seed in seeds]
    runs += [Run(images, "good rate", n % 2, n % 2 > 0, {}) for n, images in enumerate(_BAD_IMAGES)]
    random.Random(0).shuffle(runs)  # so that the runs of a stopped benchmark are a fair sample
    return runs


def main() -> None:
    """Train what is missing, judge, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="metrics of the runs; continued if it exists")
    parser.add_argument("--runs", type=int, default=10_000, help="train at most this many")
    parser.add_argument("--only", default="", metavar="WORDS", help="train only runs whose name has these words")
    args = parser.parse_args()
    torch.set_num_threads(1)
    document = json.loads(args.out.read_text()) if args.out.is_file() else {"machine": machine(), "runs": {}}
    missing = [run for run in plan() if run.name not in document["runs"] and args.only in run.name]
    with tempfile.TemporaryDirectory() as home:
        for run in missing[: args.runs]:
            document["runs"][run.name] = _train(run, Path(home))
            atomic_write.write(args.out, json.dumps(document) + "\n")
    splits = {}
    for split in ("fit", "held out"):
        chosen = {name: each for name, each in document["runs"].items() if each["split"] == split and each["knn"]}
        splits[split] = {
            kind: _confusion(chosen, kind == "with classes") for kind in ("without classes", "with classes")
        }
        for kind, table in splits[split].items():
            print(f"\n{split}, {kind}\n{_text(table)}", file=sys.stderr)
    keep({"what": "verdicts of runs by their gain in k-NN accuracy over the untrained network, in points",
          "machine": document["machine"], "splits": splits}, None)  # fmt: skip


def _train(run: Run, home: Path) -> dict[str, Any]:
    """What is kept of a run: its split, k-NN accuracies, seconds, and columns of its metrics."""
    config, began = config_of(run, home), time.process_time()
    out, error = Path(tempfile.mkdtemp(dir=home)) / "run", ""
    try:
        opendino.train(replace(config, out=str(out)))
    except Interrupted:
        raise
    except UserError as stopped:  # too many skipped steps
        error = str(stopped)
    rows = metrics_log.rows(out / "metrics.jsonl")
    knn = [row["knn"] for row in rows if "knn" in row]
    columns: dict[str, list[Any]] = {name: [_rounded(row.get(name)) for row in rows] for name in ("step", *_KEPT)}
    return {
        "split": "held out" if run.held_out else "fit", "steps": config.steps or rows[-1]["step"],
        "knn": knn[-1] if len(knn) > 1 else None,
        "seconds": time.process_time() - began, "error": error,
        "columns": {name: values for name, values in columns.items() if any(each is not None for each in values)},
    }  # fmt: skip


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _rows(kept: dict[str, Any], classes: bool) -> list[dict[str, Any]]:
    """The rows of a run again, with or without what its classes tell."""
    hidden = () if classes else ("knn", "balanced_accuracy", "majority", "num_queries")
    columns = {name: values for name, values in kept["columns"].items() if name not in hidden}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _confusion(runs: dict[str, Any], classes: bool) -> dict[str, dict[str, list[str]]]:
    """Range of the gain in k-NN accuracy → verdict → names of the runs."""
    table: dict[str, dict[str, list[str]]] = {}
    for name, kept in runs.items():
        gain = kept["knn"]["teacher"] - kept["knn"]["untrained"]
        row = f"below {_NEVER:+g}" if gain < _NEVER else f"above {_SURELY:+g}" if gain > _SURELY else "between"
        found = verdict.of_rows(_rows(kept, classes), kept["steps"])
        table.setdefault(row, {}).setdefault("collapsed" if found.collapse else found.name, []).append(name)
    return table


def _text(table: dict[str, dict[str, list[str]]]) -> str:
    names = (verdict.LEARNED, verdict.NOT_SHOWN, "collapsed")
    lines = ["| gain of k-NN | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in (f"below {_NEVER:+g}", "between", f"above {_SURELY:+g}"):
        counts = [str(len(table.get(row, {}).get(name, []))) for name in names]
        lines += [f"| {row} | {' | '.join(counts)} |"]
    wrong = table.get(f"below {_NEVER:+g}", {}).get(verdict.LEARNED, [])
    missed = [
        name for key, each in table.get(f"above {_SURELY:+g}", {}).items() if key != verdict.LEARNED for name in each
    ]
    return "\n".join([*lines, f"called learned below: {'; '.join(wrong)}", f"missed above: {'; '.join(missed)}"])


def config_of(run: Run, home: Path) -> Config:
    """A run of half a minute: the demo's with the paper's method; or one of minutes with the default settings."""
    changes = {"lr": _RATES["good"], "steps": 200, **run.changes}
    data, val = _images(run.images, run.seed, home)
    base = demo.config(data)
    if "default" in changes:  # as without flags on a CPU, but shorter; for textures the demo's settings
        own, labels = (base, "auto") if run.images in _TOYS else (small.config(data), "folders")
        return replace(
            own, val=val, labels=labels, steps=changes["steps"], epochs=None, seed=run.seed, threads=1, workers=0,
            eval_every="100%", checkpoint_every="100%", report=False,
        )  # fmt: skip
    method, views = replace(collapse.METHOD, **changes.get("method", {})), changed(base.views, _VIEWS)
    if "byol" in changes:
        method, views = (
            replace(byol.Config(hidden_dim=256, projection_dim=64), **changes["byol"]),
            changed(byol.VIEWS, {"global.size": 32}),
        )
    vit = {"backbone": "vit/8", "backbone_options": {"embed_dim": 64, "depth": 3, "num_heads": 2}}
    network = vit if changes.get("vit") else {"backbone_options": {"width": 16}}
    return replace(
        base, val=val, labels="auto" if data.startswith("toy:") else "folders", method=method, views=views, batch=64,
        steps=changes["steps"], optim=replace(base.optim, lr=changes["lr"]), seed=run.seed, threads=1, workers=0,
        precision="float32", eval_images=1200, eval_every="100%", checkpoint_every="100%", report=False, **network,
    )  # fmt: skip


def _images(name: str, seed: int, home: Path) -> tuple[str, str]:
    """DATA and val of a run."""
    if name in _TOYS:
        data = f"toy:{name}?size=32&seed={seed}"
        return f"{data}&n=600", f"{data}&n=300&split=val"
    if name in _BAD_IMAGES:
        return _bad_images(name, seed, home / f"{name}-{seed}")
    folder = packs.folder(name, home)
    return str(folder / "train"), str(folder / "val")


def _bad_images(name: str, seed: int, folder: Path) -> tuple[str, str]:
    """Folders of four classes with nothing to learn: one color each, five images many times, noise, shuffled pixels."""
    rng = np.random.default_rng(seed)
    toy = ToySource("textures", n=400, size=32, seed=seed)
    for number in range(400):
        image = rng.integers(0, 256, (32, 32, 3))
        if name == "constant":
            image[:] = rng.integers(0, 256, 3)
        if name in ("duplicate", "shuffled"):
            image = toy.read(number % 5 if name == "duplicate" else number)
        if name == "shuffled":
            image = rng.permutation(image.reshape(-1, 3)).reshape(image.shape)
        path = folder / ("val" if number % 4 == 0 else "train") / f"class{number // 4 % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path)
    return str(folder / "train"), str(folder / "val")


if __name__ == "__main__":
    main()
