"""Batch effects: how well device, session, plate or date can be read from the features, beside the class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from opendino.core import distributed
from opendino.core.contracts import Source
from opendino.core.errors import UserError, unknown
from opendino.core.progress import track
from opendino.core.ranges import Batch, Checked, Count, Repeats, Seed, Workers
from opendino.core.types import Report
from opendino.data.labels import relabel
from opendino.data.metadata import class_column, folder_column, group_columns, read_metadata, with_classes
from opendino.data.sampler import permutation
from opendino.data.train_val_overlap import only_in_val
from opendino.features.classification_metrics import association, balanced_accuracy
from opendino.features.feature_table import table
from opendino.features.image_stream import skipped_message
from opendino.features.linear_discriminant import linear_discriminant
from opendino.features.nearest_neighbors import nearest
from opendino.features.permutation_test import p_value
from opendino.features.train_val_features import data_of
from opendino.models.load import Model, load

_AT_ONCE = 2**24  # labels shuffled at a time
_FEWEST = 5  # images of a group, in training and in validation, to train on it or to test it
Probe = Literal["linear", "knn"]
PROBES: tuple[Probe, Probe] = ("linear", "knn")
SIDES = ("with", "without")
_Part = tuple[Source, dict[str, list[str]], list[int]]
"""Images with their classes, columns, and positions of the images to use."""


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino eval confounders`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    labels: str = ""
    """CSV with a header and one row per image: path, and columns such as device, session, plate or date; default: the
    sub-folder of each image is the only column; images beside the sub-folders are left out."""
    columns: tuple[str, ...] = ()
    """Columns of the CSV to test; default: those with 2 to 50 values, without path, class and split."""
    classes: Literal["auto", "folders", "none"] = "auto"
    """folders: sub-folders are classes; none: there are no classes, e.g. sub-folders are dates. auto: the class column
    of the CSV, else those of DATA; if these are sub-folders, the report says so."""
    train: str | None = None
    """Images to train the probes on; default: the images the run was trained on."""
    val: str | None = None
    """Images to test the probes on, other ones than --train; default: a fifth of --train is held out."""
    k: Annotated[Count, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of neighbors of the k-NN."""
    permutations: Repeats = 1000
    """Number of times the groups of the test images are shuffled; the p-value is at least 1 / (1 + permutations)."""
    seed: Seed = 0
    """Random seed of the permutations."""
    batch: Batch = 64
    """Images per batch; lower it if memory runs out."""
    workers: Workers = 4
    """Number of threads that decode images."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


@dataclass(frozen=True)
class Readability:
    """How well labels can be read from features.

    Attributes:
        balanced_accuracy: Mean of the recalls of the labels, in percent.
        standard_error: Of the balanced accuracy, in percentage points.
        by_chance: Mean balanced accuracy of shuffled labels, in percent.
        p: Probability of this balanced accuracy or a higher one by chance, in (0, 1].
    """

    balanced_accuracy: float
    standard_error: float
    by_chance: float
    p: float

    def __str__(self) -> str:
        return f"{self.balanced_accuracy:.1f}% ± {self.standard_error:.1f}"


@dataclass(frozen=True)
class Images:
    """Features of training and validation images, with their labels.

    Attributes:
        features: float `[M D]`.
        val: bool `[M]`, images to test on; the others are to train on.
        classes: int64 `[M]`, class; -1 where unknown.
        class_names: Names of the classes.
        groups: Name of a column → int64 `[M]`, group; -1 where unknown.
        group_names: Name of a column → names of its groups.
    """

    features: Tensor
    val: Tensor
    classes: Tensor
    class_names: tuple[str, ...]
    groups: dict[str, Tensor]
    group_names: dict[str, tuple[str, ...]]


def evaluate(config: Config) -> Report:
    """Read the groups of each column, and the class, from frozen features.

    Raises:
        UserError: The model, the images or the CSV cannot be read, or no column has groups.
    """
    device = distributed.device(config.device)
    model = load(config.model, config.which).to(device)
    data = data_of(model, config.train, "Give images: --train DIR")
    images, notes, kind = _load_images(config, model, data)
    num_val = int(images.val.sum())
    fields: dict[str, Any] = {
        "labels": config.labels, "num_train": len(images.val) - num_val, "num_val": num_val, "k": config.k,
        "permutations": config.permutations, "notes": notes, "class": None, "columns": {},
    }  # fmt: skip
    lines = [
        f"confounders of {config.model}: probes trained on {fields['num_train']:,} images of {data}, tested on "
        f"{num_val:,} of {config.val or 'it, held out'}",
        *notes,
        f"{'balanced accuracy':<36}{'linear':>15}{f'k-NN, k = {config.k}':>18}{'by chance':>11}"
        f"{'p linear':>10}{'p k-NN':>8}",
    ]
    if images.class_names:
        found = {probe: readability(images, images.classes, None, probe, config) for probe in PROBES}
        fields["class"] = {"num": len(images.class_names), "confirmed": kind == "class"}
        fields["class"] |= {probe: asdict(each) for probe, each in found.items()}
        lines.append(_row(f"{kind} ({len(images.class_names)})", found))
    last: list[str] = []
    for column, groups in images.groups.items():
        strata = images.classes if images.class_names else None
        found = {probe: readability(images, groups, strata, probe, config) for probe in PROBES}
        lines.append(_row(f"{column} ({len(images.group_names[column])})", found))
        entry: dict[str, Any] = {"num": len(images.group_names[column])}
        entry |= {probe: asdict(each) for probe, each in found.items()}
        entry |= {"association": None, "across": None}
        if strata is not None:
            entry |= {"association": association(strata, groups), "across": across(images, column, config.k)}
            lines += _across_lines(column, entry, kind)
        last += [_verdict(column, found, config.permutations), *_together(column, entry, kind)]
        fields["columns"][column] = entry
    return Report("\n".join([*lines, *last]), fields)


def readability(images: Images, labels: Tensor, strata: Tensor | None, probe: Probe, config: Config) -> Readability:
    """Train a probe for some labels, and test it against chance.

    The test shuffles the labels of the validation images, within each stratum: groups shuffled within the classes are
    not found only because they go with the class. Nothing is trained again, since the predictions stay the same.

    Args:
        images: Their features and split.
        labels: int64 `[M]`; images with -1 are not used.
        strata: int64 `[M]`, e.g. the class; None to shuffle all.
        probe: linear: linear discriminant; knn: majority of the k nearest by cosine.
        config: For k, permutations and seed.
    """
    train, val = ~images.val & (labels >= 0), images.val & (labels >= 0)
    predicted = predict(images.features, labels, (train, val), probe, config.k)
    truth, generator = labels[val], torch.Generator().manual_seed(config.seed)
    observed, error = balanced_accuracy(predicted, truth)
    weights = 1 / torch.bincount(truth).double().clamp_min(1) / len(truth.unique())
    strata = torch.zeros_like(truth) if strata is None else strata[val]
    ordered = strata.argsort(stable=True)
    permuted = []
    num = max(1, _AT_ONCE // len(truth))
    for part in track(torch.arange(config.permutations).split(num), "permutations", config.permutations, num):
        # sorting by stratum + random number shuffles within each stratum
        keys = strata + torch.rand(len(part), len(truth), generator=generator, dtype=torch.float64)
        shuffled = torch.empty(len(part), len(truth), dtype=torch.int64)
        shuffled[:, ordered] = truth[keys.argsort(1)]  # [P Q]
        permuted.append(100 * ((shuffled == predicted) * weights[shuffled]).sum(1))
    by_chance = torch.cat(permuted)
    return Readability(observed, error, float(by_chance.mean()), p_value(observed, by_chance, generator))


def predict(features: Tensor, labels: Tensor, rows: tuple[Tensor, Tensor], probe: Probe, k: int) -> Tensor:
    """Labels int64 `[Q]` that a probe predicts.

    Args:
        features: float `[M D]`.
        labels: int64 `[M]`, ≥ 0 in the training rows.
        rows: bool `[M]` each: rows to train on, at least one, and Q rows to predict.
        probe: linear or knn.
        k: Number of neighbors, limited to the number of training rows.
    """
    bank, queries, known = features[rows[0]], features[rows[1]], labels[rows[0]]
    num = int(known.max()) + 1
    if probe == "linear":
        weight, bias = linear_discriminant(bank, known, num)
        return (queries.double() @ weight + bias).argmax(1)
    neighbors = nearest(bank, queries, min(k, len(bank)))[1]
    votes = torch.zeros(len(queries), num).scatter_add_(1, known[neighbors], torch.ones(neighbors.shape))
    return votes.argmax(1)


def across(images: Images, column: str, k: int) -> dict[str, Any] | None:
    """Read the class of each validation image by probes trained with and without images of its own group.

    Both training sets have the same number of images of each class: where the probe is trained with the group, as many
    images of each class as the group has are left out at random. Only images whose class also occurs in the training
    images of other groups are tested.

    Returns:
        num: Number of images tested; classes: number of their classes; for each probe the balanced accuracies `with`
        and `without` in percent with their standard errors; groups: the same for the images of each group. None if
        fewer than two classes can be tested.
    """
    groups, classes = images.groups[column], images.classes
    train = ~images.val & (classes >= 0) & (groups >= 0)
    names, sides, tests = [], [], []
    for label, name in enumerate(images.group_names[column]):
        own = groups == label
        test = images.val & own & torch.isin(classes, classes[train & ~own])
        if test.any():
            names.append(name)
            sides.append({"with": _without_as_many(train, train & own, classes), "without": train & ~own})
            tests.append(test)
    tested = torch.stack([torch.zeros_like(train), *tests]).any(0)
    num_classes = len(classes[tested].unique())
    if num_classes < 2:
        return None
    found: dict[str, Any] = {"num": int(tested.sum()), "classes": num_classes}
    found["groups"] = [{"group": name, "num": int(test.sum())} for name, test in zip(names, tests, strict=True)]
    for probe in PROBES:
        predicted = {side: torch.full_like(classes, -1) for side in SIDES}
        for rows, test in zip(sides, tests, strict=True):
            for side in SIDES:
                predicted[side][test] = predict(images.features, classes, (rows[side], test), probe, k)
        found[probe] = _compared(predicted, classes, tested)
        for each, test in zip(found["groups"], tests, strict=True):
            each[probe] = _compared(predicted, classes, test)
    return found


def _without_as_many(train: Tensor, own: Tensor, classes: Tensor) -> Tensor:
    """Training rows bool `[M]` without as many random rows of each class as `own` has."""
    kept, generator = train.clone(), torch.Generator().manual_seed(0)
    for label, num in zip(*(each.tolist() for each in classes[own].unique(return_counts=True)), strict=True):
        rows = (train & (classes == label)).nonzero()[:, 0]
        kept[rows[torch.randperm(len(rows), generator=generator)[:num]]] = False
    return kept


def _compared(predicted: dict[str, Tensor], classes: Tensor, rows: Tensor) -> dict[str, float]:
    """Balanced accuracies of some rows, with their standard errors."""
    found = {}
    for name, each in predicted.items():
        found[name], found[f"{name}_standard_error"] = balanced_accuracy(each[rows], classes[rows])
    return found


def _load_images(config: Config, model: Model, data: str) -> tuple[Images, list[str], str]:
    """Features and labels of both sets, notes for the report, and what the classes are: "class" or "sub-folder"."""
    parts, notes = _opened(config, model, data)
    tables = [
        table(model, source, indices=rows, batch=config.batch, workers=config.workers) for source, _, rows in parts
    ]
    bad = sum((each.bad for each in tables), ())
    names = sorted(set().union(*(source.classes for source, _, _ in parts)))
    classes = torch.cat([each.labels_by(names) for each in tables])
    if config.val is None:
        val = torch.zeros(len(classes), dtype=torch.bool)
        val[permutation(len(val), 0, 0)[: math.ceil(len(val) / 5)]] = True
    else:
        val = torch.arange(len(classes)) >= len(tables[0])
    values = {
        name: [
            columns[name][i] for (_, columns, _), each in zip(parts, tables, strict=True) for i in each.indices.tolist()
        ]
        for name in parts[0][1]
    }
    notes += [skipped_message(bad)] if bad else []
    kind = "class"
    if config.classes == "auto" and len(names) > 1 and any(source.folder_classes for source, _, _ in parts):
        kind = "sub-folder"
        notes.append(
            f"{len(names)} sub-folders: used as classes; --classes folders if they are classes, --classes none if they "
            "are dates or batches"
        )
    groups, group_names = {}, {}
    for name in _chosen(config, values):
        labels, kept = _groups(values[name], val)
        if len(kept) < 2:
            notes.append(f"{name} is left out: fewer than two groups have {_FEWEST} training and validation images")
        else:
            groups[name], group_names[name] = labels, kept
    if not groups:
        raise UserError(
            f"No column of {Path(config.labels).name or 'sub-folders'} has two values with {_FEWEST} images or more "
            f"each to train on and {_FEWEST} to test on",
            f"Its columns: {', '.join(values)}. Name others with --columns, or list more images: without --val a fifth "
            f"is tested on, so a value needs about {5 * _FEWEST} images",
        )
    features = torch.cat([each.features for each in tables])
    judged = len(names) > 1 and all((classes[part] >= 0).any() for part in (val, ~val))
    images = Images(features, val, classes, tuple(names) if judged else (), groups, group_names)
    return images, notes, kind


def _opened(config: Config, model: Model, data: str) -> tuple[list[_Part], list[str]]:
    """The images to train on, and those of --val if given; notes on images that are left out."""
    opened = [(each, model.reading.open_images(each)) for each in [data, *([config.val] if config.val else [])]]
    keys = [[source.key(index) for index in range(len(source))] for _, source in opened]
    parts, notes = list[_Part](), list[str]()
    columns_of = [read_metadata(config.labels, own) for own in keys] if config.labels else []
    both = {name: [value for columns in columns_of for value in columns[name]] for name in (columns_of or [{}])[0]}
    column = class_column(both) if config.classes == "auto" else None  # one for both, or their classes would differ
    for number, ((name, source), own) in enumerate(zip(opened, keys, strict=True)):
        rows = only_in_val((data, keys[0]), (name, own)) if parts else list(range(len(own)))
        if config.labels:
            columns = columns_of[number]
            classes = with_classes(source, columns[column]) if column else relabel(source, config.classes, seed=0)
            parts.append((classes, columns, rows))
        else:
            columns = folder_column(source)
            parts.append((relabel(source, "none", seed=0), columns, [i for i in rows if columns["folder"][i]]))
            notes += _left_out(name, [own[i] for i in rows if not columns["folder"][i]])
    return parts, notes


def _left_out(data: str, keys: Sequence[str]) -> list[str]:
    """A note on images that are in no sub-folder, if there are any; frames of a film have its name."""
    files = list(dict.fromkeys(key.partition("#")[0] for key in keys))
    named = ", ".join(files[:3]) + (f" and {len(files) - 3:,} more files" if len(files) > 3 else "")
    return [f"{len(keys):,} images of {data} are in no sub-folder and are left out: {named}"] if keys else []


def _chosen(config: Config, values: dict[str, list[str]]) -> list[str]:
    for name in config.columns:
        if name not in values:
            raise unknown("column", name, values)
    return list(config.columns) or group_columns(values)


def _groups(values: list[str], val: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Groups int64 `[M]` of the values, -1 for those without enough images, and their names."""
    kept, number = [], {name: i for i, name in enumerate(sorted(set(values) - {""}))}
    labels = torch.tensor([number.get(value, -1) for value in values])
    found = torch.full_like(labels, -1)
    for name, label in number.items():
        rows = labels == label
        if min(int((rows & val).sum()), int((rows & ~val).sum())) >= _FEWEST:
            found[rows] = len(kept)
            kept.append(name)
    return found, tuple(kept)


