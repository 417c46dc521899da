"""Linear probe: a classifier on frozen features, by the protocols of DINO, with learning rates chosen on train."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn.functional import cross_entropy

from opendino.core import dist
from opendino.core.contracts import Backbone, Source
from opendino.core.errors import UsageError, UserError
from opendino.core.types import Augment, Report
from opendino.data.loader import permutation
from opendino.data.open import open_source
from opendino.features.scores import accuracy
from opendino.features.table import Table, hold_out, table
from opendino.features.views import views
from opendino.models import classifier
from opendino.models.classifier import Classifier
from opendino.models.load import Model, load
from opendino.models.tokens import Tokens, num_blocks
from opendino.models.vit import VisionTransformer

_MOMENTUM, _INITIAL_STD = 0.9, 0.01
_CROP = Augment(scale=(0.08, 1.0), jitter=0.0, grey=0.0)  # random-resized crop and flip, as in supervised training
_CHOOSING_FRAC = 0.1


@dataclass(frozen=True)
class Config:
    """What `opendino eval linear` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; the one to use by default."""
    train: str | None = None
    """Labelled images to train the classifier on; those that a run was trained on by default."""
    val: str | None = None
    """Labelled images to judge it on; without it a fifth of --train is held out."""
    protocol: Literal["auto", "vits", "vitb", "resnet", "grid"] = "auto"
    """Features. vits: CLS of the last 4 blocks; vitb: CLS and mean patch of the last; resnet: the pooled map or CLS;
    grid: the best of the three. auto: by the backbone."""
    solver: Literal["sgd", "lbfgs"] = "sgd"
    """sgd: as the original; lbfgs: scikit-learn's logistic regression, quick for small sets."""
    lr: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
    """Learning rates for batches of 256, trained together; a single one is not chosen but used."""
    weight_decay: float = 0.0
    """Of sgd."""
    C: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    """Inverse strengths of the penalty of lbfgs."""
    epochs: int = 100
    """Passes over the training images."""
    augment: bool = False
    """Random-resized crops and flips, as the original; the network then runs in every epoch."""
    batch: int = 256
    """Images a step."""
    seed: int = 0
    """Decides initial weights, order and crops."""
    out: str | None = None
    """Write the trained classifier into this new folder, for `opendino predict`."""
    workers: int = 4
    """Threads or processes that decode images."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Of the stored features; float16 halves their memory."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        for flag in ("epochs", "batch", "workers"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} is {getattr(self, flag)}", "Use a whole number from 1 up")
        for flag, values in (("lr", self.lr), ("C", self.C)):
            if not values or not all(0 < value < math.inf for value in values):
                raise UsageError(f"--{flag} is {' '.join(map(str, values)) or 'empty'}", "Use numbers above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"--weight-decay is {self.weight_decay}", "Use 0 or more")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed is {self.seed}", "Use a whole number from 0 up")
        if self.augment and self.solver == "lbfgs":
            raise UsageError("--augment and --solver lbfgs were both given", "lbfgs looks at every image once: use sgd")


@dataclass(frozen=True)
class Candidate:
    """One way to train a classifier.

    Attributes:
        tokens: The features.
        strength: Learning rate at batches of 256 (sgd) or C (lbfgs).
    """

    tokens: Tokens
    strength: float


def evaluate(config: Config) -> Report:
    """Train classifiers, choose one without looking at --val, judge it there.

    Raises:
        UserError: No such model or images, fewer than two classes, scikit-learn absent, or --out exists.
    """
    home = Path(config.out).expanduser() if config.out else None
    if home and home.exists():
        raise UserError(f"'{config.out}' exists already", "Choose another --out")
    device = dist.device(config.device)
    model = load(config.model, config.which).to(device)
    data = config.train or model.trained_on
    if data is None:
        raise UserError(f"'{config.model}' does not say what it was trained on", "Give labelled images: --train DIR")
    protocol = _protocol_for(model.backbone) if config.protocol == "auto" else config.protocol
    kinds = _kinds(protocol, model.backbone)
    widest = Tokens(max(kind.blocks for kind in kinds), any(kind.mean_patch for kind in kinds))

    source, train = _look(model, data, widest, config)
    if config.val:
        val, origin = _look(model, config.val, widest, config)[1], config.val
    else:
        (train, val), origin = hold_out(train, 1 / 5), "a fifth of them, held out"
    classes = [train.classes[label] for label in train.labels.unique()]
    if len(classes) < 2:
        only = f"of one class, {classes[0]}" if classes else "none"
        raise UserError(f"The labelled images of {data} are {only}", "A classifier needs two classes or more")
    if not len(val):
        raise UserError(f"There are no labelled images in {origin}", "Give others: --val DIR")

    columns = _columns(kinds, widest, model.backbone, train)
    candidates = [Candidate(kind, x) for kind in kinds for x in (config.lr if config.solver == "sgd" else config.C)]
    fit = _Fit(config, model, source, columns, classes, device)
    table_of: list[dict[str, Any]] = []
    best = candidates[0]
    if len(candidates) > 1:
        rest, choosing = hold_out(train, _CHOOSING_FRAC)
        truth = choosing.labels_by(classes)
        ranked = []
        for candidate, made in zip(candidates, fit(rest, candidates), strict=True):
            scores = made(choosing.features[:, columns[candidate.tokens]].float())
            top1, loss = accuracy(scores, truth)[0], float(cross_entropy(scores, truth.clamp_max(len(classes) - 1)))
            ranked.append((top1, -loss if math.isfinite(loss) else -math.inf))
            told = {"tokens": str(candidate.tokens), "strength": candidate.strength, "top1": top1}
            table_of.append(told)
        best = candidates[max(range(len(candidates)), key=lambda i: ranked[i])]
    final = fit(train, [best])[0]
    truth = val.labels_by(classes)
    parts = [final(part.float()) for part in val.features[:, columns[best.tokens]].split(2**14)]
    top1, top5 = accuracy(torch.cat(parts), truth)

    how = "learning rate" if config.solver == "sgd" else "C"
    trained = (
        f"SGD, momentum {_MOMENTUM}, cosine over {config.epochs} epochs, batches of {config.batch}"
        if config.solver == "sgd"
        else "logistic regression (L-BFGS)"
    )
    chosen = (
        f"chosen among {len(candidates)} on a tenth of the training images, then trained on all of them"
        if len(candidates) > 1
        else "as asked"
    )
    lost = int((truth == len(classes)).sum())
    lines = [
        f"linear probe of {config.model}: {len(train):,} images of {data}, {len(classes)} classes{train.unread}",
        f"judged on {len(val):,} images of {origin}{val.unread if config.val else ''}",
        f"protocol {protocol}: {best.tokens}; {trained}; {'random crops and flips' if config.augment else 'no augmentation'}",
        f"{how} {best.strength:g}, {chosen}",
        *([f"{lost:,} of the images are of classes that the training images lack, and count as wrong"] if lost else []),
        f"top-1 {top1:.2f}%   top-5 {top5:.2f}%",
    ]
    fields = {
        "top1": top1, "top5": top5, "protocol": protocol, "tokens": str(best.tokens), "solver": config.solver,
        "strength": best.strength, "augment": config.augment, "epochs": config.epochs, "num_classes": len(classes),
        "num_train": len(train), "num_val": len(val), "num_unreadable": len(train.bad) + len(val.bad) * bool(config.val),
        "candidates": table_of, "out": config.out,
    }  # fmt: skip
    if home:
        classifier.save(home, model, final, {name: fields[name] for name in ("top1", "top5", "protocol", "num_train")})
        lines.append(f"use it: opendino predict {config.out} DATA")
    return Report("\n".join(lines), fields)


def train_together(
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    num_classes: int,
    columns: Sequence[slice],
    lrs: Sequence[Sequence[float]],
    weight_decay: float = 0.0,
    seed: int = 0,
) -> list[list[tuple[Tensor, Tensor]]]:
    """Train linear classifiers by SGD, all in one pass: of each batch every one sees its own columns.

    Softmax regression with momentum 0.9, weights N(0, 0.01²) at first, learning rates that fall to 0 as half a cosine.
    The gradient is written out: softmax minus one-hot, times features.

    Args:
        batches: Features float `[B W]` and labels int64 `[B]` in 0 … C - 1, at least `steps` of them.
        steps: T.
        num_classes: C.
        columns: For each kind of features its columns of W.
        lrs: For each kind its learning rates.
        weight_decay: Of the weights, not of the biases: λ of λ/2 · ‖W‖².
        seed: Of the initial weights, which classifiers of a kind share.

    Returns:
        For each kind and each of its learning rates weight `[C D]` and bias `[C]`; not finite where a rate was too
        large.
    """
    batches, state = iter(batches), None
    for step in range(steps):
        features, labels = next(batches)
        if state is None:
            state = [_start(features[:, c], num_classes, len(rates), seed) for c, rates in zip(columns, lrs, strict=True)]
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        for (weight, bias, weight_speed, bias_speed), own, rates in zip(state, columns, lrs, strict=True):
            x = features[:, own]
            logits = (x @ weight.flatten(0, 1).T).unflatten(1, weight.shape[:2]) + bias
            error = logits.softmax(2)
            error[torch.arange(len(x)), :, labels] -= 1
            error /= len(x)
            gradient = (error.flatten(1).T @ x).view_as(weight).add_(weight, alpha=weight_decay)
            rate = decay * x.new_tensor(rates)[:, None]
            weight_speed.mul_(_MOMENTUM).add_(gradient)
            bias_speed.mul_(_MOMENTUM).add_(error.sum(0))
            weight.sub_(rate[..., None] * weight_speed)
            bias.sub_(rate * bias_speed)
    assert state is not None
    return [list(zip(weight, bias, strict=True)) for weight, bias, _, _ in state]


def logistic_regression(features: Tensor, labels: Tensor, strengths: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """scikit-learn's multinomial logistic regression, by L-BFGS.

    Args:
        features: `[M D]`.
        labels: int64 `[M]` in 0 … C - 1.
        strengths: Values of its C.

    Returns:
        For each, weight `[C D]` and bias `[C]` in float32; a class without an image has the bias -inf.

    Raises:
        UserError: scikit-learn is absent.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("--solver lbfgs needs scikit-learn", 'pip install "opendino[eval]"') from None
    import warnings

    num_classes, found = int(labels.max()) + 1, []
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a classifier not quite at its optimum is still one
            made = LogisticRegression(C=strength, max_iter=1000).fit(features.numpy(), labels.numpy())
        own_weight, own_bias = torch.from_numpy(made.coef_), torch.from_numpy(made.intercept_)
        if len(own_bias) == 1:  # two classes: the score of the second over the first
            own_weight, own_bias = torch.cat([-own_weight, own_weight]) / 2, torch.cat([-own_bias, own_bias]) / 2
        seen = torch.from_numpy(made.classes_)
        weight, bias = torch.zeros(num_classes, features.shape[1]), torch.full((num_classes,), -torch.inf)
        weight[seen], bias[seen] = own_weight.float(), own_bias.float()
        found.append((weight, bias))
    return found


