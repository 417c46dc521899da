"""What features say of themselves, without labels: effective rank, power law, LiDAR, uniformity, alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import normalize

from opendino.core import distributed, log, metrics_log
from opendino.core.accuracy import shown, yardstick
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.core.ranges import Checked, OutOfRange, Seed, Workers
from opendino.core.types import Augment, Report
from opendino.data.open_source import open_source
from opendino.data.sampler import permutation
from opendino.features.feature_table import table
from opendino.features.train_val_features import data_of
from opendino.features.view_features import views
from opendino.models import run_checkpoints
from opendino.models.load import Model, load

_VIEW = Augment(scale=(0.25, 1.0))  # with flip, jitter and gray: about what methods train on
_BATCH = 64
MEASURES = ("effective_rank", "alpha_req", "uniformity", "alignment", "lidar")


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino eval label-free` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; the one to use by default."""
    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = None
    """Images; those that a run was trained on by default."""
    all_checkpoints: bool = False
    """Judge every checkpoint that a run has kept, rank them, and compare with the k-NN measured while it trained."""
    images: Annotated[int, Meta(ge=2, le=10**9)] = 2048
    """How many images to look at, drawn at random."""
    views: Annotated[int, Meta(ge=0, le=10_000)] = 4
    """Random crops of each image for alignment and LiDAR; 0 goes without these two."""
    seed: Seed = 0
    """Decides which images and crops."""
    workers: Workers = 4
    """Threads or processes that decode images."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views == 1:
            raise OutOfRange("views", self.views, "Use 0, or 2 or more")


def evaluate(config: Config) -> Report:
    """Judge a model, or every checkpoint of a run, without labels.

    Raises:
        UserError: No such model, checkpoints or images.
    """
    device = distributed.device(config.device)
    model = load(config.model, config.which)
    data = data_of(model, config.data, "Name images: MODEL DATA")
    source = open_source(data)
    indices = sorted(permutation(len(source), config.seed, 0)[: config.images].tolist())
    if len(indices) < 2:
        raise UserError(f"{data} has {len(source)} image", "Give two or more")
    protocol = f"on {len(indices):,} images of {data}" + (f", {config.views} crops each" if config.views else "")
    if not config.all_checkpoints:
        found, bad = _measure(model.to(device), source, indices, config)
        lines = [f"label-free measures of {config.model} {protocol}{_unread(bad)}"]
        lines += [f"  {name:<16}{_shown(found[name]):>10}   {_MEANING[name]}" for name in MEASURES]
        return Report("\n".join(lines), {**found, "num_images": len(indices) - bad, "num_unreadable": bad})

    steps = run_checkpoints.steps(config.model)
    network = config.which or model.description["networks"][0]
    (knn, judged), rows, bad = _knn_of(Path(config.model).expanduser() / "metrics.jsonl", network), [], 0
    for step in steps:
        one = run_checkpoints.load_step(config.model, step, config.which).to(device)
        found, bad = _measure(one, source, indices, config)
        rows.append({"step": step, **found, "knn": knn.get(step)})
        log.say(f"step {step}: effective rank {_shown(found['effective_rank'])}")
    merits = {name: [merit(name, row[name]) for row in rows] for name in MEASURES}
    agreement = {name: spearman(merits[name], [row["knn"] for row in rows]) for name in MEASURES}
    best = {
        name: max(zip(own, (row["step"] for row in rows), strict=True), key=lambda pair: pair[0])[1]
        for name, own in ((name, [-math.inf if m is None else m for m in merits[name]]) for name in MEASURES)
        if max(own) > -math.inf
    }
    num = sum(row["knn"] is not None for row in rows)
    ranked = sorted(rows, key=lambda row: -(row["effective_rank"] or 0))
    columns = [*MEASURES, "knn"]
    lines = [
        f"the {network}'s checkpoints of {config.model} {protocol}{_unread(bad)}, by effective rank",
        f"{'step':>14}" + "".join(f"{name:>16}" for name in columns),
        *(f"{row['step']:>14}" + "".join(f"{_shown(row[name]):>16}" for name in columns) for row in ranked),
        f"{'best step':>14}" + "".join(f"{best.get(name, '-'):>16}" for name in MEASURES),
        f"{'Spearman':>14}" + "".join(f"{_shown(agreement[name]):>16}" for name in MEASURES),
        f"Spearman: rank correlation with the run's own k-NN over {num} checkpoints; 1 where the measure's better is "
        "always k-NN's better. Better is: " + ", ".join(f"{name} {_BETTER[name]}" for name in MEASURES),
    ]
    if judged:
        lines.append(f"k-NN at step {judged['step']}: {shown(judged)[network]}; {yardstick(judged)}".rstrip("; "))
    return Report("\n".join(lines), {"checkpoints": ranked, "best": best, "spearman": agreement, "num_compared": num})


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv:2210.02885): exp of the entropy of the normalized singular values.

    Between 1 (all features on one line: collapse) and min(M, D). Features are not centered, as in the paper.

    Args:
        features: float `[M D]`.

    Returns:
        NaN where features are not finite.
    """
    if not features.isfinite().all():
        return float("nan")
    return _spread(torch.linalg.svdvals(features.double()))


