"""Fifty labels: our classifier beside scikit-learn's standardized logistic regression, pixels and the commonest class.

Run: OPENDINO_DATA=DIR python benchmarks/few_labels.py [steel96 bloodcells leaf96] [--labels 50] [--draws 5]
[--model MODEL] [--vectors DIR] [--out FILE.json]. Of each pack, a folder or a .tar.gz in DIR, some images are drawn at
random for their labels, and the rest are classified by their vectors. Without --model they are those of an untrained
conv4. --vectors keeps the tables for the next time. About a minute per pack on one core. A table goes to stderr; the
last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import packs
import torch
from record import keep, machine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import nll_loss

from opendino import cli
from opendino.core.accuracy import interval, standard_error
from opendino.data.open_source import open_source
from opendino.embeddings.open_table import open_table
from opendino.features.classification_metrics import majority
from opendino.features.logistic_regression import cross_validated
from opendino.features.pixel_baseline import thumbnail_and_histogram
from opendino.models.build import backbone
from opendino.models.load import preprocessing, save_backbone

_COLUMNS = ("ours", "scikit-learn", "pixels", "majority", "claimed", "loss", "loss of scikit-learn", "seconds")


def main() -> None:
    """Draw labels, classify the rest, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("packs", nargs="*", default=["steel96", "bloodcells", "leaf96"])
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--model", help="as for opendino embed; default: an untrained conv4")
    parser.add_argument("--vectors", type=Path, help="folder of PACK.parquet; tables that are missing are made")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        found = {pack: _pack(pack, args, Path(home)) for pack in args.packs}
    document = {
        "what": f"accuracy in percent on the rest, {args.labels} labels drawn at random, mean of {args.draws} draws",
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "model": args.model or "untrained conv4",
        "packs": found,
    }
    print(f"{'pack':<12}" + "".join(f"{name:>22}" for name in _COLUMNS) + f"{'covered':>22}", file=sys.stderr)
    for pack, row in found.items():
        figures = "".join(f"{row['mean'][name]:>22.2f}" for name in _COLUMNS)
        print(f"{pack:<12}{figures}{row['covered']:>17} of {args.draws}", file=sys.stderr)
    keep(document, args.out)


def _pack(pack: str, args: argparse.Namespace, home: Path) -> dict[str, Any]:
    data = packs.folder(pack, home)
    folder = args.vectors or home
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pack}.parquet"
    if not path.is_file():
        with contextlib.redirect_stdout(sys.stderr):
            assert cli.main(["embed", args.model or _untrained(home), str(data), "--out", str(path)]) == 0
    rows = [
        (key, vector)
        for keys, vectors in open_table(str(path)).chunks()
        for key, vector in zip(keys, vectors, strict=True)
        if key.startswith(("train/", "val/"))
    ]
    vectors, names = torch.stack([vector for _, vector in rows]), [key.split("/")[1] for key, _ in rows]
    source = open_source(str(data))
    position = {source.key(index): index for index in range(len(source))}
    pixels = thumbnail_and_histogram(source, [position[key] for key, _ in rows], 1)
    classes, labels = np.unique(names, return_inverse=True)
    draws = [
        _draw(vectors, pixels, torch.from_numpy(labels), len(classes), args.labels, seed) for seed in range(args.draws)
    ]
    return {
        "images": len(rows),
        "classes": len(classes),
        "mean": {name: float(np.mean([draw[name] for draw in draws])) for name in _COLUMNS},
        "covered": sum(draw["covered"] for draw in draws),
        "standard_error_of_a_draw": standard_error(draws[0]["ours"], len(rows) - args.labels),
        "draws": draws,
    }


def _untrained(home: Path) -> str:
    torch.manual_seed(0)
    save_backbone(home, {"teacher": backbone("conv4")}, preprocessing=preprocessing(64))
    return str(home)


def _draw(vectors: Tensor, pixels: Tensor, labels: Tensor, num_classes: int, num: int, seed: int) -> dict[str, Any]:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    drawn, rest = order[:num], order[num:]
    began = time.perf_counter()
    ours = cross_validated(vectors[drawn], labels[drawn], num_classes)
    seconds = time.perf_counter() - began
    scores = vectors[rest] @ ours.weight.T + ours.bias
    claimed = _percent(ours.scores, labels[drawn])
    accuracy = _percent(scores, labels[rest])
    low, high = interval(claimed, num)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000))
    theirs.fit(vectors[drawn].numpy(), labels[drawn].numpy())
    probabilities = torch.zeros(len(rest), num_classes, dtype=torch.float64)
    probabilities[:, torch.from_numpy(theirs[-1].classes_)] = torch.from_numpy(
        theirs.predict_proba(vectors[rest].numpy())
    ).double()
    by_pixels = cross_validated(pixels[drawn], labels[drawn], num_classes)
    known = torch.isin(labels[rest], labels[drawn])  # the loss of a class without a label is infinite
    return {
        "ours": accuracy,
        "scikit-learn": _percent(probabilities, labels[rest]),
        "pixels": _percent(pixels[rest] @ by_pixels.weight.T + by_pixels.bias, labels[rest]),
        "majority": majority(labels[rest]),
        "claimed": claimed,
        "covered": low <= accuracy <= high,
        "loss": float(nll_loss(scores.log_softmax(1)[known], labels[rest][known])),
        "loss of scikit-learn": float(nll_loss(probabilities.clamp_min(1e-12).log()[known], labels[rest][known])),
        "C": ours.strength,
        "seconds": seconds,
    }


def _percent(scores: Tensor, labels: Tensor) -> float:
    return 100 * float((scores.argmax(1) == labels).double().mean())


if __name__ == "__main__":
    main()
