"""Accuracy against the number of labels: images chosen by `opendino select --labeled`, and images chosen at random.

Run: OPENDINO_DATA=DIR python benchmarks/label_curve.py --model PACK=MODEL ... [--labels PACK=30 ...] [--batch 10]
[--seeds 5] [--out FILE.json]. Of each pack, a folder or a .tar.gz in DIR, the images of train/ are labeled in batches:
the first by diversity, the next by uncertainty and diversity, from the labels so far. The classifier of `eval linear`
and `predict` is measured on the images of val/. A table goes to stderr; the last line of stdout is one JSON document.
About three minutes a pack on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import packs
import torch
from record import keep, machine
from torch import Tensor
from torch.nn.functional import normalize

from opendino import cli
from opendino.embeddings.diverse_selection import k_center, typical, uncertainty
from opendino.embeddings.open_table import open_table
from opendino.features.logistic_regression import cross_validated

_CHOICES = ("random", "k-center, then uncertain", "typical, then uncertain", "typical")


class _Images(NamedTuple):
    """Vectors `[M D]` and the class of each, of the images to label or those to measure on."""

    vectors: Tensor
    names: list[str]


def main() -> None:
    """Label, classify, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", nargs="+", required=True, metavar="PACK=MODEL")
    parser.add_argument("--labels", nargs="+", default=["steel96=30", "eurosat64=50"], metavar="PACK=NUMBER")
    parser.add_argument("--batch", type=int, default=10, help="labels between two choices")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    numbers = {pack: int(number) for pack, _, number in (each.partition("=") for each in args.labels)}
    models = {pack: model for pack, _, model in (each.partition("=") for each in args.model)}
    with tempfile.TemporaryDirectory() as home:
        found = {pack: _pack(pack, model, numbers[pack], args, Path(home)) for pack, model in models.items()}
    document = {
        "what": f"accuracy in percent on val/ by number of labels, batches of {args.batch}, mean of {args.seeds} seeds",
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "packs": found,
    }
    keep(document, args.out)


def _pack(pack: str, model: str, total: int, args: argparse.Namespace, home: Path) -> dict[str, Any]:
    data, path = packs.folder(pack, home), home / f"{pack}.parquet"
    with contextlib.redirect_stdout(sys.stderr):
        assert cli.main(["embed", model, str(data), "--out", str(path), "--workers", "1"]) == 0
    train, val = (_images(path, part) for part in ("train", "val"))
    labels = [*range(args.batch, total + 1, args.batch)]
    print(f"{pack:>12}{'labels':>28}" + "".join(f"{number:>14}" for number in labels), file=sys.stderr)
    curves = {}
    for choice in _CHOICES:
        of_seeds = np.array([_curve(choice, train, val, labels, seed) for seed in range(args.seeds)])
        error = of_seeds.std(0, ddof=1) / len(of_seeds) ** 0.5
        cells = zip(of_seeds.mean(0), error, strict=True)
        print(f"{pack:>12}{choice:>28}" + "".join(f"{mean:>8.1f} ± {err:.1f}" for mean, err in cells), file=sys.stderr)
        curves[choice] = {
            "mean": of_seeds.mean(0).tolist(), "standard_error": error.tolist(), "seeds": of_seeds.tolist()
        }  # fmt: skip
    return {"model": model, "images": len(train.names), "val": len(val.names), "labels": labels, "curves": curves}


def _images(path: Path, part: str) -> _Images:
    rows = [
        (key, vector)
        for keys, vectors in open_table(str(path)).chunks()
        for key, vector in zip(keys, vectors, strict=True)
        if key.startswith(f"{part}/")
    ]
    return _Images(torch.stack([vector for _, vector in rows]), [key.split("/")[1] for key, _ in rows])


def _curve(choice: str, train: _Images, val: _Images, labels: list[int], seed: int) -> list[float]:
    """Accuracy on `val` after each number of labels."""
    chosen: list[int] = []
    order = np.random.default_rng(seed).permutation(len(train.names)).tolist()
    unit, accuracies = normalize(train.vectors, dim=1), []
    for number in labels:
        if choice == "random":
            chosen = order[:number]
        elif choice == "typical" or (not chosen and choice.startswith("typical")):
            chosen = chosen + typical(unit, number - len(chosen), chosen, seed)
        else:
            classes, weights = [train.names[row] for row in chosen], None
            if len(set(classes)) > 1:
                weights = uncertainty(unit, chosen, classes)
            centers = k_center(unit, chosen, seed, weights)
            chosen = chosen + [row for row, _ in itertools.islice(centers, number - len(chosen))]
        accuracies.append(_accuracy(train, val, chosen))
    return accuracies


def _accuracy(train: _Images, val: _Images, chosen: list[int]) -> float:
    """Accuracy in percent of the classifier of the chosen images; a class that is not among them is never right."""
    names = sorted({train.names[row] for row in chosen})
    labels = torch.tensor([names.index(train.names[row]) for row in chosen])
    if len(names) == 1:
        return 100 * float(np.mean([name == names[0] for name in val.names]))
    found = cross_validated(train.vectors[chosen], labels, len(names))
    best = (val.vectors @ found.weight.T + found.bias).argmax(1).tolist()
    return 100 * float(np.mean([names[label] == name for label, name in zip(best, val.names, strict=True)]))


if __name__ == "__main__":
    main()
