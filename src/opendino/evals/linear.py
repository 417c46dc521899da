"""Linear probe: a linear classifier on frozen features (DINO's protocols), learning rate chosen on held-out train."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import cross_entropy

from opendino.core import distributed
from opendino.core.accuracy import NO_TOP5, yardstick
from opendino.core.contracts import Backbone, Source
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Count, NotNegative, Positive, Seed, Workers
from opendino.core.types import Report
from opendino.data.sampler import permutation
from opendino.features.classification_metrics import accuracy
from opendino.features.feature_table import FeatureTable, hold_out
from opendino.features.linear_classifiers import MOMENTUM, logistic_regression, scikit_learn, train_together
from opendino.features.train_val_features import train_val_features
from opendino.features.view_features import views
from opendino.models import classifier
from opendino.models.classifier import Classifier
from opendino.models.feature_tokens import Tokens, num_blocks
from opendino.models.load import Model, load
from opendino.models.vit import VisionTransformer
from opendino.views.settings import view

Candidate = tuple[Tokens, float]
Candidates = Annotated[tuple[Positive, ...], Meta(min_length=1)]
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
    val: str | None = None
    """Labeled validation images; default: a fifth of --train is held out."""
    protocol: Literal["auto", "vits", "vitb", "resnet", "grid"] = "auto"
    """Features to classify: vits: CLS of the last 4 blocks; vitb: CLS and mean patch of the last block; resnet: pooled
    feature map, or CLS; grid: try all three; auto: chosen from the backbone."""
    solver: Literal["sgd", "lbfgs"] = "sgd"
    """sgd: as in DINO; lbfgs: scikit-learn's LogisticRegression, faster on small datasets."""
    lr: Candidates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
    """sgd: learning rates to try, for batch size 256 (scaled linearly); a single value is used without a search."""
    weight_decay: NotNegative = 0.0
    """sgd: weight decay."""
    C: Candidates = (0.01, 0.1, 1.0, 10.0, 100.0)
    """lbfgs: inverse regularization strengths to try."""
    epochs: Count = 100
    """sgd: number of epochs."""
    augment: bool = False
    """sgd: train on random resized crops and flips, as in DINO; slower, since the network runs in every epoch."""
    batch: Batch = 256
    """sgd: images per step."""
    seed: Seed = 0
    """Random seed for initial weights, image order and crops."""
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
    """Train linear classifiers, choose one on held-out training images, and evaluate it on --val.

    Raises:
        UserError: The model or images do not exist, there are fewer than two classes, scikit-learn is not installed, or
            --out exists.
    """
    out = Path(config.out).expanduser() if config.out else None
    if out and out.exists():
        raise UserError(f"--out '{config.out}' exists already", "Choose another folder")
    if config.solver == "lbfgs":
        scikit_learn()
    device = distributed.device(config.device)
    model = load(config.model, config.which).to(device)
    protocol = _protocol_for(model.backbone) if config.protocol == "auto" else config.protocol
    kinds = _kinds(protocol, model.backbone)
    all_tokens = Tokens(max(kind.blocks for kind in kinds), any(kind.mean_patch for kind in kinds))

    dtype = getattr(torch, config.feature_dtype)
    data = train_val_features(model, config.train, config.val, all_tokens, workers=config.workers, dtype=dtype)
    train, val = data.train, data.val
    classes = [train.classes[label] for label in train.labels.unique()]

    trainer = _Trainer(config, model, data.source, all_tokens, classes, device)
    candidates = [(kind, x) for kind in kinds for x in (config.lr if config.solver == "sgd" else config.C)]
    merits = trainer.merits(train, candidates) if len(candidates) > 1 else [(0.0, 0.0)]
    tokens, strength = max(zip(merits, candidates, strict=True), key=lambda pair: pair[0])[1]
    final = trainer(train, [(tokens, strength)])[0]
    found = accuracy(trainer.scores(final, val), val.labels_by(classes))

    notes = data.notes + ([NO_TOP5] if found.top5 is None else [])
    how = f"SGD, momentum {MOMENTUM}, cosine over {config.epochs} epochs, batches of {config.batch}, learning rate"
    chosen = "chosen on a tenth of the training images, then trained on all of them"
    crops = "random crops and flips" if config.augment else "center crops"
    lines = [
        f"linear probe of {config.model}: {len(train):,} images of {data.data}, {len(classes)} classes",
        f"evaluated on {len(val):,} images of {data.origin}",
        *notes,
        f"protocol {protocol}: {tokens} of {model.backbone.name}, {crops}",
        f"{how if config.solver == 'sgd' else 'logistic regression by L-BFGS, C'} {strength:g}"
        + (f", {chosen}; {len(candidates)} candidates" if len(candidates) > 1 else ""),
        f"top-1 {found.top1:.2f}% ± {found.standard_error:.2f}   balanced {found.balanced_accuracy:.2f}%"
        + (f"   top-5 {found.top5:.2f}%" if found.top5 is not None else ""),
        yardstick(found.fields),
    ]
    fields = {
        **found.fields, "protocol": protocol, "tokens": str(tokens), "solver": config.solver,
        "lr" if config.solver == "sgd" else "C": strength, "augment": config.augment, "epochs": config.epochs,
        "num_classes": len(classes), "num_train": len(train), "num_val": len(val),
        "num_unreadable": len(data.bad), "notes": notes,
        "candidates": [
            {"tokens": str(kind), "strength": x, "top1": merit[0]}
            for (kind, x), merit in zip(candidates, merits, strict=True)
            if len(candidates) > 1
        ],
        "out": config.out,
    }  # fmt: skip
    if out:
        classifier.save(out, model, final, found.fields | {name: fields[name] for name in ("protocol", "num_train")})
        lines.append(f"use it: opendino predict {config.out} DATA")
    return Report("\n".join(lines), fields)


