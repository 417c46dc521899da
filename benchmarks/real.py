"""Real images: the default command beside pixels, color + LBP, the untrained network, lightly's pieces, lightly-train.

Run: OPENDINO_DATA=DIR python benchmarks/real.py [--packs steel96 eurosat64 ...] [--seeds 3] [--minutes 20]
[--train "--recipe small ..."] [--lightly] [--lightly-train PYTHON] [--out FILE.json]. DIR has the packs as folders or
.tar.gz. Ours is `opendino train PACK/train --val PACK/val --labels folders --minutes M --seed S` in a process of its
own. The others train the same network for the same processor seconds on the same images and crops: lightly's loss, head
and transform (needs `pip install lightly`), and lightly-train's DINO in an environment of its own. They read images of
8 bits, so those of 16 bits are given to them as PNG files of our range. Color + LBP needs `pip install scikit-image`.
The last line of stdout is one JSON document, which is also written to FILE.json after each run; a table goes to
stderr. Fluorescence means its four large phases.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

import lightly_train_run
import numpy as np
import packs
import torch
from PIL import Image
from record import joules, keep, machine, weights
from torch import Tensor, nn

import opendino
from opendino.core.accuracy import standard_error
from opendino.core.contracts import Source
from opendino.data import intensity, readers
from opendino.data.open_source import open_source
from opendino.existing_runs import read_run_config
from opendino.features.baselines import untrained_on
from opendino.features.feature_table import table
from opendino.features.logistic_regression import cross_validated
from opendino.features.nearest_neighbors import nearest
from opendino.models.load import Model

PACKS = ("steel96", "eurosat64", "leaf96", "fluorescence", "bloodcells")
PHASES = ("G1", "G2", "Prophase", "S_phase")
K, DRAWS = 10, 5
MEASURES = ("knn", "knn scaled", "balanced", "linear", "5 a class", "20 a class")


def main() -> None:
    """Train, evaluate, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--packs", nargs="+", choices=PACKS, default=[*PACKS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0, help="of a run (default 20); 0: the run's own default")
    parser.add_argument("--train", default="", metavar="FLAGS", help="further flags of `opendino train`")
    parser.add_argument("--part-of-train", action="store_true", help="judge on every fifth training image, for tuning")
    parser.add_argument("--lightly", action="store_true", help="also lightly's pieces, for as long")
    parser.add_argument("--lightly-train", type=Path, metavar="PYTHON", help="also lightly-train, of that environment")
    parser.add_argument("--no-classic", action="store_true", help="leave out pixels and color + LBP")
    parser.add_argument("--out", type=Path, help="also write the JSON document here, after each run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {
        "what": "accuracy in percent on val: k-NN (k = 10, cosine) of the vectors as they are, and of vectors scaled "
        "by mean and deviation of train; of the scaled ones the mean over classes, a linear classifier on all labels, "
        "and on 5 and 20 labels a class (mean of 5 draws); wall and processor seconds of the training command, "
        "and the joules of all processors where the machine tells them",
        "machine": f"{machine()}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/real.py {shlex.join(sys.argv[1:])}",
        "packs": {},
    }
    with tempfile.TemporaryDirectory() as home:
        for pack in args.packs:
            found = document["packs"][pack] = {}
            for name, rows in measured(pack, args, Path(home)):
                found[name] = found.get(name, []) + rows
                if args.out:
                    args.out.write_text(json.dumps(document) + "\n", encoding="utf-8")
    for pack, found in document["packs"].items():
        for name, rows in found.items():
            print(f"{pack:<13} {name:<12} {line(rows)}", file=sys.stderr)
    keep(document, args.out)