@torch.no_grad()
def alpha_req(features: Tensor) -> float:
    """α-ReQ (Agrawal et al. 2022): how fast the spectrum decays, α of λ_i ∝ i^-α; good features have it near 1.

    λ are the eigenvalues of the covariance. The line through log λ over log i is fitted by least squares with weights
    1/i, so that every octave of i counts alike, to all λ above 1e-8 of the largest.

    Args:
        features: float `[M D]`.

    Returns:
        NaN where fewer than three eigenvalues count.
    """
    variance = torch.linalg.svdvals(features.double() - features.double().mean(0)) ** 2
    variance = variance[variance > 1e-8 * variance.max().clamp_min(1e-300)]
    if len(variance) < 3:
        return float("nan")
    place = torch.arange(1, len(variance) + 1, dtype=torch.float64)
    x, y, weight = place.log(), variance.cpu().log(), 1 / place / (1 / place).sum()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    return -float((weight * x * y).sum() / (weight * x * x).sum())


@torch.no_grad()
def uniformity(features: Tensor, chunk: int = 1024) -> float:
    """Wang & Isola (2020, arXiv:2005.10242): log of the mean of exp(-2 ‖x - y‖²) over pairs of different images.

    0 where all features point the same way; the lower, the more evenly they cover the sphere (about -4 at the most
    even). Up to its sign an estimate of their entropy.

    Args:
        features: float `[M D]`, M ≥ 2, scaled to unit length here.
        chunk: Rows compared at a time.
    """
    x = normalize(features.double(), dim=1)
    total = sum(float((4 * (part @ x.T - 1)).exp().sum()) for part in x.split(chunk))  # ‖x - y‖² = 2 - 2 x·y
    return math.log(max(total - len(x), 1e-300) / (len(x) * (len(x) - 1)))


@torch.no_grad()
def alignment(features: Tensor) -> float:
    """Wang & Isola (2020): mean ‖x - y‖² over pairs of views of one image; 0 where all views agree, 2 at chance.

    Args:
        features: float `[V M D]`, V ≥ 2, scaled to unit length here.
    """
    x = normalize(features.double(), dim=2)
    num = len(x)
    same = (x.sum(0) ** 2).sum(1) - num  # the sum of x·y over ordered pairs of different views
    return float((2 - 2 * same / (num * (num - 1))).mean())