@dataclass(frozen=True)
class _Fit:
    """Trains candidates on some rows of the training table."""

    config: Config
    model: Model
    source: Source
    columns: dict[Tokens, slice]
    classes: list[str]
    device: torch.device

    def __call__(self, rows: Table, candidates: Sequence[Candidate]) -> list[Classifier]:
        """Classifiers on the host, one for each candidate, in their order."""
        labels = rows.labels_by(self.classes)
        kinds = list(dict.fromkeys(each.tokens for each in candidates))
        strengths = [[each.strength for each in candidates if each.tokens == kind] for kind in kinds]
        if self.config.solver == "lbfgs":
            made = [
                logistic_regression(rows.features[:, self.columns[kind]].float(), labels, own)
                for kind, own in zip(kinds, strengths, strict=True)
            ]
        else:
            made = self._sgd(rows, labels, [self.columns[kind] for kind in kinds], strengths)
        return [
            Classifier(weight.cpu(), bias.cpu(), tuple(self.classes), kind)
            for kind, own in zip(kinds, made, strict=True)
            for weight, bias in own
        ]

    def _sgd(self, rows: Table, labels: Tensor, columns: list[slice], lrs: list[list[float]]) -> Any:
        config, batch = self.config, min(self.config.batch, len(rows))
        scaled = [[lr * batch / 256 for lr in own] for own in lrs]
        if config.augment:
            steps, stream = config.epochs * (len(rows) // batch), self._crops(rows, batch)
        else:
            steps, stream = config.epochs * -(-len(rows) // batch), self._cached(rows, labels, batch)
        return train_together(stream, steps, len(self.classes), columns, scaled, config.weight_decay, config.seed)

    def _cached(self, rows: Table, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        parts = -(-len(rows) // batch)
        for epoch in range(self.config.epochs):
            order = torch.from_numpy(permutation(len(rows), self.config.seed, epoch))
            for part in order.tensor_split(parts):
                yield rows.features[part].float().to(self.device), labels[part].to(self.device)

    def _crops(self, rows: Table, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        kinds = list(self.columns)
        widest = Tokens(max(kind.blocks for kind in kinds), any(kind.mean_patch for kind in kinds))
        config, indices = self.config, rows.indices.tolist()
        number = torch.tensor([self.classes.index(n) if n in self.classes else -1 for n in self.source.classes])
        options = {"batch": batch, "epochs": config.epochs, "seed": config.seed, "workers": config.workers}
        for features, labels in views(self.model, self.source, indices, [_CROP], widest, **options):
            yield features[0].float(), number.to(self.device)[labels]


def _look(model: Model, data: str, tokens: Tokens, config: Config) -> tuple[Source, Table]:
    """A labelled source, and the features of its images."""
    source = open_source(data)
    if not source.classes:
        raise UserError(
            f"{data} names no classes", "Give folders named by their class, or a CSV of path,class: --train DIR"
        )
    dtype = getattr(torch, config.feature_dtype)
    return source, table(model, source, tokens, workers=config.workers, dtype=dtype).labelled()


def _protocol_for(backbone: Backbone) -> Literal["vits", "vitb", "resnet"]:
    """What the original did with such a network."""
    if not isinstance(backbone, VisionTransformer):
        return "resnet"
    return "vitb" if backbone.embed_dim >= 768 else "vits"


def _kinds(protocol: str, backbone: Backbone) -> list[Tokens]:
    several = Tokens(min(4, num_blocks(backbone)))
    kinds = {"vits": [several], "vitb": [Tokens(1, mean_patch=True)], "resnet": [Tokens()]}
    return kinds[protocol] if protocol in kinds else list(dict.fromkeys([Tokens(), Tokens(1, mean_patch=True), several]))


def _columns(kinds: Sequence[Tokens], widest: Tokens, backbone: Backbone, rows: Table) -> dict[Tokens, slice]:
    """Where in the rows of the widest kind each kind lies: every one ends with the last CLS or with the mean patch."""
    width, last_cls = rows.features.shape[1], widest.blocks * backbone.embed_dim
    return {
        kind: slice(last_cls - kind.blocks * backbone.embed_dim, width if kind.mean_patch else last_cls)
        for kind in kinds
    }


def _start(x: Tensor, num_classes: int, num: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights `[L C D]`, biases `[L C]`, and their momenta."""
    chance = torch.Generator().manual_seed(seed)
    one = torch.empty(num_classes, x.shape[1]).normal_(0, _INITIAL_STD, generator=chance)
    weight = one.to(x).expand(num, -1, -1).clone()
    bias = x.new_zeros(num, num_classes)
    return weight, bias, torch.zeros_like(weight), torch.zeros_like(bias)
