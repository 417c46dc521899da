"""Weighted k-nearest-neighbor classification (Wu et al. 2018, arXiv:1805.01978), the protocol of DINO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from msgspec import Meta
from torch import Tensor

from opendino.core import distributed
from opendino.core.accuracy import NO_TOP5, Accuracy, baseline_text, standard_error
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Count, Repeats, Temperature, Workers
from opendino.core.types import Report
from opendino.features.baselines import baseline_features
from opendino.features.classification_metrics import accuracy_of, true_class_rank
from opendino.features.feature_table import FeatureTable
from opendino.features.nearest_neighbors import directed, nearest
from opendino.features.train_val_features import LabeledData, TrainValFeatures, train_val_features
from opendino.models.load import load

Weights = Literal["similarity", "uniform"]
_FEW_QUERIES = 50
_FEW = "few queries: `opendino eval linear` tests on every label once, by cross-validation"


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino eval knn`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    train: str | None = None
    """Labeled images to search for neighbors; default: the images the run was trained on."""
    labels: str = "auto"
    """Labels of --train: folders (sub-folders are classes), or a CSV of path,class; default: those of DATA."""
    val: str | None = None
    """Labeled images to classify; default: a fifth of --train is held out."""
    k: Annotated[tuple[Count, ...], Meta(min_length=1)] = (10, 20)
    """Numbers of neighbors to evaluate."""
    temperature: Temperature = 0.07
    """T of the weight exp(cosine / T) of each neighbor."""
    weights: Weights = "similarity"
    """similarity: weight exp(cosine / T); uniform: equal weights."""
    shots: Count | None = None
    """Few-shot: number of labeled images per class, sampled at random; default: all."""
    tries: Repeats = 5
    """Few-shot: number of random samples; mean and standard deviation are reported."""
    multi_label: bool = False
    """Multi-label: class names are lists such as "cat;dog", from a CSV of path,names; reports mAP."""
    baselines: bool = False
    """Also evaluate the same network untrained, and pixels with a color histogram; about twice the time."""
    batch: Batch = 64
    """Images per batch; lower it if memory runs out."""
    workers: Workers = 4
    """Number of threads that decode images."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Data type of the stored features; float16 halves their memory."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots and self.multi_label:
            raise UsageError("--shots and --multi-label were both given", "Remove one of the two flags")


def evaluate(config: Config) -> Report:
    """Classify images by their nearest neighbors.

    Raises:
        UserError: The model or images do not exist, have no labels, or cannot be read.
    """
    device = distributed.device(config.device)
    model = load(config.model, config.which).to(device)
    dtype = getattr(torch, config.feature_dtype)
    data = train_val_features(
        model,
        LabeledData(config.train, config.val, config.labels),
        batch=config.batch,
        workers=config.workers,
        dtype=dtype,
    )
    run_protocol = _multi_label if config.multi_label else _few_shot if config.shots else _standard
    notes, by_k = run_protocol(config, data, device)
    first = by_k[config.k[0]]
    warnings = [*([] if config.multi_label else data.notes), *_zero_features_note(data)]
    warnings += [NO_TOP5] if "top5" in first and first["top5"] is None else []
    fields: dict[str, Any] = {
        "k": config.k[0], "temperature": config.temperature, "weights": config.weights,
        "num_train": len(data.train), "num_val": len(data.val), "num_unreadable": len(data.bad),
        "notes": warnings, **first, "by_k": {str(k): by_k[k] for k in config.k},
    }  # fmt: skip
    votes = "equal weights" if config.weights == "uniform" else f"weights exp(cosine / {config.temperature:g})"
    baselines = {}
    if config.baselines:
        for name, other in baseline_features(model, data, config.batch, config.workers).items():
            baselines[name] = run_protocol(config, other, device)[1][config.k[0]]
        fields["baselines"] = baselines
    columns = {name: title for name, title in _COLUMNS.items() if first.get(name) is not None}
    lines = [
        f"k-NN of {config.model}: {len(data.val):,} images of {data.origin} among {len(data.train):,} of {data.data}",
        f"protocol: cosine of {model.backbone.name}'s image features, {votes}" + "".join(f"; {note}" for note in notes),
        *warnings,
        f"{'k':>6}" + "".join(f"{title:>10}" for title in columns.values()),
        *(f"{k:>6}" + "".join(f"{by_k[k][name]:>9.2f}%" for name in columns) for k in config.k),
        *(_baseline_line(name, config.k[0], found) for name, found in baselines.items()),
        *([] if config.multi_label else [baseline_text(first)]),
        *([_FEW] if config.val is None and len(data.val) < _FEW_QUERIES and not config.multi_label else []),
        *([] if config.baselines else ["beside the untrained network and pixels: --baselines True"]),
    ]
    return Report("\n".join(lines), fields)