def _row(name: str, found: Mapping[str, Readability]) -> str:
    linear, knn = found["linear"], found["knn"]
    return f"{name:<36.36}{linear!s:>15}{knn!s:>18}{linear.by_chance:>10.1f}%{linear.p:>10.3f}{knn.p:>8.3f}"


def _verdict(column: str, found: Mapping[str, Readability], permutations: int) -> str:
    p = min(1.0, len(found) * min(each.p for each in found.values()))  # the smaller of two p-values, corrected
    if p < 0.01:
        least = len(found) / (1 + permutations)
        return f"{column} can be read from the features ({'p ≤' if p <= 1.5 * least else 'p ='} {p:.2g})"
    return f"{column} is not shown to be readable (p = {p:.2g}, not below 0.01; the smaller of both, doubled)"


def _across_lines(column: str, entry: dict[str, Any], kind: str) -> list[str]:
    """Two more rows of the table: the class, trained with and without the image's own group."""
    found = entry["across"]
    if not found:
        return [f"  no {kind} of {column} is in two groups: the {kind} cannot be tested across them"]
    rows = []
    for side in SIDES:
        shown = {p: f"{found[p][side]:.1f}% ± {found[p][f'{side}_standard_error']:.1f}" for p in PROBES}
        rows.append(f"{f'  {kind}, trained {side} its {column}':<36.36}{shown['linear']:>15}{shown['knn']:>18}")
    how = f"as many training images of each {kind}"
    return [*rows, f"  ({how}; {found['num']:,} images of the {found['classes']} of these that are in several groups)"]


def _together(column: str, entry: dict[str, Any], kind: str) -> list[str]:
    """A warning where column and class can hardly be told apart."""
    if (entry["association"] or 0) <= 0.5:
        return []
    return [
        f"{column} and {kind} go together (Cramér's V {entry['association']:.2f}): these images cannot fully show "
        "which of the two the features describe"
    ]
