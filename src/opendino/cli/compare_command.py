"""Compare models on the same images: opendino compare MODEL MODEL ... --train DIR [--val DIR] | --data DATA"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from opendino import existing_runs
from opendino.cli import Outcome, flags
from opendino.comparison import MOST_COMPARED, crop_scores, thinned
from opendino.config import read_tree
from opendino.core import distributed
from opendino.core.accuracy import Accuracy
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Count, Workers
from opendino.evals.knn import true_class_ranks
from opendino.features.baselines import UNTRAINED, baseline_features, untrained_features
from opendino.features.classification_metrics import accuracy_of
from opendino.features.feature_table import table
from opendino.features.paired_change import Change, change
from opendino.features.train_val_features import LabeledData, TrainValFeatures, train_val_features
from opendino.models.load import Model, load

_UNPAIRED = "other images could be read"


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino compare`."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folders, model folders or timm:NAME; each is compared with the first."""
    train: str | None = None
    """Labeled images to search for neighbors."""
    val: str | None = None
    """Labeled images to classify; default: a fifth of --train is held out."""
    labels: str = "auto"
    """Labels of --train and --val: folders (sub-folders are classes) or a CSV of path,class."""
    data: str | None = None
    """Images without labels, instead of --train: do two crops of an image find each other?"""
    k: Annotated[Count, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of neighbors."""
    baselines: bool = True
    """With --train: also each network untrained, and pixels with a color histogram."""
    batch: Batch = 64
    """Images per batch; lower it if memory runs out."""
    workers: Workers = 4
    """Number of threads that decode images."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


@dataclass(frozen=True)
class _Row:
    """What one model came to.

    Attributes:
        name: As it was given.
        scores: Per image, 0 to 1, float `[N]`.
        shown: The figure in words, without its error.
        fields: The same for scripts.
        change: Against the first model, on the same images; None for the first.
    """

    name: str
    scores: Tensor
    shown: str
    fields: dict[str, Any]
    change: Change | None = None


def run(args: list[str]) -> Outcome:
    """Evaluate each model on the same images, and compare image by image with the first."""
    config = flags.parse(Config, args, "opendino compare", "Compare models on the same images.")
    if not config.models:
        raise UsageError("No model was named", "Give two or more: opendino compare RUN timm:NAME --train DIR --val DIR")
    if (config.train is None) == (config.data is None):
        raise UsageError(
            "compare takes either labeled images or images without labels",
            "Give --train DIR (and --val DIR), or --data DATA",
        )
    began = time.monotonic()
    models = [load(name) for name in config.models]  # all now: a missing one is an error before any is evaluated
    rows = [*(_by_labels if config.train else _by_crops)(config, models)]
    runs = {name: run for name in config.models if (run := _run(name))}
    lines = [_heading(config, rows), *_table(rows, runs)]
    fields = {
        "measure": "knn" if config.train else "crops", "k": config.k, "num_images": len(rows[0].scores),
        "models": {
            row.name: row.fields | runs.get(row.name, {}) | ({"change": row.change.__dict__} if row.change else {})
            for row in rows
        },
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    return Outcome("\n".join(lines), fields)


def _by_labels(config: Config, models: Sequence[Model]) -> Iterator[_Row]:
    first = positions = torch.empty(0)
    for name, data in _features(config, models):
        truth = data.truth
        bank, queries = (data.train.features, data.train.labels), (data.val.features, truth)
        ranks = true_class_ranks(*bank, *queries, [config.k])[config.k]
        found, scores = accuracy_of(ranks, truth, len(data.train.labels.unique()), most=config.k), (ranks == 0).double()
        if not len(first):
            first, positions = scores, data.val.indices
        if not torch.equal(positions, data.val.indices):
            raise UserError(f"{name} cannot be compared: {_UNPAIRED}", "Remove the images that cannot be read")
        compared = change(first, scores) if first is not scores else None
        yield _Row(name, scores, _shown(found), found.fields, compared)


def _features(config: Config, models: Sequence[Model]) -> Iterator[tuple[str, TrainValFeatures]]:
    device, baselines = distributed.device(config.device), dict[str, TrainValFeatures]()
    networks, untrained = [_network(model) for model in models], dict[str, TrainValFeatures]()
    for number, (name, model) in enumerate(zip(config.models, models, strict=True)):
        model.to(device)
        data = train_val_features(
            model, LabeledData(config.train, config.val, config.labels), batch=config.batch, workers=config.workers
        )
        yield name, data
        if not config.baselines or networks.index(networks[number]) < number:
            continue
        of = f"{UNTRAINED} of {name}" if len({*networks}) > 1 else UNTRAINED
        if number == 0:
            baselines = baseline_features(model, data, config.batch, config.workers)
            untrained[of] = baselines.pop(UNTRAINED)
        else:
            untrained[of] = untrained_features(model, data, config.batch, config.workers)
    yield from (untrained | baselines).items()


def _network(model: Model) -> str:
    """What decides the features of a model before it is trained: its tensors' shapes, and how images are prepared."""
    shapes = {name: tuple(each.shape) for name, each in model.backbone.state_dict().items()}
    return repr((model.backbone.name, shapes, model.preprocessing))


def _run(name: str) -> dict[str, Any]:
    """Method, steps and verdict of a run folder; nothing for other models."""
    folder = Path(name).expanduser()
    if not ((folder / "metrics.jsonl").is_file() and (folder / "config.yaml").is_file()):
        return {}
    settings = read_tree(folder / "config.yaml")
    method = settings.get("method")
    if not isinstance(settings.get("steps"), int) or not isinstance(method, dict):
        return {}
    found = existing_runs.verdict_on(folder, settings)
    return {"method": str(method.get("name")), "steps": settings["steps"], "verdict": found.name}


def _table(rows: Sequence[_Row], runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line per model; if there are runs among them, with method, steps and verdict."""
    columns = [[row.name for row in rows]]
    if runs:
        of_rows = [runs.get(row.name, {"method": "", "steps": "", "verdict": ""}) for row in rows]
        columns += [[each["method"] for each in of_rows]]
        columns += [[f"{each['steps']:,} steps" if each["steps"] else "" for each in of_rows]]
        columns += [[each["verdict"] for each in of_rows]]
    widths = [max(map(len, column)) for column in columns]
    cells = zip(*columns, strict=True)
    starts = ["  ".join(f"{text:<{width}}" for text, width in zip(each, widths, strict=True)) for each in cells]
    return [f"{start}  {row.shown}{_difference(row)}" for start, row in zip(starts, rows, strict=True)]


def _by_crops(config: Config, models: Sequence[Model]) -> Iterator[_Row]:
    assert config.data is not None
    device, first = distributed.device(config.device), None
    for name, model in zip(config.models, models, strict=True):
        model.to(device)
        images = thinned(model.reading.open_images(config.data), MOST_COMPARED)
        scores = crop_scores(model, images)
        if not len(scores):
            table(model, images)  # the reason, if none can be read
            raise UserError(f"{config.data} has fewer than two readable images", "Give more images")
        compared = change(first, scores) if first is not None else None
        first = scores if first is None else first
        if len(first) != len(scores):
            raise UserError(f"{name} cannot be compared: {_UNPAIRED}", "Remove the images that cannot be read")
        percent = 100 * float(scores.mean())
        yield _Row(name, scores, f"{percent:.1f}%", {"crop_match": percent}, compared)


def _shown(found: Accuracy) -> str:
    return f"{found.top1:5.1f}% ± {found.standard_error:.1f}, balanced {found.balanced_accuracy:.1f}%"


def _difference(row: _Row) -> str:
    return f", against the first {row.change.against}" if row.change else ""


def _heading(config: Config, rows: list[_Row]) -> str:
    num = f"{len(rows[0].scores):,} images"
    if config.train:
        majority = rows[0].fields["majority"]
        where = f"{config.val} among {config.train}" if config.val else f"a fifth of {config.train}, held out"
        return f"k-NN, k = {config.k}, of {num} of {where}; always the most frequent class: {majority:.1f}%"
    return f"how often two crops of an image find each other (chance 50%), {num} of {config.data}"