@torch.no_grad()
def lidar(features: Tensor, ridge: float = 1e-4) -> float:
    """LiDAR (Thilak et al. 2023, arXiv:2312.04000): effective rank of images over the noise of views.

    The entropy is of the eigenvalues of Σ_w^-½ Σ_b Σ_w^-½, with Σ_b the covariance of the images' means and Σ_w that of
    views about them. Between 1 and min(M - 1, D). Two things differ from the paper. It adds 1e-4 to Σ_w's diagonal;
    here it is that share of its mean, so that the scale of the features does not matter. It takes 50 views, whose
    means are all but free of noise; here 1/V, what the noise of V views adds to every eigenvalue, is taken off.

    Args:
        features: float `[V M D]`.
        ridge: What is added to the diagonal.

    Returns:
        NaN where M (V - 1) < D: with so few views Σ_w has not its rank, and the ridge would decide.
    """
    num_views, num, width = features.shape
    if num * (num_views - 1) < width:
        return float("nan")
    x = features.double()
    means = x.mean(0)
    inner = (x - means).flatten(0, 1)
    within = inner.T @ inner / (num * (num_views - 1))
    between = means.T.cov()
    scale = within.diagonal().mean()
    if not scale > 0:
        return float("nan")
    within += ridge * scale * torch.eye(width, dtype=x.dtype, device=x.device)
    root = torch.linalg.cholesky(within)  # L⁻¹ Σ_b L⁻ᵀ has the same eigenvalues
    half = torch.linalg.solve_triangular(root, between, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.T, upper=False)
    signal = torch.linalg.eigvalsh((whitened + whitened.T) / 2) - 1 / num_views
    return _spread(signal.clamp_min(0))


def spearman(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation of the pairs that are complete, ties sharing their mean rank.

    Returns:
        In [-1, 1]; None for fewer than three pairs, or where one side is constant.
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(pairs) < 3:
        return None
    ranks = torch.stack([_ranks([pair[side] for pair in pairs]) for side in (0, 1)])
    found = float(ranks.corrcoef()[0, 1]) if (ranks.std(1) > 0).all() else math.nan
    return found if math.isfinite(found) else None


def merit(name: str, value: float | None) -> float | None:
    """A measure turned so that more is better; None where it says nothing."""
    if value is None:
        return None
    return {"alpha_req": -abs(value - 1), "uniformity": -value, "alignment": -value}.get(name, value)


_MEANING = {
    "effective_rank": "RankMe: dimensions in use; 1 where all images look alike to it",
    "alpha_req": "decay of the spectrum; 1 is best",
    "uniformity": "0 for collapse; lower is more even",
    "alignment": "0 where crops of an image agree, 2 at chance",
    "lidar": "dimensions that tell images apart",
}
_BETTER = {
    "effective_rank": "higher", "alpha_req": "nearer to 1", "uniformity": "lower", "alignment": "lower",
    "lidar": "higher",
}  # fmt: skip


def _measure(model: Model, source: Source, indices: list[int], config: Config) -> tuple[dict[str, float | None], int]:
    """Every measure, None where it says nothing; and how many of the images cannot be read."""
    whole = table(model, source, indices=indices, workers=config.workers)
    if len(whole) < 2:
        raise UserError("Only one of the images can be read", "Give two or more")
    x = whole.features
    found = {"effective_rank": effective_rank(x), "alpha_req": alpha_req(x), "uniformity": uniformity(x)}
    if config.views:
        readable = whole.indices.tolist()
        drawn = views(
            model, source, readable, [_VIEW] * config.views, batch=min(_BATCH, len(readable)), seed=config.seed,
            workers=config.workers,
        )  # fmt: skip
        several = torch.cat([features.cpu() for features, _ in drawn], dim=1)
        found |= {"alignment": alignment(several), "lidar": lidar(several)}
    return {name: _number(found.get(name, math.nan)) for name in MEASURES}, len(whole.bad)


def _knn_of(path: Path, network: str) -> tuple[dict[int, float], dict[str, Any]]:
    """Step → k-NN in percent, from a run's measurements, and the last row that has one."""
    found, last = {}, {}
    for row in metrics_log.sampled(path) if path.is_file() else ():
        knn = row.get("knn")
        if isinstance(knn, dict) and isinstance(knn.get(network), int | float):
            found[row["step"]], last = float(knn[network]), row
    return found, last


def _spread(values: Tensor) -> float:
    """Exp of the entropy of non-negative values as shares of their sum."""
    return float(torch.special.entr(values / values.sum().clamp_min(1e-300)).sum().exp())


def _ranks(values: list[float]) -> Tensor:
    x = torch.tensor(values, dtype=torch.float64)
    below, equal = ((x[:, None] > x).sum(1).double(), (x[:, None] == x).sum(1).double())
    return below + (equal + 1) / 2


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _unread(bad: int) -> str:
    return f", {bad} unreadable left out" if bad else ""