@dataclass(frozen=True)
class _Trainer:
    """Trains candidates, (features, learning rate or C) pairs, on rows of the training table, and scores them."""

    config: Config
    model: Model
    source: Source
    all_tokens: Tokens
    classes: list[str]
    device: torch.device

    def merits(self, rows: FeatureTable, candidates: list[Candidate]) -> list[tuple[float, float]]:
        """(top-1, -loss) of each candidate on a held-out tenth of the rows, trained on the rest; higher is better."""
        rest, tenth = hold_out(rows, 1 / 10)
        truth, found = tenth.labels_by(self.classes), []
        for trained in self(rest, candidates):
            scores = self.scores(trained, tenth)
            loss = float(cross_entropy(scores, truth))
            found.append((accuracy(scores, truth).top1, -loss if math.isfinite(loss) else -math.inf))
        return found

    def scores(self, trained: Classifier, rows: FeatureTable) -> Tensor:
        """Logits `[M C]` of a trained classifier."""
        own = rows.features[:, self._columns(trained.tokens, rows)]
        return torch.cat([trained(part) for part in own.split(2**14)])

    def __call__(self, rows: FeatureTable, candidates: Sequence[Candidate]) -> list[Classifier]:
        """Trained classifiers on the CPU, in the order of the candidates, which must be grouped by kind of features."""
        labels = rows.labels_by(self.classes)
        strengths = {kind: [x for own, x in candidates if own == kind] for kind, _ in candidates}
        columns = [self._columns(kind, rows) for kind in strengths]
        if self.config.solver == "lbfgs":
            groups = zip(columns, strengths.values(), strict=True)
            trained = [
                logistic_regression(rows.features[:, own].float(), labels, len(self.classes), cs) for own, cs in groups
            ]
        else:
            trained = self._sgd(rows, labels, columns, list(strengths.values()))
        return [
            Classifier(weight.cpu(), bias.cpu(), tuple(self.classes), kind)
            for kind, own in zip(strengths, trained, strict=True)
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
        renumbered = torch.tensor([number.get(name, -1) for name in self.source.classes], device=self.device)
        stream = views(
            self.model, self.source, rows.indices.tolist(), [_CROP], self.all_tokens, batch, self.config.epochs,
            self.config.seed, self.config.workers,
        )  # fmt: skip
        for features, labels in stream:
            yield features[0].float(), renumbered[labels]


def _protocol_for(backbone: Backbone) -> Literal["vits", "vitb", "resnet"]:
    """The protocol that DINO used for this kind of backbone."""
    if not isinstance(backbone, VisionTransformer):
        return "resnet"
    return "vitb" if backbone.embed_dim >= 768 else "vits"


def _kinds(protocol: str, backbone: Backbone) -> list[Tokens]:
    """The kinds of features that a protocol compares."""
    several = Tokens(min(4, num_blocks(backbone)))
    kinds = {"vits": [several], "vitb": [Tokens(1, mean_patch=True)], "resnet": [Tokens()]}
    return kinds.get(protocol) or list(dict.fromkeys([Tokens(), Tokens(1, mean_patch=True), several]))