def measured(pack: str, args: argparse.Namespace, home: Path) -> Any:
    """What each way reaches on a pack: (name, rows), one row per seed where there is one."""
    train, val = folders(pack, home, args.part_of_train)
    sources = open_source(str(train)), open_source(str(val))
    if not args.no_classic:
        for name, function in (("pixels", thumbnail), ("color+LBP", color_and_lbp)):
            yield name, [judged(*(by_hand(source, function) for source in sources), sources)]
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        run = home / f"{pack}-{seed}"
        command = [
            sys.executable, "-m", "opendino", "train", str(train), "--val", str(val), "--labels", "folders",
            "--seed", str(seed), "--out", str(run), "--report", "False", "--json", *shlex.split(args.train),
        ]  # fmt: skip
        command += ["--minutes", f"{args.minutes:g}"] if args.minutes else []
        spent, began, energy = cpu_seconds(), time.monotonic(), joules()
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = {"seconds": time.monotonic() - began, "processor seconds": cpu_seconds() - spent}
        after = joules()
        if energy is not None and after is not None and after > energy:  # the counter starts again at times
            seconds["joules"] = after - energy
        model, result = opendino.load(str(run)), json.loads(ended.stdout.splitlines()[-1])
        told = {name: result[name] for name in ("verdict", "steps") if name in result}
        print(pack, seed, result["knn"], seconds, file=sys.stderr)
        ours = judged(*(model.embed(str(folder)).vectors for folder in (train, val)), sources)
        yield "ours", [{"seed": seed, **seconds, **told, **ours, "weights": weights(run)}]
        for name, (network, about) in opponents(args, run, train, seed, seconds["processor seconds"]):
            model.backbone = network
            theirs = judged(*(model.embed(str(folder)).vectors for folder in (train, val)), sources)
            yield name, [{"seed": seed, **about, **theirs}]
        vectors = untrained_vectors(model, train, val, seed)
        yield "untrained", [{"seed": seed, **judged(*vectors, sources)}]


def opponents(
    args: argparse.Namespace, run: Path, train: Path, seed: int, seconds: float
) -> Iterator[tuple[str, tuple[nn.Module, dict[str, Any]]]]:
    """Networks that others train with the settings of a run and the same images: (name, (network, what it took))."""
    if args.lightly or args.lightly_train:
        train = eight_bits(run, train)
    if args.lightly:
        from lightly_dino import train as train_lightly

        yield "lightly", train_lightly(run, train, seed, seconds)
    if args.lightly_train:
        yield "lightly-train", lightly_train_run.train(args.lightly_train, run, train, seed, seconds)


def eight_bits(run: Path, train: Path) -> Path:
    """The folder itself, or one of PNG files if its images have 16 bits, with the range of values of the run."""
    found = intensity.parse(read_run_config(run).intensity)
    if not isinstance(found, intensity.Intensity):
        return train  # they have 8 bits
    low, high = np.array(found.low), np.array(found.high)
    to = train.with_name("train of 8 bits")
    for path in train.glob("*/*"):
        pixels = np.asarray(readers.read(path.read_bytes()).pixels).astype(np.float64)
        part = to / path.parent.name / f"{path.stem}.png"
        part.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * (pixels - low) / (high - low)).round().clip(0, 255).astype(np.uint8)).save(part)
    return to