def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    weights: Weights = "similarity",
) -> dict[int, tuple[float, float]]:
    """Top-1 and top-5 accuracy in percent for each k.

    Features are L2-normalized; each of the k nearest neighbors votes for its class, weighted by
    exp(cosine / temperature) or equally. Ties: the neighbor that is earlier in the bank, and the class with the lower
    label.

    Args:
        bank: float `[M D]`, the labeled features.
        bank_labels: int64 `[M]`; need not be contiguous.
        queries: float `[Q D]`.
        query_labels: int64 `[Q]`; a label that is not in the bank counts as an error.
        k: Numbers of neighbors, each limited to M.
        temperature: T > 0.
        weights: "similarity" or "uniform".

    Returns:
        k → (top-1, top-5) in percent.

    Raises:
        UserError: The bank is empty, or there are no queries.
    """
    found, num = true_class_ranks(bank, bank_labels, queries, query_labels, k, temperature, weights), len(queries)
    most = min(5, len(bank_labels.unique()))  # k neighbors vote for at most k classes
    return {
        each: (100 * int((p < 1).sum()) / num, 100 * int((p < min(most, each)).sum()) / num)
        for each, p in found.items()
    }


def true_class_ranks(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: Sequence[int],
    temperature: float = 0.07,
    weights: Weights = "similarity",
) -> dict[int, Tensor]:
    """Rank of the true class among the votes, from 0, int64 `[Q]` for each k; arguments as for `knn`.

    An image whose features cannot be normalized (zeros, NaN) has no vote, and counts as an error when it is a query.
    """
    classes, positions = bank_labels.unique(return_inverse=True)
    truth = torch.searchsorted(classes, query_labels).clamp_max(max(0, len(classes) - 1))
    truth = truth.where(classes[truth] == query_labels, -1) if len(classes) else truth
    found = {each: [] for each in k}
    for neighbors, votes, part in _votes(bank, queries, max(k), temperature, weights, len(classes)):
        for each in k:
            scores = votes.new_zeros(len(votes), len(classes))
            scores.scatter_add_(1, positions[neighbors[:, :each]], votes[:, :each])
            found[each].append(true_class_rank(scores, truth[part]))
    return {each: torch.cat(parts) for each, parts in found.items()}


def knn_multi_label(
    bank: Tensor,
    bank_targets: Tensor,
    queries: Tensor,
    query_targets: Tensor,
    k: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    weights: Weights = "similarity",
) -> dict[int, float]:
    """Mean average precision in percent for each k, for images with any number of labels.

    The score of a class is its fraction of the votes of the k neighbors. The mean is over classes with at least one
    query.

    Args:
        bank: float `[M D]`.
        bank_targets: binary `[M C]`.
        queries: float `[Q D]`.
        query_targets: binary `[Q C]`.
        k, temperature, weights: As for `knn`.

    Raises:
        UserError: The bank is empty, there are no queries, or no query has a label.
    """
    present = query_targets.any(0)
    if not present.any():
        raise UserError("No image to classify has a label", "Mean average precision needs labels: check --val")
    scores = {each: [] for each in k}
    for neighbors, votes, _ in _votes(bank, queries, max(k), temperature, weights, bank_targets.shape[1] * max(k)):
        for each in k:
            share = votes[:, :each, None] / votes[:, :each].sum(1)[:, None, None]
            shares = (share * bank_targets[neighbors[:, :each]]).sum(1)[:, present]
            scores[each].append(shares.nan_to_num(0).cpu())  # NaN: a query that cannot be normalized
    truth = query_targets[:, present].cpu()
    return {each: 100 * float(average_precision(torch.cat(parts), truth).mean()) for each, parts in scores.items()}


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision Σ (R_n - R_{n-1}) P_n, ties evaluated together, as in scikit-learn's average_precision_score.

    Args:
        scores: float `[Q C]`.
        targets: binary `[Q C]`, at least one 1 in every column.

    Returns:
        float64 `[C]` in [0, 1].
    """
    scores, order = scores.sort(dim=0, descending=True)
    found = targets.gather(0, order).double().cumsum(0)
    precision = found / torch.arange(1, len(scores) + 1)[:, None]
    areas = []
    for s, f, p in zip(scores.T, found.T, precision.T, strict=True):
        last = torch.cat([s[1:] != s[:-1], torch.ones(1, dtype=torch.bool)])  # last row of equal scores
        areas.append((f[last].diff(prepend=f.new_zeros(1)) * p[last]).sum() / f[-1])
    return torch.stack(areas)


def few_shot(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Indices of `shots` random images per class (all images of a smaller class), int64 `[≤ classes * shots]`."""
    order = torch.from_numpy(np.random.Generator(np.random.Philox(key=seed)).permutation(len(labels)))
    order = order[labels[order].argsort(stable=True)]  # grouped by class, in random order within each class
    _, counts = labels[order].unique_consecutive(return_counts=True)
    within_class = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[within_class < shots]


