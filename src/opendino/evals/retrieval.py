"""Finding images of the same thing: mAP on revisited Oxford and Paris, or on any folder with a sub-folder a class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
import tyro
from msgspec import Meta
from PIL import Image
from torch import Tensor

from opendino.core import distributed
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.ranges import Batch, Checked, Count, PixelSize
from opendino.core.types import Report
from opendino.data.open_source import open_source
from opendino.datasets import roxford_rparis
from opendino.features.image_descriptors import Describe, skipped
from opendino.features.ranking_metrics import JUNK, POSITIVE, average_precision, precision_at, recall_at, search
from opendino.models.global_descriptor import SCALES, Descriptor
from opendino.models.load import load

_SIZE_PX = 512
# Which lists of the ground truth are to be found, and which are passed over, in each set-up of the benchmark.
_SETUPS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino eval retrieval` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; by default the one to use."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
    """A folder with a sub-folder of images a class; with a ground truth, the folder of the benchmark's images."""
    ground_truth: str | None = None
    """gnd_roxford5k.pkl, gnd_rparis6k.pkl or the same as JSON; found by itself where it lies in DATA."""
    size_px: PixelSize | None = None
    """Longest side of an image; by default 512 with a ground truth, else what the model was trained for."""
    multi_scale: bool = True
    """Mean over the scales 1, 1/√2, 1/2."""
    pool: Literal["cls", "gem"] = "cls"
    """The image feature, or the generalized mean of the patches."""
    gem_power: Annotated[float, Meta(gt=0, le=1000)] = 3.0
    """p of the generalized mean."""
    crop_queries: bool = True
    """Cut queries to their box, as the benchmark asks; DINO v1 published its figures without."""
    whiten: str | None = None
    """A folder of other images to learn a PCA whitening on."""
    k: Annotated[tuple[Count, ...], Meta(min_length=1)] = (1, 5, 10)
    """Lengths of the list for precision and recall."""
    batch: Batch = 32
    """Images at a time."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def evaluate(config: Config) -> Report:
    """Mean average precision and precision at k; recall at k too for a plain folder.

    Raises:
        UserError: No such model, images or ground truth, or they do not fit together.
    """
    if not config.data:
        raise UsageError("No images were named", "Give a folder with a sub-folder of images a class")
    device = distributed.device(config.device)
    source, path = open_source(config.data), _ground_truth(config)
    truth = roxford_rparis.read(path) if path else None
    model = load(config.model, config.which).to(device)
    size_px = config.size_px or (_SIZE_PX if truth else model.preprocessing["image_px"])
    scales = SCALES if config.multi_scale else (1.0,)
    sees = Descriptor(model, size_px, scales=scales, pool=config.pool, power=config.gem_power)
    seen = Describe(sees, device, config.whiten, centered=True, batch=config.batch)
    return _benchmark(config, source, truth, seen) if truth else _folders(config, source, seen)


def scores(ranks: Iterable[Tensor], k: Sequence[int]) -> dict[str, Any]:
    """Means over queries, in percent; queries without positives are left out, as the benchmark does.

    Args:
        ranks: For each query int `[P]`, from 0, ascending, where its positives came.
        k: Lengths of the list.

    Returns:
        {"mAP", "mP": {k: …}, "recall": {k: …}, "queries": how many counted}; None for means of no query.
    """
    precision, recall = dict.fromkeys(k, 0.0), dict.fromkeys(k, 0.0)
    area, asked = 0.0, 0
    for each in ranks:
        if len(each):
            asked += 1
            area += average_precision(each, len(each))
            for n in k:
                precision[n] += precision_at(each, n)
                recall[n] += recall_at(each, n)

    def mean(total: float) -> float | None:
        return 100 * total / asked if asked else None

    return {
        "mAP": mean(area),
        "mP": {str(n): mean(total) for n, total in precision.items()},
        "recall": {str(n): mean(total) for n, total in recall.items()},
        "queries": asked,
    }


def _ground_truth(config: Config) -> Path | None:
    if config.ground_truth:
        return Path(config.ground_truth).expanduser()
    folder = Path(config.data).expanduser()
    found = sorted(path for path in folder.glob("gnd_*") if path.suffix in (".pkl", ".json")) if folder.is_dir() else []
    if len(found) > 1:
        raise UserError(f"{config.data} has {len(found)} ground truths", f"Choose: --ground-truth {found[0]}")
    return found[0] if found else None


def _folders(config: Config, source: Source, seen: Describe) -> Report:
    """Each image a query against all others; those of its class are to be found."""
    if not source.classes:
        raise UserError(
            f"{config.data} names no classes", "Sort the images into sub-folders, one a class; or give --ground-truth"
        )
    images = seen(source)
    known = {source.label(i) for i in images.kept} - {-1}
    if len(known) == 1:
        raise UserError(
            f"All images of {config.data} are {source.classes[known.pop()]}",
            "With one class every order is right: give images of two classes or more",
        )
    vectors = images.features[:, 0]
    labels = torch.tensor([source.label(i) for i in images.kept], device=vectors.device)

    def relevance(query: int) -> Tensor:
        alike = ((labels == labels[query]) & (labels >= 0)).to(torch.int8)
        alike[query] = JUNK
        return alike

    found = scores(search(vectors, vectors, relevance), config.k)
    if not found["queries"]:
        raise UserError(f"No class of {config.data} has two readable images", "A query needs another image to find")
    alone = len(images.kept) - found["queries"]
    # With fewer others than that, one of its class is among the first k of any order.
    others = len(labels) - int(labels[labels >= 0].unique(return_counts=True)[1].min())
    found["recall"] = {n: value if int(n) <= others else None for n, value in found["recall"].items()}
    text = "\n".join([
        f"Retrieval on {config.data}: {len(images.kept)} images, {len(source.classes)} classes",
        f"{'mAP':>8}" + "".join(f"{f'mP@{n}':>8}" for n in config.k) + "".join(f"{f'R@{n}':>8}" for n in config.k),
        "".join(_percent(v) for v in (found["mAP"], *found["mP"].values(), *found["recall"].values())),
        "",
        "percent; each image against all others, those of its class are to be found; R@k: any of them among the first k"
        f" (not shown where any order has that); {found['queries']:,} queries"
        + (f"; {alone} without another of its class are no queries" if alone else ""),
        seen.protocol + skipped(images.bad),
    ])  # fmt: skip
    return Report(text, {**found, "images": len(images.kept), "skipped": len(images.bad), "protocol": seen.protocol})


def _benchmark(config: Config, source: Source, truth: roxford_rparis.GroundTruth, seen: Describe) -> Report:
    """Revisited Oxford and Paris."""
    place = _places(config, source, [*truth.images, *(query.name for query in truth.queries)])

    def box(number: int, image: Image.Image) -> list[Image.Image]:
        return [_cut(image, truth.queries[number].box) if config.crop_queries else image]

    database = seen(source, [place[name] for name in truth.images])
    queries = seen(source, [place[query.name] for query in truth.queries], box)
    row = {position: row for row, position in enumerate(database.kept)}
    asked = [truth.queries[number] for number in queries.kept]

    def search_in(setup: str) -> dict[str, Any]:
        def relevance(number: int) -> Tensor:
            out = torch.zeros(len(row), dtype=torch.int8)
            for kinds, value in zip(_SETUPS[setup], (POSITIVE, JUNK), strict=True):
                positions = [row[p] for kind in kinds for p in getattr(asked[number], kind) if p in row]
                out[positions] = value
            return out.to(database.features.device)

        return scores(search(queries.features[:, 0], database.features[:, 0], relevance), config.k)

    found = {setup: search_in(setup) for setup in _SETUPS}
    for each in found.values():
        del each["recall"]  # no measure of this benchmark
    if not any(each["queries"] for each in found.values()):
        raise UserError("The ground truth has no query with anything to find", "Check its lists easy and hard")
    bad = database.bad + queries.bad
    whole = "cut to their box" if config.crop_queries else "whole, not cut to their box"
    text = "\n".join([
        f"Retrieval on {config.data}: {len(row)} images, {len(asked)} queries",
        f"{'':8}{'mAP':>8}" + "".join(f"{f'mP@{n}':>8}" for n in config.k) + f"{'queries':>9}",
        *(
            f"{setup:8}" + "".join(_percent(v) for v in (each["mAP"], *each["mP"].values())) + f"{each['queries']:9}"
            for setup, each in found.items()
        ),
        "",
        f"percent; revisited Oxford/Paris (Radenovic et al. 2018), junk passed over, queries {whole}",
        seen.protocol + skipped(bad),
    ])  # fmt: skip
    fields = {"images": len(row), "skipped": len(bad), "protocol": f"queries {whole}; {seen.protocol}"}
    return Report(text, {"mAP": found["medium"]["mAP"], **found, **fields})


def _places(config: Config, source: Source, names: Sequence[str]) -> Mapping[str, int]:
    """Where in the source the images of the ground truth are: by path without suffix, or by file name alone."""
    known: dict[str, int] = {}
    twice: set[str] = set()
    for index in range(len(source)):
        path = PurePosixPath(source.key(index)).with_suffix("")
        for name in {str(path), path.name}:
            if name in known:
                twice.add(name)
            known[name] = index
    missing = [name for name in dict.fromkeys(names) if name not in known]
    if missing:
        raise UserError(
            f"{config.data} lacks {len(missing)} of the images that the ground truth names, e.g. {missing[0]}",
            "Give the folder with the images of that benchmark, at any depth",
        )
    if doubtful := twice.intersection(names):
        raise UserError(
            f"{config.data} has several images '{min(doubtful)}', which the ground truth names",
            "Give the folder with the images of that benchmark alone",
        )
    return known


def _cut(image: Image.Image, box: tuple[float, float, float, float] | None) -> Image.Image:
    if box is None:
        return image
    left, top = (max(0, round(side)) for side in box[:2])
    right, bottom = (min(size, round(side)) for side, size in zip(box[2:], image.size, strict=True))
    if left >= right or top >= bottom:
        raise BadImage(f"its box {box} lies outside of its {image.width} x {image.height} pixels")
    return image.crop((left, top, right, bottom))


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.2f}"
