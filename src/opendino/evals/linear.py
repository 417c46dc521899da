"""Linear classifier on frozen features: logistic regression, cross-validated, for few labels; DINO's SGD for many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import cross_entropy

from opendino.core import distributed
from opendino.core.accuracy import NO_TOP5, Accuracy
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Count, NotNegative, Positive, Seed, Workers
from opendino.core.types import Report
from opendino.data.open_source import list_paths
from opendino.data.sampler import permutation
from opendino.features.baselines import untrained_on
from opendino.features.classification_metrics import accuracy
from opendino.features.feature_table import FeatureTable, hold_out, table
from opendino.features.few_labels import MOST_CROSS_VALIDATED, measured
from opendino.features.image_stream import skipped_message
from opendino.features.linear_classifiers import MOMENTUM, train_together
from opendino.features.logistic_regression import STRENGTHS, CrossValidated, cross_validated
from opendino.features.paired_change import Change, change
from opendino.features.pixel_baseline import NAME as BASELINE
from opendino.features.pixel_baseline import thumbnail_and_histogram
from opendino.features.train_val_features import LabeledData, TrainValFeatures, train_val_features
from opendino.features.view_features import RandomCrops, view_features
from opendino.models import classifier
from opendino.models.classifier import Classifier
from opendino.models.feature_tokens import Tokens, protocol_for, tokens_of
from opendino.models.load import Model, load
from opendino.views.settings import view

Candidate = tuple[Tokens, float]
Candidates = Annotated[tuple[Positive, ...], Meta(min_length=1)]
_MOST_UNTRAINED = 2000  # labels with which the untrained network is trained: another pass over their images
_CROP = view({"crop.scale": (0.08, 1.0), "color_jitter.p": 0.0, "gray.p": 0.0})  # as in supervised training


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino eval linear`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    train: str | None = None
    """Labeled training images; default: the images the run was trained on."""
    labels: str = "auto"
    """Labels of --train: folders (sub-folders are classes), or a CSV of path,class; default: those of DATA."""
    val: str | None = None
    """Labeled validation images; default: --train is cross-validated, or for sgd a fifth of it held out."""
    protocol: Literal["auto", "vits", "vitb", "resnet", "grid"] = "auto"
    """Features to classify: vits: CLS of the last 4 blocks; vitb: CLS and mean patch of the last block; resnet: global
    average of the feature map, or CLS; grid: try all three; auto: chosen from the backbone."""
    solver: Literal["auto", "lbfgs", "sgd"] = "auto"
    """lbfgs: standardized, calibrated logistic regression, C chosen by cross-validation; sgd: as in DINO, for many
    labels. auto: lbfgs up to 10,000 labels."""
    lr: Candidates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
    """sgd: learning rates to try, for batch size 256 (scaled linearly); a single value is used without a search."""
    weight_decay: NotNegative = 0.0
    """sgd: weight decay."""
    C: Candidates = STRENGTHS
    """lbfgs: inverse regularization strengths to try."""
    epochs: Count = 100
    """sgd: number of epochs."""
    augment: bool = False
    """sgd: train on random resized crops and flips, as in DINO; slower, since the network runs in every epoch."""
    batch: Batch = 256
    """sgd: images per step."""
    seed: Seed = 0
    """Random seed for folds, initial weights, image order and crops."""
    out: str | None = None
    """New folder for the trained classifier, which `opendino predict` can load."""
    workers: Workers = 4
    """Number of threads or processes that decode images."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Data type of the stored features; float16 halves their memory."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment and self.solver == "lbfgs":
            raise UsageError(
                "--augment and --solver lbfgs were both given",
                "lbfgs uses one fixed feature per image: use --solver sgd with --augment",
            )


