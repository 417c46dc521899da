"""From a stroke to a mask on the page: seconds, and how the quick head compares with the exported one.

Run: python benchmarks/scribbles.py [--model MODEL ...] [--side 480] [--images 3] [--threads 2] [--out FILE.json]. Drawn
images of 4:3 (`toy:forms`), a stroke through each form and one on the background. Without --model: untrained conv4,
ViT-T/16 and ViT-S/16. A table goes to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import keep, machine

from opendino.data.sources import toy
from opendino.datasets.mask_files import VOID
from opendino.datasets.mask_metrics import class_counts, class_iou
from opendino.features.scribbles import PatchCache, Scribbled, mask, train
from opendino.models.build import backbone
from opendino.models.load import Model, load, preprocessing

_STROKE_PX, _REPEATS = 12, 5
_COLUMNS = ("first look", "stroke to mask", "export", "mIoU", "mIoU exported", "agreement")


def main() -> None:
    """Time each model, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", nargs="*", default=[], help="as for opendino embed; default: untrained networks")
    parser.add_argument("--side", type=int, default=480, help="shorter side of the images in pixels")
    parser.add_argument("--images", type=int, default=3, help="number of images with strokes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = [_scribbled(number, args.side) for number in range(args.images)]
    found = {name: _timed(model, images) for name, model in _models(args.model).items()}
    document = {
        "what": f"seconds, and percent; {args.images} images of {args.side} px, strokes of {_STROKE_PX} px; the median "
        f"of {_REPEATS} strokes",
        "machine": machine(),
        "threads": args.threads,
        "date": time.strftime("%Y-%m-%d"),
        "models": found,
    }
    print(f"{'model':<28}" + "".join(f"{name:>16}" for name in _COLUMNS), file=sys.stderr)
    for name, row in found.items():
        print(f"{name:<28}" + "".join(f"{row[column]:>16.2f}" for column in _COLUMNS), file=sys.stderr)
    keep(document, args.out)


def _models(names: list[str]) -> dict[str, Model]:
    if names:
        return {name: load(name) for name in names}
    torch.manual_seed(0)
    untrained = {"conv4": 64, "vit_tiny/16": 224, "vit_small/16": 224}
    return {
        f"untrained {name}": Model(backbone(name, **({} if name == "conv4" else {"image_px": side})),
                                   preprocessing(side), {})
        for name, side in untrained.items()
    }  # fmt: skip


def _scribbled(number: int, side: int) -> tuple[Scribbled, np.ndarray]:
    """A drawn image with strokes, and its true mask: 0 background, 1 form."""
    size = side * 4 // 3, side
    source = toy.ToySource("forms", n=number + 1, size=128)
    image = np.asarray(Image.fromarray(source.read(number)).resize(size, Image.Resampling.BICUBIC))
    truth = np.array(Image.fromarray(source.mask(number)).resize(size, Image.Resampling.NEAREST))
    strokes = np.full_like(truth, VOID)
    for label in (0, 1):
        rows = (truth == label).sum(1)
        row = int(rows.argmax())  # a stroke along the row with most of the class, the middle half of it
        columns = np.flatnonzero(truth[row] == label)
        columns = columns[len(columns) // 4 : -(len(columns) // 4) or None]
        strokes[max(0, row - _STROKE_PX // 2) : row + _STROKE_PX // 2, columns] = label
    return Scribbled(f"{number:02d}", image, np.where(strokes == truth, strokes, VOID).astype(np.uint8)), truth


def _timed(model: Model, images: list[tuple[Scribbled, np.ndarray]]) -> dict[str, Any]:
    cache, scribbled = PatchCache(), [each for each, _ in images]
    began = time.perf_counter()
    cache.features(model, scribbled[0].image)
    first = time.perf_counter() - began
    for each in scribbled:
        cache.features(model, each.image)
    seconds, head = [], None
    for _ in range(_REPEATS):
        began = time.perf_counter()
        head = train(model, scribbled, cache, quick=True)
        mask(model, head, scribbled[0].image, cache)
        seconds.append(time.perf_counter() - began)
    assert head is not None
    began = time.perf_counter()
    exported = train(model, scribbled, cache)
    export = time.perf_counter() - began
    masks = {name: [mask(model, own, each.image, cache) for each in scribbled]
             for name, own in (("quick", head), ("exported", exported))}  # fmt: skip
    equal = np.mean([(one == other).mean() for one, other in zip(masks["quick"], masks["exported"], strict=True)])
    truths = [truth for _, truth in images]
    return {
        "first look": first, "stroke to mask": float(np.median(seconds)), "export": export,
        "mIoU": _miou(truths, masks["quick"]), "mIoU exported": _miou(truths, masks["exported"]),
        "agreement": 100 * float(equal),
    }  # fmt: skip


def _miou(truths: list[np.ndarray], masks: list[np.ndarray]) -> float:
    counted = sum(
        class_counts(torch.from_numpy(truth), torch.from_numpy(mask), 2)
        for truth, mask in zip(truths, masks, strict=True)
    )
    assert isinstance(counted, torch.Tensor)
    return 100 * float(class_iou(counted).nanmean())


if __name__ == "__main__":
    main()
