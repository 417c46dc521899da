"""Feature quality without labels: effective rank, spectral decay, LiDAR, uniformity, alignment."""

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
from opendino.core.accuracy import baseline_text, format_accuracies
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.core.ranges import Checked, OutOfRange, Seed, Workers
from opendino.core.types import Report
from opendino.data.readers.decoded_image import RGB
from opendino.data.sampler import permutation
from opendino.features import measure_trust
from opendino.features.feature_table import table
from opendino.features.train_val_features import data_of
from opendino.features.view_features import RandomCrops, view_features
from opendino.models import run_checkpoints
from opendino.models.load import Model, load
from opendino.views.image_kinds import without_colors
from opendino.views.settings import view

_VIEW = view({"crop.scale": (0.25, 1.0)})  # plus default flip, jitter and gray: close to the training augmentation
_BATCH = 64
MEASURES = ("effective_rank", "alpha_req", "uniformity", "alignment", "lidar")


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino eval label-free`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = None
    """Images to evaluate on; default: the images the run was trained on."""
    all_checkpoints: bool = False
    """Evaluate every kept checkpoint of a run, rank them, and compare with the k-NN accuracy logged during training."""
    images: Annotated[int, Meta(ge=2, le=10**9)] = 2048
    """Number of images, sampled at random."""
    views: Annotated[int, Meta(ge=0, le=10_000)] = 4
    """Random crops per image for alignment and LiDAR; 0 skips both measures."""
    seed: Seed = 0
    """Random seed for the choice of images and crops."""
    workers: Workers = 4
    """Number of threads or processes that decode images."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views == 1:
            raise OutOfRange("views", self.views, "Use 0 (no crops), or 2 or more")


def evaluate(config: Config) -> Report:
    """Evaluate a model, or every checkpoint of a run, without labels.

    Returns:
        A report with one value per measure; with `all_checkpoints` one row per checkpoint and Spearman correlations.

    Raises:
        UserError: The model, its checkpoints or the images do not exist.
    """
    device = distributed.device(config.device)
    model = load(config.model, config.which)
    data = data_of(model, config.data, "Name the images: opendino eval label-free MODEL DATA")
    source = model.reading.open_images(data)
    indices = sorted(permutation(len(source), config.seed, 0)[: config.images].tolist())
    if len(indices) < 2:
        raise UserError(f"{data} has {len(source)} image", "Use a source with at least 2 images")
    protocol = f"on {len(indices):,} images of {data}" + (f", {config.views} crops per image" if config.views else "")
    if not config.all_checkpoints:
        found, bad = _compute_measures(model.to(device), source, indices, config)
        lines = [f"label-free measures of {config.model} {protocol}{_skipped_note(bad)}"]
        for name in MEASURES:
            trust = measure_trust.of(name)
            lines.append(f"  {name:<16}{_format(found[name]):>10}   {_DESCRIPTIONS[name]}{'; ' * bool(trust)}{trust}")
        lines.append(measure_trust.source())
        return Report("\n".join(lines), {**found, "num_images": len(indices) - bad, "num_unreadable": bad})

    steps = run_checkpoints.steps(config.model)
    network = config.which or model.description["networks"][0]
    (knn, knn_row), rows, bad = _online_knn(Path(config.model).expanduser() / "metrics.jsonl", network), [], 0
    for step in steps:
        checkpoint = run_checkpoints.load_step(config.model, step, config.which).to(device)
        found, bad = _compute_measures(checkpoint, source, indices, config)
        rows.append({"step": step, **found, "knn": knn.get(step)})
        log.say(f"step {step}: effective rank {_format(found['effective_rank'])}")
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
        f"{network} checkpoints of {config.model} {protocol}{_skipped_note(bad)}, sorted by effective rank",
        f"{'step':>14}" + "".join(f"{name:>16}" for name in columns),
        *(f"{row['step']:>14}" + "".join(f"{_format(row[name]):>16}" for name in columns) for row in ranked),
        f"{'best step':>14}" + "".join(f"{best.get(name, '-'):>16}" for name in MEASURES),
        f"{'Spearman':>14}" + "".join(f"{_format(agreement[name]):>16}" for name in MEASURES),
        f"Spearman: rank correlation with the run's k-NN accuracy over {num} checkpoints; 1 means that the measure "
        "orders the checkpoints as k-NN does. Better is: " + ", ".join(f"{name} {_BETTER[name]}" for name in MEASURES),
    ]
    if knn_row:
        accuracy, baseline = format_accuracies(knn_row)[network], baseline_text(knn_row)
        lines.append(f"k-NN at step {knn_row['step']}: {accuracy}; {baseline}".rstrip("; "))
    return Report("\n".join(lines), {"checkpoints": ranked, "best": best, "spearman": agreement, "num_compared": num})


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv:2210.02885): exp of the entropy of the normalized singular values.

    Features are not centered, as in the paper.

    Args:
        features: float `[M D]`.

    Returns:
        Between 1 (all features on one line: collapse) and min(M, D); NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return float("nan")
    return _exp_entropy(torch.linalg.svdvals(features.double()))


@torch.no_grad()
def alpha_req(features: Tensor) -> float:
    """α-ReQ (Agrawal et al. 2022): decay exponent α of the covariance spectrum, λ_i ∝ i^-α; near 1 for good features.

    Weighted least squares fit of log λ against log i over all eigenvalues above 1e-8 of the largest. The weights 1/i
    give every octave of i the same influence.

    Args:
        features: float `[M D]`.

    Returns:
        α; NaN if fewer than three eigenvalues are above the threshold.
    """
    variance = torch.linalg.svdvals(features.double() - features.double().mean(0)) ** 2
    variance = variance[variance > 1e-8 * variance.max().clamp_min(1e-300)]
    if len(variance) < 3:
        return float("nan")
    index = torch.arange(1, len(variance) + 1, dtype=torch.float64)
    x, y, weight = index.log(), variance.cpu().log(), 1 / index / (1 / index).sum()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    return -float((weight * x * y).sum() / (weight * x * x).sum())


@torch.no_grad()
def uniformity(features: Tensor, chunk: int = 1024) -> float:
    """Wang & Isola (2020, arXiv:2005.10242): log of the mean of exp(-2 ‖x - y‖²) over pairs of different images.

    0 if all features point in the same direction; lower values mean a more even cover of the unit sphere (about -4
    for a uniform distribution). Its negative estimates the entropy of the features.

    Args:
        features: float `[M D]`, M ≥ 2; L2-normalized inside this function.
        chunk: Rows per similarity block `[chunk M]`, which bounds memory.
    """
    x = normalize(features.double(), dim=1)
    total = sum(float((4 * (part @ x.T - 1)).exp().sum()) for part in x.split(chunk))  # ‖x - y‖² = 2 - 2 x·y
    return math.log(max(total - len(x), 1e-300) / (len(x) * (len(x) - 1)))


@torch.no_grad()
def alignment(features: Tensor) -> float:
    """Wang & Isola (2020): mean ‖x - y‖² over pairs of views of the same image; 0 if the views agree, 2 at chance.

    Args:
        features: float `[V M D]`, V ≥ 2; L2-normalized inside this function.
    """
    x = normalize(features.double(), dim=2)
    num = len(x)
    same = (x.sum(0) ** 2).sum(1) - num  # [M], sum of x·y over ordered pairs of different views
    return float((2 - 2 * same / (num * (num - 1))).mean())


@torch.no_grad()
def lidar(features: Tensor, ridge: float = 1e-4) -> float:
    """LiDAR (Thilak et al. 2023, arXiv:2312.04000): effective rank of image means relative to view noise.

    exp of the entropy of the eigenvalues of Σ_w^-½ Σ_b Σ_w^-½, as in LDA: Σ_b is the covariance of the image means,
    Σ_w the covariance of the views around them. Two differences from the paper: the ridge is a fraction of the mean
    diagonal of Σ_w instead of an absolute 1e-4, so the result does not depend on the scale of the features; and 1/V,
    the bias that the noise of V views adds to every eigenvalue, is subtracted (the paper uses 50 views, where the bias
    is negligible).

    Args:
        features: float `[V M D]`, V views of M images.
        ridge: Added to the diagonal of Σ_w, as a fraction of its mean.

    Returns:
        Between 1 and min(M - 1, D). NaN if M (V - 1) < D: Σ_w is then singular and the result would depend only on the
        ridge.
    """
    num_views, num, width = features.shape
    if num * (num_views - 1) < width:
        return float("nan")
    x = features.double()
    means = x.mean(0)  # [M, D]
    deviations = (x - means).flatten(0, 1)  # [V * M, D]
    within = deviations.T @ deviations / (num * (num_views - 1))  # Σ_w, [D, D]
    between = means.T.cov()  # Σ_b, [D, D]
    scale = within.diagonal().mean()
    if not scale > 0:
        return float("nan")
    within += ridge * scale * torch.eye(width, dtype=x.dtype, device=x.device)
    cholesky = torch.linalg.cholesky(within)  # L⁻¹ Σ_b L⁻ᵀ has the same eigenvalues
    half_whitened = torch.linalg.solve_triangular(cholesky, between, upper=False)
    whitened = torch.linalg.solve_triangular(cholesky, half_whitened.T, upper=False)
    signal = torch.linalg.eigvalsh((whitened + whitened.T) / 2) - 1 / num_views
    return _exp_entropy(signal.clamp_min(0))


def spearman(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation over the pairs without None; ties get their mean rank.

    Returns:
        In [-1, 1]; None for fewer than three pairs, or if one side is constant.
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(pairs) < 3:
        return None
    ranks = torch.stack([_ranks([pair[side] for pair in pairs]) for side in (0, 1)])
    found = float(ranks.corrcoef()[0, 1]) if (ranks.std(1) > 0).all() else math.nan
    return found if math.isfinite(found) else None


def merit(name: str, value: float | None) -> float | None:
    """The measure with its sign adjusted so that higher is better; None stays None."""
    if value is None:
        return None
    return {"alpha_req": -abs(value - 1), "uniformity": -value, "alignment": -value}.get(name, value)


_DESCRIPTIONS = {
    "effective_rank": "RankMe: number of dimensions in use; 1 means collapse",
    "alpha_req": "decay exponent of the spectrum; 1 is best",
    "uniformity": "0 means collapse; lower is better",
    "alignment": "0 if crops of an image agree, 2 at chance",
    "lidar": "number of dimensions that separate images",
}
_BETTER = {
    "effective_rank": "higher", "alpha_req": "closer to 1", "uniformity": "lower", "alignment": "lower",
    "lidar": "higher",
}  # fmt: skip


def _compute_measures(
    model: Model, source: Source, indices: list[int], config: Config
) -> tuple[dict[str, float | None], int]:
    """Every measure (None if undefined), and the number of unreadable images."""
    whole = table(model, source, indices=indices, workers=config.workers)
    if len(whole) < 2:
        raise UserError("Only one of the images can be read", "Use a source with at least 2 readable images")
    x = whole.features
    found = {"effective_rank": effective_rank(x), "alpha_req": alpha_req(x), "uniformity": uniformity(x)}
    if config.views:
        readable = whole.indices.tolist()
        batch = min(_BATCH, len(readable))
        names, crop = model.reading.channel_names, _VIEW
        if names != RGB:
            crop = without_colors({"crop": _VIEW}, {"crop": _VIEW}, len(names))[0]["crop"]
        crops = RandomCrops((crop,) * config.views, batch, seed=config.seed, workers=config.workers)
        of_views = torch.cat([part.cpu() for part, _ in view_features(model, source, readable, crops)], dim=1)
        found |= {"alignment": alignment(of_views), "lidar": lidar(of_views)}
    return {name: _finite_or_none(found.get(name, math.nan)) for name in MEASURES}, len(whole.bad)


def _online_knn(path: Path, network: str) -> tuple[dict[int, float], dict[str, Any]]:
    """Step → k-NN accuracy in percent from a run's metrics file, and the last row with one."""
    found, last = {}, {}
    for row in metrics_log.sampled(path) if path.is_file() else ():
        knn = row.get("knn")
        if isinstance(knn, dict) and isinstance(knn.get(network), int | float):
            found[row["step"]], last = float(knn[network]), row
    return found, last


def _exp_entropy(values: Tensor) -> float:
    """Exp of the entropy of non-negative values divided by their sum."""
    return float(torch.special.entr(values / values.sum().clamp_min(1e-300)).sum().exp())


def _ranks(values: list[float]) -> Tensor:
    """Ranks from 1, float64 `[N]`; ties get their mean rank."""
    x = torch.tensor(values, dtype=torch.float64)
    below, equal = ((x[:, None] > x).sum(1).double(), (x[:, None] == x).sum(1).double())
    return below + (equal + 1) / 2


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _skipped_note(bad: int) -> str:
    return f", {bad} unusable skipped" if bad else ""
