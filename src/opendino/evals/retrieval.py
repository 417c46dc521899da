"""Image retrieval: mAP on revisited Oxford and Paris, or on any folder with one sub-folder per class."""

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
from opendino.datasets import roxford_rparis
from opendino.features.image_descriptors import Describe, skipped
from opendino.features.ranking_metrics import JUNK, POSITIVE, average_precision, precision_at, recall_at, search
from opendino.models.global_descriptor import SCALES, Descriptor
from opendino.models.load import load

_SIZE_PX = 512
# For each protocol of the benchmark: the ground truth lists that are positives, and those that are ignored.
_PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino eval retrieval`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
    """A folder with one sub-folder per class; with a ground truth file, the folder of the benchmark's images."""
    ground_truth: str | None = None
    """gnd_roxford5k.pkl, gnd_rparis6k.pkl or the same as JSON; default: the gnd_* file in DATA, if there is one."""
    size_px: PixelSize | None = None
    """Longer side of the input images, in pixels; default: 512 with a ground truth, else the model's training size."""
    multi_scale: bool = True
    """Average the features over the scales 1, 1/√2 and 1/2."""
    pool: Literal["cls", "gem"] = "cls"
    """cls: the image feature; gem: generalized mean (GeM) of the patch features."""
    gem_power: Annotated[float, Meta(gt=0, le=1000)] = 3.0
    """Exponent p of GeM pooling."""
    crop_queries: bool = True
    """Crop queries to their bounding box, as the benchmark requires; DINO v1 reports results without cropping."""
    whiten: str | None = None
    """A folder of unrelated images for fitting a PCA whitening."""
    k: Annotated[tuple[Count, ...], Meta(min_length=1)] = (1, 5, 10)
    """Values of k for precision and recall at k."""
    batch: Batch = 32
    """Images per batch; lower it if memory runs out."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def evaluate(config: Config) -> Report:
    """Mean average precision and precision at k; for a class folder also recall at k.

    Raises:
        UserError: The model, images or ground truth do not exist, or do not match.
    """
    if not config.data:
        raise UsageError(
            "DATA is missing", "Name a folder with one sub-folder per class: opendino eval retrieval MODEL DATA"
        )
    device = distributed.device(config.device)
    model, path = load(config.model, config.which).to(device), _ground_truth(config)
    source = model.reading.open_images(config.data)
    truth = roxford_rparis.read(path) if path else None
    size_px = config.size_px or (_SIZE_PX if truth else model.preprocessing["image_px"])
    scales = SCALES if config.multi_scale else (1.0,)
    descriptor = Descriptor(model, size_px, scales=scales, pool=config.pool, power=config.gem_power)
    describe = Describe(descriptor, device, config.whiten, centered=True, batch=config.batch)
    return _benchmark(config, source, truth, describe) if truth else _folders(config, source, describe)


def scores(ranks: Iterable[Tensor], k: Sequence[int]) -> dict[str, Any]:
    """Means over queries, in percent; queries without positives are skipped, as in the benchmark.

    Args:
        ranks: For each query the ranks of its P positives, int `[P]`, from 0, ascending.
        k: Values of k for precision and recall at k.

    Returns:
        {"mAP", "mP": {k: …}, "recall": {k: …}, "queries": number of queries with positives}; None if there are none.
    """
    precision, recall = dict.fromkeys(k, 0.0), dict.fromkeys(k, 0.0)
    area, num_queries = 0.0, 0
    for each in ranks:
        if len(each):
            num_queries += 1
            area += average_precision(each, len(each))
            for n in k:
                precision[n] += precision_at(each, n)
                recall[n] += recall_at(each, n)

    def mean(total: float) -> float | None:
        return 100 * total / num_queries if num_queries else None

    return {
        "mAP": mean(area),
        "mP": {str(n): mean(total) for n, total in precision.items()},
        "recall": {str(n): mean(total) for n, total in recall.items()},
        "queries": num_queries,
    }


def _ground_truth(config: Config) -> Path | None:
    """The ground truth file of the benchmark, if one is given or found in DATA."""
    if config.ground_truth:
        return Path(config.ground_truth).expanduser()
    folder = Path(config.data).expanduser()
    found = sorted(path for path in folder.glob("gnd_*") if path.suffix in (".pkl", ".json")) if folder.is_dir() else []
    if len(found) > 1:
        raise UserError(
            f"{config.data} has {len(found)} ground truth files", f"Choose one, e.g. --ground-truth {found[0]}"
        )
    return found[0] if found else None


def _folders(config: Config, source: Source, describe: Describe) -> Report:
    """Class folder: each image is a query against all others; images of its class are the positives."""
    if not source.classes:
        raise UserError(
            f"{config.data} has no classes", "Sort the images into one sub-folder per class, or give --ground-truth"
        )
    images = describe(source)
    known = {source.label(i) for i in images.kept} - {-1}
    if len(known) == 1:
        raise UserError(
            f"All images of {config.data} are of class {source.classes[known.pop()]}",
            "With one class any ranking is correct: use images of at least 2 classes",
        )
    vectors = images.features[:, 0]
    labels = torch.tensor([source.label(i) for i in images.kept], device=vectors.device)

    def relevance(query: int) -> Tensor:
        relevant = ((labels == labels[query]) & (labels >= 0)).to(torch.int8)
        relevant[query] = JUNK
        return relevant

    found = scores(search(vectors, vectors, relevance), config.k)
    if not found["queries"]:
        raise UserError(
            f"No class of {config.data} has two readable images", "Add images: a query needs another image of its class"
        )
    num_unused = len(images.kept) - found["queries"]
    # Recall@k is 100 % for any ranking if k exceeds the number of images of other classes.
    others = len(labels) - int(labels[labels >= 0].unique(return_counts=True)[1].min())
    found["recall"] = {n: value if int(n) <= others else None for n, value in found["recall"].items()}
    text = "\n".join([
        f"Retrieval on {config.data}: {len(images.kept)} images, {len(source.classes)} classes",
        f"{'mAP':>8}" + "".join(f"{f'mP@{n}':>8}" for n in config.k) + "".join(f"{f'R@{n}':>8}" for n in config.k),
        "".join(_percent(v) for v in (found["mAP"], *found["mP"].values(), *found["recall"].values())),
        "",
        "percent; each image is a query against all others; positives: images of its class; R@k: a positive in the top "
        f"k (not shown if k is so large that any ranking has one); {found['queries']:,} queries"
        + (f"; {num_unused} images without another of their class are not used as queries" if num_unused else ""),
        describe.protocol + skipped(images.bad),
    ])  # fmt: skip
    return Report(
        text, {**found, "images": len(images.kept), "skipped": len(images.bad), "protocol": describe.protocol}
    )


def _benchmark(config: Config, source: Source, truth: roxford_rparis.GroundTruth, describe: Describe) -> Report:
    """Revisited Oxford and Paris (Radenovic et al. 2018), protocols easy, medium and hard."""
    index_by_name = _index_by_name(config, source, [*truth.images, *(query.name for query in truth.queries)])

    def box(number: int, image: Image.Image) -> list[Image.Image]:
        return [_crop(image, truth.queries[number].box) if config.crop_queries else image]

    database = describe(source, [index_by_name[name] for name in truth.images])
    queries = describe(source, [index_by_name[query.name] for query in truth.queries], box)
    row = {position: row for row, position in enumerate(database.kept)}
    readable_queries = [truth.queries[number] for number in queries.kept]

    def evaluate_protocol(protocol: str) -> dict[str, Any]:
        def relevance(number: int) -> Tensor:
            out = torch.zeros(len(row), dtype=torch.int8)
            for kinds, value in zip(_PROTOCOLS[protocol], (POSITIVE, JUNK), strict=True):
                positions = [row[p] for kind in kinds for p in getattr(readable_queries[number], kind) if p in row]
                out[positions] = value
            return out.to(database.features.device)

        return scores(search(queries.features[:, 0], database.features[:, 0], relevance), config.k)

    found = {protocol: evaluate_protocol(protocol) for protocol in _PROTOCOLS}
    for each in found.values():
        del each["recall"]  # the benchmark does not report recall
    if not any(each["queries"] for each in found.values()):
        raise UserError("No query of the ground truth has a positive image", "Check its lists easy and hard")
    bad = database.bad + queries.bad
    crop_note = "cropped to their box" if config.crop_queries else "not cropped to their box"
    text = "\n".join([
        f"Retrieval on {config.data}: {len(row)} images, {len(readable_queries)} queries",
        f"{'':8}{'mAP':>8}" + "".join(f"{f'mP@{n}':>8}" for n in config.k) + f"{'queries':>9}",
        *(
            f"{protocol:8}" + "".join(_percent(v) for v in (each["mAP"], *each["mP"].values())) + f"{each['queries']:9}"
            for protocol, each in found.items()
        ),
        "",
        f"percent; revisited Oxford/Paris (Radenovic et al. 2018), junk ignored, queries {crop_note}",
        describe.protocol + skipped(bad),
    ])  # fmt: skip
    fields = {"images": len(row), "skipped": len(bad), "protocol": f"queries {crop_note}; {describe.protocol}"}
    return Report(text, {"mAP": found["medium"]["mAP"], **found, **fields})


def _index_by_name(config: Config, source: Source, names: Sequence[str]) -> Mapping[str, int]:
    """Image name → index in the source, by path without suffix and by file name without suffix."""
    known: dict[str, int] = {}
    repeated: set[str] = set()
    for index in range(len(source)):
        path = PurePosixPath(source.key(index)).with_suffix("")
        for name in {str(path), path.name}:
            if name in known:
                repeated.add(name)
            known[name] = index
    missing = [name for name in dict.fromkeys(names) if name not in known]
    if missing:
        raise UserError(
            f"{config.data} lacks {len(missing)} images of the ground truth, e.g. {missing[0]}",
            "Name the folder with the images of that benchmark, at any depth",
        )
    if ambiguous := repeated.intersection(names):
        raise UserError(
            f"{config.data} has several images named '{min(ambiguous)}', a name in the ground truth",
            "Name a folder with only the images of that benchmark",
        )
    return known


def _crop(image: Image.Image, box: tuple[float, float, float, float] | None) -> Image.Image:
    if box is None:
        return image
    # Round to whole pixels, and limit the box to the image.
    left, top = (max(0, round(side)) for side in box[:2])
    right, bottom = (min(size, round(side)) for side, size in zip(box[2:], image.size, strict=True))
    if left >= right or top >= bottom:
        raise BadImage(f"its box {box} is outside the image of {image.width} x {image.height} pixels")
    return image.crop((left, top, right, bottom))


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.2f}"
