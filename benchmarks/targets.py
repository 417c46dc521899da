"""Training to published figures on Imagenette: minutes taken and k-NN reached, on one GPU.

Run: python benchmarks/targets.py IMAGENETTE [--only dino_resnet18 ...] [--seed 0] [--epochs 200 | --minutes M]
[--out FILE.json].
IMAGENETTE has train/CLASS/* and val/CLASS/*. Published figures and their settings (batch 256, 200 epochs, one seed):

- dino_resnet18: DINO 0.873 (k = 200, T = 0.1) in 75 minutes, byol_resnet18: BYOL 0.705 in 54 minutes; ResNet-18 on
  128 px, lightly's benchmarks, one A6000, float32, PIL crops.
- dino_vits16: DINO 0.838 (k = 20), ViT-S/16 on 224 px, stable-pretraining, one A100.

Our settings differ from theirs where our defaults do (teacher's momentum rises to 1, gradients are clipped). The
last line of stdout is one JSON document. `--steps 2` tests the program on any machine; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import keep, machine, weights

import opendino
from opendino.config import Config
from opendino.engine import optim
from opendino.evals import knn
from opendino.methods import byol, dino
from opendino.views.settings import changed

SGD = optim.Config(name="sgd", lr=0.06, min_lr=0.0, lr_warmup="0ep", weight_decay=5e-4, weight_decay_end=5e-4, clip=3.0)
RESNET18 = Config(data="", backbone="resnet18", drop_path=0.0, batch=256, optim=SGD, eval_every="10%")

TARGETS: dict[str, tuple[float, int, float, Config]] = {  # published accuracy, k, T, settings
    "dino_resnet18": (87.3, 200, 0.1, replace(RESNET18, method=dino.Config(
        out_dim=2048, head_batch_norm=True, teacher_temp=0.04, momentum=0.99, freeze_last_layer="0",
    ), views=changed(dino.VIEWS, {
        "global.size": 128, "local.size": 64, "local.number": 6, "all.crop.scale": (0.4, 1.0),
        "local.crop.scale": (0.05, 0.4),
    }))),
    "byol_resnet18": (70.5, 200, 0.1, replace(RESNET18,
        method=byol.Config(momentum=0.99), views=changed(byol.VIEWS, {"global.size": 128}),
    )),
    "dino_vits16": (83.8, 20, 0.07, Config(
        data="", backbone="vit_small/16", batch=128, eval_every="10%",
        method=dino.Config(teacher_temp_warmup="10ep"), views=changed(dino.VIEWS, {"local.number": 6}),
        optim=optim.Config(weight_decay=0.05, weight_decay_end=0.05),
    )),
}  # fmt: skip


def main() -> None:
    """Train, evaluate, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--epochs", type=float, default=200.0)
    parser.add_argument("--minutes", type=float, help="of each run, instead of the epochs")
    parser.add_argument("--steps", type=int, help="instead of the epochs, to test the program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as home:
        found = {target: reach(target, args, f"{home}/{target}") for target in args.only}
    document = {
        "what": "k-NN in percent on Imagenette, and minutes of training",
        "machine": machine(device),
        "date": time.strftime("%Y-%m-%d"),
        "length": length(args),
        "seed": args.seed,
        "targets": found,
    }
    keep(document, args.out)


def length(args: argparse.Namespace) -> dict[str, float]:
    """Of a run: the one field of its settings that says how long it trains."""
    if args.steps:
        return {"steps": args.steps}
    return {"minutes": args.minutes} if args.minutes else {"epochs": args.epochs}


def reach(target: str, args: argparse.Namespace, out: str) -> dict[str, Any]:
    """One run, and both networks evaluated on all images."""
    published, k, temperature, config = TARGETS[target]
    val = str(args.data / "val")
    config = replace(config, data=str(args.data / "train"), val=val, seed=args.seed, out=out, **length(args))
    result = opendino.train(config)
    scores = {}
    for which in ("teacher", "student"):
        report = knn.evaluate(knn.Config(out, which=which, val=val, k=(20, 200), temperature=temperature))
        scores[which] = {k: row["top1"] for k, row in report.fields["by_k"].items()}
    told = {
        "published": published, "k": k, "steps": result.steps, "minutes": result.seconds / 60,
        "images_per_second": result.images_per_second, "data_wait": result.data_wait, "mfu": result.mfu,
        "peak_memory_gib": result.peak_memory_bytes / 2**30, "scores": scores, "weights": weights(out),
    }  # fmt: skip
    print(target, told, file=sys.stderr)
    return told


if __name__ == "__main__":
    main()