def _votes(
    bank: Tensor, queries: Tensor, k: int, temperature: float, weights: Weights, width: int
) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Neighbors (bank indices `[q k]`), votes `[q k]` and the slice of queries, one chunk of queries at a time.

    Votes are relative to the vote of the nearest neighbor, because exp(1 / T) can exceed the range of float32.
    """
    if not len(bank) or not len(queries):
        raise UserError(f"k-NN needs at least 1 labeled image and 1 query, got {len(bank)} and {len(queries)}")
    cosines, neighbors = nearest(bank, queries, min(k, len(bank)))
    votes = torch.ones_like(cosines) if weights == "uniform" else ((cosines - cosines[:, :1]) / temperature).exp()
    # A cosine of -inf marks features that cannot be normalized: no vote; NaN for all votes of such a query.
    votes.masked_fill_(cosines == -torch.inf, 0).masked_fill_(cosines[:, :1] == -torch.inf, torch.nan)
    chunk = max(1, 2**24 // max(1, width))
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        yield neighbors[part], votes[part], part


def _baseline_line(name: str, k: int, found: dict[str, Any]) -> str:
    if "mAP" in found:
        return f"{name}, k = {k}: mAP {found['mAP']:.2f}%"
    error, balanced = found["standard_error"], found["balanced_accuracy"]
    return f"{name}, k = {k}: {found['top1']:.2f}% ± {error:.2f}, balanced {balanced:.2f}%"


_Results = tuple[list[str], dict[int, dict[str, Any]]]
"""(notes on the protocol, k → metric name → value)."""
_COLUMNS = {
    "top1": "top1", "standard_error": "±", "top1_std": "top1_std", "top5": "top5", "top5_std": "top5_std",
    "balanced_accuracy": "balanced", "mAP": "mAP", "mAP_of_chance": "by chance",
}  # fmt: skip
"""Metrics in the printed table → column titles."""


def _zero_features_note(data: TrainValFeatures) -> list[str]:
    """A note if some features are all zero and have no neighbors."""
    num_zero = sum(int((~directed(side.features)).sum()) for side in (data.train, data.val))
    return [f"features of {num_zero:,} images are all zero: they have no vote and count as errors"] if num_zero else []


def _run(config: Config, data: TrainValFeatures, rows: Tensor | slice, device: torch.device) -> dict[int, Accuracy]:
    """k-NN with a subset of the labeled images as the bank."""
    bank = data.train.features[rows].to(device), data.train.labels[rows].to(device)
    queries = data.val.features.to(device), data.truth.to(device)
    found = true_class_ranks(*bank, *queries, config.k, config.temperature, config.weights)
    return {k: accuracy_of(each, queries[1], len(bank[1].unique()), most=k) for k, each in found.items()}


def _standard(config: Config, data: TrainValFeatures, device: torch.device) -> _Results:
    found = _run(config, data, slice(None), device)
    notes = [f"{len(data.train.labels.unique())} classes"]
    return notes, {k: each.fields for k, each in found.items()}


def _few_shot(config: Config, data: TrainValFeatures, device: torch.device) -> _Results:
    assert config.shots
    labels = data.train.labels
    runs = [_run(config, data, few_shot(labels, config.shots, seed), device) for seed in range(config.tries)]
    fewest = int(labels.unique(return_counts=True)[1].min())
    notes = [f"{config.shots} labeled images per class, mean and standard deviation over {config.tries} random samples"]
    if fewest < config.shots:
        notes.append(f"some classes have fewer, the smallest has {fewest}")

    def mean_and_std(each: list[Accuracy], name: str) -> dict[str, float | None]:
        values = [value for one in each if (value := getattr(one, name)) is not None]
        if not values:
            return {name: None, f"{name}_std": None}
        return {name: mean(values), f"{name}_std": stdev(values) if len(values) > 1 else 0.0}

    def summarize(each: list[Accuracy]) -> dict[str, Any]:
        summary: dict[str, Any] = each[0].fields
        for name in ("top1", "top5", "balanced_accuracy"):
            summary |= mean_and_std(each, name)
        return summary | {"standard_error": standard_error(summary["top1"], summary["num_queries"])}

    return notes, {k: summarize([each[k] for each in runs]) for k in config.k}


def _multi_label(config: Config, data: TrainValFeatures, device: torch.device) -> _Results:
    lists = [[{*map(str.strip, name.split(";"))} - {""} for name in side.classes] for side in (data.train, data.val)]
    names = sorted(set[str]().union(*lists[0], *lists[1]))

    def targets(side: FeatureTable, own: list[set[str]]) -> Tensor:
        return torch.tensor([[float(name in each) for name in names] for each in own])[side.labels].to(device)

    bank = data.train.features.to(device), targets(data.train, lists[0])
    queries = data.val.features.to(device), targets(data.val, lists[1])
    shares = queries[1].mean(0)[queries[1].any(0)]  # fraction of queries with each label: the mAP of a random ranking
    if len(shares) and (shares == 1).all():
        raise UserError(
            f"Every image of {data.origin} has the same labels",
            "Any ranking is then correct: add images with other labels",
        )
    extra = {"mAP_of_chance": 100 * float(shares.mean()), "num_queries": len(queries[1])}
    found = knn_multi_label(*bank, *queries, config.k, config.temperature, config.weights)
    return [f"{len(names)} labels, mean average precision"], {k: {"mAP": value, **extra} for k, value in found.items()}
