"""Which method for which set? All methods without labels on the same small network, for the same number of images seen.

Run: OPENDINO_DATA=DIR python benchmarks/methods.py [--sets toy steel96 eurosat64] [--only dino swav] [--seeds 3]
[--images 12800] [--out FILE.json]. DIR has the packs as folders or .tar.gz. Small views (32 and 16 px), a conv4 for all
methods, and a small ViT for dino and ibot, which needs one. About a minute per run on one thread; FILE.json is written
after each. A table goes to stderr; the last line of stdout is one JSON document. `make docs` puts the newest
benchmarks/results/methods_*.json into docs/methods.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import Any

import packs
import torch
from record import keep, machine

import opendino
from opendino.core import registry
from opendino.evals import linear

SIMSIAM = Path(__file__).parents[1] / "examples/plugin/opendino_simsiam.py"
NETWORKS: dict[str, dict[str, Any]] = {
    "conv4": {"backbone": "conv4", "backbone_options": {"width": 16}},
    "vit": {"backbone": "vit/8", "backbone_options": {"embed_dim": 96, "depth": 4, "num_heads": 3}},
}
LEARNING_RATES = {"conv4": 3e-3, "vit": 1e-3}
"""At this batch, not per 256 images, and not tuned per method: the demo's for DINO, less for a ViT."""
SETTINGS = {
    "out_dim": 256, "hidden_dim": 256, "bottleneck_dim": 64, "projection_dim": 64, "teacher_temp": 0.04,
    "momentum": 0.95, "momentum_end": 0.99,
}  # fmt: skip
"""Of the method, where it has them: widths for a small network, and the demo's teacher."""
VIEWS = {
    "global.size": 32, "local.size": 16, "local.number": 4, "all.crop.scale": (0.25, 1.0),
    "local.crop.scale": (0.05, 0.25), "global.blur.p": 0.2, "second.blur.p": 0.1, "local.blur.p": 0.1,
}  # fmt: skip
BATCH, MEASURES = 64, ("knn", "linear", "rank", "seconds")


def main() -> None:
    """Train, evaluate, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", nargs="+", default=["toy", "steel96", "eurosat64"])
    parser.add_argument("--only", nargs="+", help="methods (default all)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--seeds", type=int, default=3, help="number of runs of each (default 3)")
    parser.add_argument("--images", type=int, default=12_800, help="images seen by each run (default 12,800)")
    parser.add_argument("--lr", type=float, help="learning rate, for tuning")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method, for tuning")
    parser.add_argument("--out", type=Path, help="also write the JSON document here, after each run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {
        "what": f"k-NN and linear accuracy in percent, effective rank, processor seconds; {args.images:,} images seen",
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/methods.py --images {args.images} --seeds {args.seeds}",
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as home:
        for name in args.sets:
            data = folders(name, Path(home))
            for network, method in pairs(args.only, args.networks):
                runs = [one(seed, network, method, data, args, Path(home)) for seed in range(args.seeds)]
                document["rows"].append(summary(name, network, method, runs))
                if args.out:
                    args.out.write_text(json.dumps(document) + "\n", encoding="utf-8")
    keep(document, args.out)


def pairs(only: list[str] | None, networks: list[str]) -> list[tuple[str, str]]:
    """Networks with the methods to train them: on a ViT only those that need one, and dino."""
    known = [name for name in ("dino", "swav", "lejepa") if name in registry.names(registry.METHODS)]
    found = [("conv4", name) for name in [*known, "simsiam"]]
    found += [("vit", name) for name in ("dino", "ibot") if name in registry.names(registry.METHODS)]
    return [(network, name) for network, name in found if network in networks and (not only or name in only)]


def folders(name: str, home: Path) -> tuple[str, str]:
    """Training and validation images of a set."""
    if name == "toy":
        return "toy:textures?n=2000&size=32", "toy:textures?n=1000&size=32&split=val"
    pack = packs.folder(name, home)
    return str(pack / "train"), str(pack / "val")


def one(
    seed: int, network: str, method: str, data: tuple[str, str], args: argparse.Namespace, home: Path
) -> dict[str, Any]:
    """One run."""
    module, lr = load(method), args.lr or LEARNING_RATES[network]
    known = {field.name for field in fields(module.Config)}
    settings = {name: value for name, value in SETTINGS.items() if name in known}
    settings |= {name: json.loads(value) for name, value in (word.split("=") for word in args.set)}
    out = home / f"{time.monotonic_ns()}"
    began = time.process_time()
    result = opendino.train(
        data[0], val=data[1], out=out, seed=seed, method=module.Config(**settings), views=nested(module), drop_path=0.0,
        steps=args.images // BATCH, batch=BATCH, devices=1, workers=0, threads=1, device="cpu", precision="float32",
        eval_every="100%", checkpoint_every="100%", eval_images=3000, report=False,
        optim={"lr": lr * 256 / BATCH, "min_lr": 1e-5, "weight_decay": 0.04, "weight_decay_end": 0.04, "clip": 3.0},
        **NETWORKS[network],
    )  # fmt: skip
    seconds = time.process_time() - began
    report = linear.evaluate(linear.Config(str(out), train=data[0], val=data[1], workers=1, device="cpu"))
    assert result.knn
    assert result.effective_rank is not None
    found = {
        "seed": seed,
        "knn": next(iter(result.knn.values())),
        "untrained": result.knn["untrained"],
        "pixels": result.knn["pixels"],
        "linear": report.fields["top1"],
        "rank": result.effective_rank,
        "seconds": seconds,
        "collapse": result.collapse,
    }
    print(f"{data[0]} {network} {method}: {found}", file=sys.stderr)
    return found


def nested(module: ModuleType) -> dict[str, Any]:
    """`VIEWS` for the groups of a method, as a tree."""
    tree: dict[str, Any] = {}
    for name, value in VIEWS.items():
        group, *path = name.split(".")
        if group in (*module.VIEWS, "all"):
            place = tree.setdefault(group, {})
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = value
    return tree


def load(method: str) -> ModuleType:
    """The module of a method; simsiam is the one of examples/plugin."""
    if method != "simsiam":
        return registry.load(registry.METHODS, method)
    if "opendino_simsiam" not in sys.modules:
        spec = importlib.util.spec_from_file_location("opendino_simsiam", SIMSIAM)
        assert spec
        assert spec.loader
        sys.modules["opendino_simsiam"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["opendino_simsiam"])
        opendino.register_method("simsiam", sys.modules["opendino_simsiam"])
    return sys.modules["opendino_simsiam"]


def summary(name: str, network: str, method: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds."""
    row: dict[str, Any] = {"set": name, "network": network, "method": method, "runs": runs}
    for measure in (*MEASURES, "untrained", "pixels"):
        values = [run[measure] for run in runs]
        row[measure] = {"mean": mean(values), "stdev": stdev(values) if len(values) > 1 else None}
    return row


if __name__ == "__main__":
    main()