def evaluate(config: Config) -> Report:
    """Train a linear classifier on labeled images and measure it: by cross-validation, and on --val if given.

    Raises:
        UserError: The model or images do not exist, there are fewer than two classes, or --out exists.
    """
    out = Path(config.out).expanduser() if config.out else None
    if out and out.exists():
        raise UserError(f"--out '{config.out}' exists already", "Choose another folder")
    device = distributed.device(config.device)
    model = load(config.model, config.which).to(device)
    protocol = protocol_for(model.backbone) if config.protocol == "auto" else config.protocol
    kinds = tokens_of(protocol, model.backbone)
    all_tokens = Tokens(max(kind.blocks for kind in kinds), any(kind.mean_patch for kind in kinds))

    dtype = getattr(torch, config.feature_dtype)
    data = train_val_features(
        model, LabeledData(config.train, config.val, config.labels), all_tokens, workers=config.workers, dtype=dtype
    )
    few = len(data.train) + (len(data.val) if config.val is None else 0) <= MOST_CROSS_VALIDATED
    solver = config.solver if config.solver != "auto" else "sgd" if config.augment or not few else "lbfgs"
    train = data.all_labeled() if solver == "lbfgs" else data.train
    classes = [train.classes[label] for label in train.labels.unique()]
    trainer = _Trainer(config, model, data, all_tokens, classes, device)
    found = trainer.by_lbfgs(train, kinds) if solver == "lbfgs" else trainer.by_sgd(kinds)

    trained = found.classifier
    lines = [
        f"linear classifier of {config.model}: {len(train):,} images of {data.data}, {len(classes)} classes",
        *found.notes,
        f"protocol {protocol}: {trained.tokens.of(model.backbone)} of {model.backbone.name}, {found.how}",
        *found.lines,
    ]
    known = trained.known.fields if trained.known else {"top1": None, "top5": None}
    fields = {
        **known, "measured": trained.measured, "caution": trained.caution, "protocol": protocol,
        "tokens": trained.tokens.of(model.backbone),
        "solver": solver, "augment": config.augment, "num_classes": len(classes), "num_train": len(train),
        "num_val": 0 if solver == "lbfgs" and config.val is None else len(data.val),
        "num_unreadable": len(data.bad), "notes": found.notes, **found.fields, "out": config.out,
    }  # fmt: skip
    if trained.caution:
        lines.append(f"caution: {trained.caution}; more labels or a longer training may show that it is")
    if out:
        about = known | {name: fields[name] for name in ("measured", "caution", "protocol", "num_train")}
        classifier.save(out, model, trained, about, _given(data, train) if solver == "lbfgs" else {})
        lines.append(f"use it: opendino predict {config.out} DATA")
    return Report("\n".join(lines), fields)


def _given(data: TrainValFeatures, labeled: FeatureTable) -> dict[str, str]:
    """Path → label of the labeled images that are files."""
    paths = list_paths(data.data, [data.source.key(index) for index in labeled.indices.tolist()])
    names = (labeled.classes[label] for label in labeled.labels.tolist())
    return {path: name for path, name in zip(paths, names, strict=True) if Path(path).is_absolute()}


@dataclass(frozen=True)
class _Baseline:
    """A baseline with the same classifier: its accuracy, and the network against it on the same images."""

    name: str
    known: Accuracy
    change: Change
    trained: str = ""  # how both were trained, if not like the classifier

    @classmethod
    def of(cls, name: str, theirs: Tensor, ours: Tensor, truth: Tensor, trained: str = "") -> _Baseline:
        """From scores `[M C]` of the baseline and of the network."""
        before, after = ((scores.argmax(1) == truth).float().cpu() for scores in (theirs, ours))
        return cls(name, accuracy(theirs, truth), change(before, after), trained)

    @property
    def lines(self) -> list[str]:
        """Its accuracy, and whether the network is better."""
        return [
            f"{self.name}, the same classifier{self.trained}: {self.known.sentence}",
            f"  the network against it, image by image: {self.change.against}",
        ]


def _caution(baselines: Sequence[_Baseline]) -> str:
    """The baselines that the network is not shown to beat, in a clause; empty if there are none."""
    names = [f"{each.name} ({each.known.top1:.1f}%)" for each in baselines if each.change.direction < 1]
    told = f"the network is not shown to be better than {' or '.join(names)} with the same classifier"
    return told if names else ""


@dataclass(frozen=True)
class _Found:
    """A trained classifier, and what to report about it."""

    classifier: Classifier
    notes: list[str]
    how: str
    lines: list[str]
    fields: dict[str, Any]


