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
from opendino.core.accuracy import NO_TOP5, Accuracy, standard_error, yardstick
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Count, Repeats, Temperature, Workers
from opendino.core.types import Report
from opendino.features.classification_metrics import accuracy_of, place
from opendino.features.feature_table import FeatureTable
from opendino.features.nearest_neighbors import directed, nearest
from opendino.features.train_val_features import TrainValFeatures, train_val_features
from opendino.models.load import load

Weights = Literal["similarity", "uniform"]


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino eval knn` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; the one to use by default."""
    train: str | None = None
    """Labeled images to look for neighbors among; those that a run was trained on by default."""
    val: str | None = None
    """Labeled images to classify; without it a fifth of --train is held out."""
    k: Annotated[tuple[Count, ...], Meta(min_length=1)] = (10, 20)
    """Numbers of neighbors that vote."""
    temperature: Temperature = 0.07
    """T: a neighbor's vote is exp(cosine / T)."""
    weights: Weights = "similarity"
    """similarity: votes by the temperature; uniform: one vote each."""
    shots: Count | None = None
    """Few-shot: label only so many images of each class, drawn at random."""
    tries: Repeats = 5
    """Few-shot: how many draws; their mean and standard deviation are reported."""
    multi_label: bool = False
    """An image may have several labels: names of classes are lists such as "cat;dog", in a CSV of path,names."""
    batch: Batch = 64
    """Images at a time."""
    workers: Workers = 4
    """Threads that decode images."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Of the stored features; float16 halves their memory."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots and self.multi_label:
            raise UsageError("--shots and --multi-label were both given", "Give one of them")


def evaluate(config: Config) -> Report:
    """Classify images by their neighbors.

    Raises:
        UserError: No such model or images, no labels, or nothing that can be read.
    """
    device = distributed.device(config.device)
    model = load(config.model, config.which).to(device)
    dtype = getattr(torch, config.feature_dtype)
    both = train_val_features(model, config.train, config.val, batch=config.batch, workers=config.workers, dtype=dtype)
    judge = _multi_label if config.multi_label else _few_shot if config.shots else _plain
    notes, by_k = judge(config, both, device)
    first = by_k[config.k[0]]
    said = [*([] if config.multi_label else both.notes), *_lost(both)]
    said += [NO_TOP5] if "top5" in first and first["top5"] is None else []
    fields: dict[str, Any] = {
        "k": config.k[0], "temperature": config.temperature, "weights": config.weights,
        "num_train": len(both.train), "num_val": len(both.val), "num_unreadable": len(both.bad),
        "notes": said, **first, "by_k": {str(k): by_k[k] for k in config.k},
    }  # fmt: skip
    votes = "one vote each" if config.weights == "uniform" else f"votes exp(cosine / {config.temperature:g})"
    columns = {name: told for name, told in _COLUMNS.items() if first.get(name) is not None}
    lines = [
        f"k-NN of {config.model}: {len(both.val):,} images of {both.origin} among {len(both.train):,} of {both.data}",
        f"protocol: cosine of {model.backbone.name}'s image features, {votes}" + "".join(f"; {note}" for note in notes),
        *said,
        f"{'k':>6}" + "".join(f"{told:>10}" for told in columns.values()),
        *(f"{k:>6}" + "".join(f"{by_k[k][name]:>9.2f}%" for name in columns) for k in config.k),
        *([] if config.multi_label else [yardstick(first)]),
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

    Features are L2-normalized; each of the k nearest neighbors votes for its class, with exp(cosine / temperature) or
    with one vote. Among equally near neighbors the earlier in the bank comes first, among classes with equal votes
    the lower label.

    Args:
        bank: float `[M D]`, the labeled features.
        bank_labels: int64 `[M]`, any numbers.
        queries: float `[Q D]`.
        query_labels: int64 `[Q]`; a label that the bank lacks cannot be guessed right.
        k: Numbers of neighbors; more than M counts as M.
        temperature: T above 0.
        weights: "similarity" or "uniform".

    Raises:
        UserError: An empty bank or no queries.
    """
    found, num = places(bank, bank_labels, queries, query_labels, k, temperature, weights), len(queries)
    most = min(5, len(bank_labels.unique()))  # of k voters at most k classes are ranked
    return {
        each: (100 * int((p < 1).sum()) / num, 100 * int((p < min(most, each)).sum()) / num)
        for each, p in found.items()
    }


def places(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: Sequence[int],
    temperature: float = 0.07,
    weights: Weights = "similarity",
) -> dict[int, Tensor]:
    """How many classes get more votes than the true one, int64 `[Q]` for each k; arguments as for `knn`.

    An image without a direction, such as features of zeros, has no vote, and as a query it is never right.
    """
    classes, positions = bank_labels.unique(return_inverse=True)
    truth = torch.searchsorted(classes, query_labels).clamp_max(max(0, len(classes) - 1))
    truth = truth.where(classes[truth] == query_labels, -1) if len(classes) else truth
    found = {each: [] for each in k}
    for voters, votes, some in _ballots(bank, queries, max(k), temperature, weights, len(classes)):
        for each in k:
            scores = votes.new_zeros(len(votes), len(classes))
            scores.scatter_add_(1, positions[voters[:, :each]], votes[:, :each])
            found[each].append(place(scores, truth[some]))
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
    """Mean average precision in percent for each k, where an image may belong to several classes or to none.

    A class's score is its share of the k neighbors' votes. The mean is over classes that some query has.

    Args:
        bank: float `[M D]`.
        bank_targets: 0/1 `[M C]`.
        queries: float `[Q D]`.
        query_targets: 0/1 `[Q C]`.
        k, temperature, weights: As for `knn`.

    Raises:
        UserError: An empty bank, no queries, or queries without any class.
    """
    present = query_targets.any(0)
    if not present.any():
        raise UserError("No image to classify has a label", "Mean average precision needs some")
    scores = {each: [] for each in k}
    for voters, votes, _ in _ballots(bank, queries, max(k), temperature, weights, bank_targets.shape[1] * max(k)):
        for each in k:
            share = votes[:, :each, None] / votes[:, :each].sum(1)[:, None, None]
            shares = (share * bank_targets[voters[:, :each]]).sum(1)[:, present]
            scores[each].append(shares.nan_to_num(0).cpu())  # of a query without a direction
    truth = query_targets[:, present].cpu()
    return {each: 100 * float(average_precision(torch.cat(parts), truth).mean()) for each, parts in scores.items()}


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Area under the steps of precision over recall, equal scores taken together: Σ (R_n - R_{n-1}) P_n.

    Args:
        scores: float `[Q C]`.
        targets: 0/1 `[Q C]`, a 1 in every column.

    Returns:
        float64 `[C]` in [0, 1].
    """
    scores, order = scores.sort(dim=0, descending=True)
    found = targets.gather(0, order).double().cumsum(0)
    precision = found / torch.arange(1, len(scores) + 1)[:, None]
    areas = []
    for s, f, p in zip(scores.T, found.T, precision.T, strict=True):
        last = torch.cat([s[1:] != s[:-1], torch.ones(1, dtype=torch.bool)])  # of those with this score
        areas.append((f[last].diff(prepend=f.new_zeros(1)) * p[last]).sum() / f[-1])
    return torch.stack(areas)


def few_shot(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Positions of up to `shots` images of each class, drawn by the seed; all of a class that has fewer."""
    order = torch.from_numpy(np.random.Generator(np.random.Philox(key=seed)).permutation(len(labels)))
    order = order[labels[order].argsort(stable=True)]  # class by class, each in its random order
    _, counts = labels[order].unique_consecutive(return_counts=True)
    turn = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[turn < shots]


def _ballots(
    bank: Tensor, queries: Tensor, k: int, temperature: float, weights: Weights, width: int
) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """The voters `[q k]`, positions in the bank, and their votes, for a part of the queries at a time.

    Votes are relative to the nearest neighbor's: exp(1 / T) by itself may exceed float32.
    """
    if not len(bank) or not len(queries):
        raise UserError(f"k-NN needs features on both sides, got {len(bank)} and {len(queries)}")
    cosines, voters = nearest(bank, queries, min(k, len(bank)))
    votes = torch.ones_like(cosines) if weights == "uniform" else ((cosines - cosines[:, :1]) / temperature).exp()
    votes.masked_fill_(cosines == -torch.inf, 0).masked_fill_(cosines[:, :1] == -torch.inf, torch.nan)
    chunk = max(1, 2**24 // max(1, width))
    for start in range(0, len(queries), chunk):
        some = slice(start, start + chunk)
        yield voters[some], votes[some], some


_Judged = tuple[list[str], dict[int, dict[str, Any]]]
"""Notes on the protocol, and for each k the figures by their names."""
_COLUMNS = {
    "top1": "top1", "standard_error": "±", "top1_std": "top1_std", "top5": "top5", "top5_std": "top5_std",
    "balanced_accuracy": "balanced", "mAP": "mAP", "mAP_of_chance": "by chance",
}  # fmt: skip
"""Figures that people are shown, and their heads."""


def _lost(both: TrainValFeatures) -> list[str]:
    """A line where features are zero: nothing is near to them."""
    lost = sum(int((~directed(side.features)).sum()) for side in (both.train, both.val))
    return [f"features of {lost:,} images are all zero: these have no vote and count as wrong"] if lost else []


def _run(config: Config, both: TrainValFeatures, rows: Tensor | slice, device: torch.device) -> dict[int, Accuracy]:
    """k-NN among some rows of the labeled images."""
    bank = both.train.features[rows].to(device), both.train.labels[rows].to(device)
    queries = both.val.features.to(device), both.truth.to(device)
    found = places(*bank, *queries, config.k, config.temperature, config.weights)
    return {k: accuracy_of(each, queries[1], len(bank[1].unique()), most=k) for k, each in found.items()}


def _plain(config: Config, both: TrainValFeatures, device: torch.device) -> _Judged:
    found = _run(config, both, slice(None), device)
    notes = [f"{len(both.train.labels.unique())} classes"]
    return notes, {k: each.fields for k, each in found.items()}


def _few_shot(config: Config, both: TrainValFeatures, device: torch.device) -> _Judged:
    assert config.shots
    labels = both.train.labels
    runs = [_run(config, both, few_shot(labels, config.shots, seed), device) for seed in range(config.tries)]
    fewest = int(labels.unique(return_counts=True)[1].min())
    notes = [f"{config.shots} labeled images a class, mean and standard deviation over {config.tries} draws"]
    if fewest < config.shots:
        notes.append(f"some classes have fewer, the smallest {fewest}")

    def over(each: list[Accuracy], name: str) -> dict[str, float | None]:
        values = [value for one in each if (value := getattr(one, name)) is not None]
        if not values:
            return {name: None, f"{name}_std": None}
        return {name: mean(values), f"{name}_std": stdev(values) if len(values) > 1 else 0.0}

    def figures(each: list[Accuracy]) -> dict[str, Any]:
        made: dict[str, Any] = each[0].fields
        for name in ("top1", "top5", "balanced_accuracy"):
            made |= over(each, name)
        return made | {"standard_error": standard_error(made["top1"], made["num_queries"])}

    return notes, {k: figures([each[k] for each in runs]) for k in config.k}


def _multi_label(config: Config, both: TrainValFeatures, device: torch.device) -> _Judged:
    lists = [[{*map(str.strip, name.split(";"))} - {""} for name in side.classes] for side in (both.train, both.val)]
    names = sorted(set[str]().union(*lists[0], *lists[1]))

    def targets(side: FeatureTable, own: list[set[str]]) -> Tensor:
        return torch.tensor([[float(name in each) for name in names] for each in own])[side.labels].to(device)

    bank = both.train.features.to(device), targets(both.train, lists[0])
    queries = both.val.features.to(device), targets(both.val, lists[1])
    shares = queries[1].mean(0)[queries[1].any(0)]  # of the queries that have it, for each label that some have
    if len(shares) and (shares == 1).all():
        raise UserError(
            f"Every image of {both.origin} has the same labels", "With these every order is right: give others too"
        )
    also = {"mAP_of_chance": 100 * float(shares.mean()), "num_queries": len(queries[1])}
    found = knn_multi_label(*bank, *queries, config.k, config.temperature, config.weights)
    return [f"{len(names)} labels, mean average precision"], {k: {"mAP": value, **also} for k, value in found.items()}