def untrained_vectors(model: Model, train: Path, val: Path, seed: int) -> list[Tensor]:
    """Features of the training and validation images with random weights; BatchNorm has the statistics of train."""
    source = model.reading.open_images(str(train))
    fresh = untrained_on(model, source, range(0, len(source), max(1, len(source) // 512)), seed)
    return [table(fresh, each).features for each in (source, model.reading.open_images(str(val)))]


def folders(pack: str, home: Path, part: bool) -> tuple[Path, Path]:
    """Training and validation images of a pack, as folders of links; of `part`, both are parts of train."""
    packed = packs.folder(pack, home / "packs")
    to = home / pack
    for split in ("train", "val"):
        kept = [path for path in sorted((packed / ("train" if part else split)).glob("*/*")) if path.is_file()]
        if pack == "fluorescence":
            kept = [path for path in kept if path.parent.name in PHASES]
        if part:
            kept = [path for number, path in enumerate(kept) if (number % 5 == 0) == (split == "val")]
        for path in kept:
            link = to / split / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.resolve())
    return to / "train", to / "val"


def cpu_seconds() -> float:
    """Processor seconds of the processes that have ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def by_hand(source: Source, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Vectors `[N D]` of all images by a function of an image `[H W C]`."""
    images = (readers.read(cast(bytes, source.read(index))).pixels for index in range(len(source)))
    return torch.from_numpy(np.stack([function(np.asarray(image)) for image in images])).double()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """All channels at 32×32 pixels."""
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return nn.functional.interpolate(pixels, size=(32, 32), mode="area").flatten().numpy()


def color_and_lbp(image: np.ndarray) -> np.ndarray:
    """Mean and deviation of each channel; uniform local binary patterns of 8 points at 1 px and 16 at 2 px."""
    from skimage.feature import local_binary_pattern

    pixels, found = image.astype(np.float64), []
    gray = pixels.mean(2)
    scaled = (255 * gray / max(gray.max(), 1)).astype(np.uint8)
    for points, radius in ((8, 1), (16, 2)):
        codes = local_binary_pattern(scaled, points, radius, "uniform")
        found.append(np.bincount(codes.astype(int).ravel(), minlength=points + 2) / codes.size)
    return np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1)), *found])


def judged(train: Tensor, val: Tensor, sources: tuple[Source, Source]) -> dict[str, Any]:
    """Accuracies of vectors; all but "knn" of vectors that are scaled by the mean and deviation of train."""
    classes = sources[0].classes
    labels, truth = (  # val may lack a class
        torch.tensor([classes.index(source.classes[source.label(index)]) for index in range(len(source))])
        for source in sources
    )
    as_they_are = percent(voted(train, labels, val) == truth)
    center, scale = train.mean(0), train.std(0).clamp_min(1e-9)
    train, val = (train - center) / scale, (val - center) / scale
    right = voted(train, labels, val) == truth
    found = {
        "knn": as_they_are,
        "knn scaled": percent(right),
        "balanced": mean(percent(right[truth == label]) for label in truth.unique().tolist()),
        "queries": len(truth),
        "standard error": standard_error(as_they_are, len(truth)),
        "linear": linear(train, labels, val, truth),
    }
    for number in (5, 20):
        draws = [drawn(labels, number, seed) for seed in range(DRAWS)]
        found[f"{number} a class"] = mean(linear(train[rows], labels[rows], val, truth) for rows in draws)
    return found


def voted(train: Tensor, labels: Tensor, val: Tensor) -> Tensor:
    """The most frequent label among the nearest of `train`, for each of `val`."""
    return nn.functional.one_hot(labels[nearest(train, val, K)[1]], int(labels.max()) + 1).sum(1).argmax(1)


def drawn(labels: Tensor, number: int, seed: int) -> Tensor:
    """Positions of as many images of each class, or all there are."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    return torch.cat([order[labels[order] == label][:number] for label in labels.unique()])


def linear(train: Tensor, labels: Tensor, val: Tensor, truth: Tensor) -> float:
    """Accuracy of the classifier of `eval linear` and `predict`."""
    fitted = cross_validated(train.float(), labels, int(labels.max()) + 1)
    return percent((val.float() @ fitted.weight.T + fitted.bias).argmax(1) == truth)


def percent(right: Tensor) -> float:
    """Share that is true."""
    return 100 * float(right.double().mean())


def line(rows: list[dict[str, Any]]) -> str:
    """Mean and standard error over the seeds, of each measure."""
    words = []
    for name in (*MEASURES, "processor seconds"):
        values = [row[name] for row in rows if name in row]
        spread = f" ± {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
        words += [f"{name} {mean(values):.1f}{spread}"] if values else []
    return "  ".join(words)


if __name__ == "__main__":
    main()