@dataclass(frozen=True)
class _Trainer:
    """Trains candidates, (features, learning rate or C) pairs, on rows of the training table, and scores them."""

    config: Config
    model: Model
    data: TrainValFeatures
    all_tokens: Tokens
    classes: list[str]
    device: torch.device

    def by_lbfgs(self, rows: FeatureTable, kinds: list[Tokens]) -> _Found:
        """Logistic regression on all rows; features and C chosen, and accuracy measured, by cross-validation."""
        config, labels = self.config, rows.labels_by(self.classes)

        def train(own: FeatureTable, features: Tensor) -> CrossValidated:
            return cross_validated(
                features, own.labels_by(self.classes), len(self.classes), sorted(config.C), config.seed
            )

        fits = {kind: train(rows, rows.features[:, self._columns(kind, rows)]) for kind in kinds}
        tokens, best = min(fits.items(), key=lambda pair: pair[1].loss)
        found = measured(best, labels, self.classes, tokens)
        by_pixels = train(rows, thumbnail_and_histogram(self.data.source, rows.indices.tolist(), config.workers))

        notes = [skipped_message(self.data.bad)] if self.data.bad else []
        single = [name for name, number in zip(self.classes, labels.bincount(), strict=True) if number < 2]
        if single:
            notes.append(
                f"one label only: {', '.join(single)}. Whether such a class is recognized cannot be measured; "
                "in the cross-validation its image counts as wrong"
            )
        how = f"standardized; logistic regression, C {best.strength:g} and calibration by cross-validation"
        lines = [f"accuracy not known: {found.measured}"]
        fields: dict[str, Any] = {"C": best.strength}
        fields |= dict.fromkeys(("cross_validated", "log_loss", "pixels", "untrained"))
        baselines: dict[str, _Baseline] = {}
        if found.known:
            confidence = 100 * float(best.scores.softmax(1).amax(1).mean())
            baselines = {
                "pixels": _Baseline.of(BASELINE, by_pixels.scores, best.scores, labels),
                "untrained": self._beside_untrained(rows, tokens, best.scores, train),
            }
            lines = [
                f"{found.measured}: {found.known.sentence}",
                f"its mean probability for the predicted class: {confidence:.1f}%",
                *(line for each in baselines.values() for line in each.lines),
            ]
            fields |= {"cross_validated": found.known.fields, "log_loss": best.loss}
        if config.val is not None:
            val, truth = self.data.val, self.data.val.labels_by(self.classes)
            notes += [note for note in self.data.notes if note not in notes]
            scores = self.scores(found, val)
            found = replace(found, known=accuracy(scores, truth), measured=f"images of {self.data.origin}")
            features = thumbnail_and_histogram(self.data.val_source, val.indices.tolist(), config.workers)
            baselines["pixels"] = _Baseline.of(BASELINE, features @ by_pixels.weight.T + by_pixels.bias, scores, truth)
            lines += [f"{found.measured}: {accuracy(scores, truth).sentence}", *baselines["pixels"].lines]
        fields |= {key: each.known.fields for key, each in baselines.items()}
        return _Found(replace(found, caution=_caution([*baselines.values()])), notes, how, lines, fields)

    def _beside_untrained(
        self,
        rows: FeatureTable,
        tokens: Tokens,
        scores: Tensor,
        train: Callable[[FeatureTable, Tensor], CrossValidated],
    ) -> _Baseline:
        """The same network with random weights; of many labels some, which bounds what it costs."""
        trained = ""
        if len(rows) > _MOST_UNTRAINED:
            some = torch.from_numpy(permutation(len(rows), self.config.seed, 0))[:_MOST_UNTRAINED].sort().values
            rows, trained = rows[some], f", both on {_MOST_UNTRAINED:,} of the labels"
            scores = train(rows, rows.features[:, self._columns(tokens, rows)]).scores
        theirs = train(rows, self._untrained(tokens, rows)).scores
        return _Baseline.of("untrained network", theirs, scores, rows.labels_by(self.classes), trained)

    def _untrained(self, tokens: Tokens, rows: FeatureTable) -> Tensor:
        """Features `[M D]` of the same images by the network with random weights."""
        source, indices, workers = self.data.source, rows.indices.tolist(), self.config.workers
        fresh = untrained_on(self.model, source, indices, workers=workers)
        return table(fresh, source, tokens, indices, workers=workers).features

    def by_sgd(self, kinds: list[Tokens]) -> _Found:
        """SGD as in DINO, for many labels: the learning rate chosen on a tenth of them, the accuracy on `data.val`."""
        config, train, val = self.config, self.data.train, self.data.val
        candidates = [(kind, lr) for kind in kinds for lr in config.lr]
        merits = self.merits(train, candidates) if len(candidates) > 1 else [(0.0, 0.0)]
        tokens, lr = max(zip(merits, candidates, strict=True), key=lambda pair: pair[0])[1]
        final = self.train(train, [(tokens, lr)])[0]
        known = accuracy(self.scores(final, val), val.labels_by(self.classes))
        final = replace(final, known=known, measured=f"images of {self.data.origin}")
        notes = self.data.notes + ([NO_TOP5] if known.top5 is None else [])
        how = (
            f"{'random crops and flips' if config.augment else 'center crops'}; SGD, momentum {MOMENTUM}, cosine over "
            f"{config.epochs} epochs, batches of {config.batch}, learning rate {lr:g}"
        )
        if len(candidates) > 1:
            how += f", chosen on a tenth of the training images, then trained on all; {len(candidates)} candidates"
        lines = [
            f"{final.measured}: {known.sentence}" + (f"; top-5 {known.top5:.2f}%" if known.top5 is not None else ""),
            f"beside the untrained network and pixels: opendino eval knn {config.model} --train {self.data.data}"
            f"{f' --labels {config.labels}' if config.labels != 'auto' else ''}"
            f"{f' --val {config.val}' if config.val else ''} --baselines True",
        ]
        fields = {
            "lr": lr, "epochs": config.epochs,
            "candidates": [
                {"tokens": kind.of(self.model.backbone), "strength": x, "top1": merit[0]}
                for (kind, x), merit in zip(candidates, merits, strict=True)
                if len(candidates) > 1
            ],
        }  # fmt: skip
        return _Found(final, notes, how, lines, fields)

    def merits(self, rows: FeatureTable, candidates: list[Candidate]) -> list[tuple[float, float]]:
        """(top-1, -loss) of each candidate on a held-out tenth of the rows, trained on the rest; higher is better."""
        rest, tenth = hold_out(rows, 1 / 10)
        truth, found = tenth.labels_by(self.classes), []
        for trained in self.train(rest, candidates):
            scores = self.scores(trained, tenth)
            loss = float(cross_entropy(scores, truth))
            found.append((accuracy(scores, truth).top1, -loss if math.isfinite(loss) else -math.inf))
        return found

    def scores(self, trained: Classifier, rows: FeatureTable) -> Tensor:
        """Logits `[M C]` of a trained classifier."""
        own = rows.features[:, self._columns(trained.tokens, rows)]
        return torch.cat([trained(part) for part in own.split(2**14)])

    def train(self, rows: FeatureTable, candidates: Sequence[Candidate]) -> list[Classifier]:
        """Classifiers by SGD on the CPU, in the order of the candidates, which must be grouped by kind of features."""
        labels = rows.labels_by(self.classes)
        lrs = {kind: [x for own, x in candidates if own == kind] for kind, _ in candidates}
        columns = [self._columns(kind, rows) for kind in lrs]
        trained = self._sgd(rows, labels, columns, list(lrs.values()))
        return [
            Classifier(weight.cpu(), bias.cpu(), tuple(self.classes), kind)
            for kind, own in zip(lrs, trained, strict=True)
            for weight, bias in own
        ]

    def _columns(self, kind: Tokens, rows: FeatureTable) -> slice:
        """Columns of a kind of features: a kind ends with the CLS of the last block, or the mean patch after it."""
        width = self.model.backbone.embed_dim
        last = self.all_tokens.blocks * width
        return slice(last - kind.blocks * width, rows.features.shape[1] if kind.mean_patch else last)

    def _sgd(
        self, rows: FeatureTable, labels: Tensor, columns: list[slice], lrs: list[list[float]]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Weights and biases for each kind of features and each learning rate, all trained on the same batches."""
        config, batch = self.config, min(self.config.batch, len(rows))
        scaled = [[lr * batch / 256 for lr in own] for own in lrs]
        if config.augment:
            steps, stream = config.epochs * (len(rows) // batch), self._crops(rows, batch)
        else:
            steps, stream = config.epochs * -(-len(rows) // batch), self._cached(rows, labels, batch)
        return train_together(stream, steps, len(self.classes), columns, scaled, config.weight_decay, config.seed)

    def _cached(self, rows: FeatureTable, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of cached features: (`[B D]`, labels `[B]`), shuffled every epoch."""
        for epoch in range(self.config.epochs):
            order = torch.from_numpy(permutation(len(rows), self.config.seed, epoch))
            for part in order.tensor_split(-(-len(rows) // batch)):
                yield rows.features[part].float().to(self.device), labels[part].to(self.device)

    def _crops(self, rows: FeatureTable, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of features of augmented images: (`[B D]`, labels `[B]`)."""
        number = {name: i for i, name in enumerate(self.classes)}
        # Labels of the source, renumbered by the classes of the training table.
        renumbered = torch.tensor([number.get(name, -1) for name in self.data.source.classes], device=self.device)
        crops = RandomCrops((_CROP,), batch, self.config.epochs, self.config.seed, self.config.workers)
        indices = rows.indices.tolist()
        for features, labels in view_features(self.model, self.data.source, indices, crops, self.all_tokens):
            yield features[0].float(), renumbered[labels]
