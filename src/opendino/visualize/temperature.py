"""What temperature and centering do to an output: softmax of the same logits, sharper and flatter.

The figure shows one image's probabilities over the prototypes, as they are and after the mean over many images (the
center) is subtracted. A low temperature sharpens: the entropy falls, and without centering the prototype that leads for
every image takes all. Centering removes that lead and alone pulls to the uniform distribution, so DINO does both.

Logits are drawn by chance (`--seed`), with one prototype ahead for all images, or read from a NumPy file. A run's own
are not offered: a run leaves backbones to use, without the head that makes logits of their features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from opendino.core.errors import UserError
from opendino.core.ranges import Checked, Seed, Temperature
from opendino.core.types import Report
from opendino.losses import entropy
from opendino.visualize.drawing import figure as _plot
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.tile_grid import COLORS


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino visualize temperature` takes."""

    temperatures: Annotated[tuple[Temperature, ...], Meta(min_length=1, max_length=6)] = (0.04, 0.07, 0.1, 1.0)
    """Of the softmax, a column each; DINO's teacher 0.04 to 0.07, its student 0.1."""
    prototypes: Annotated[int, Meta(ge=2, le=2**24)] = 32
    """K, of logits drawn by chance."""
    seed: Seed = 0
    """Of logits drawn by chance."""
    logits: str | None = None
    """A .npy of float logits [images prototypes]; the first image's are drawn, the mean of all is the center."""
    out: str = "temperature.png"
    """A picture: .png, .svg, .pdf or .html."""


@dataclass(frozen=True)
class Softened:
    """Probabilities of one image.

    Attributes:
        probabilities: float64 `[2 temperatures K]`: as they are, and centered; rows sum to 1.
        entropies: float64 `[2 temperatures]` in nats.
        temperatures: As given.
    """

    probabilities: Tensor
    entropies: Tensor
    temperatures: tuple[float, ...]


def show(config: Config) -> Report:
    """Draw the distributions.

    Raises:
        UserError: No such file of logits, or no logits in it; no matplotlib.
    """
    path = tile_grid.out(config.out, _plot.PLOTS)
    logits = read(config.logits) if config.logits else example(config.prototypes, config.seed)
    found = softened(logits, config.temperatures)
    with _plot.style():
        _plot.save(figure(found), path)
    rows = [("as they are", found.entropies[0].tolist()), ("centered", found.entropies[1].tolist())]
    lines = [f"{'entropy (nats) at':<18}" + "".join(f"{t:>8g}" for t in config.temperatures)]
    lines += [f"{name:<18}" + "".join(f"{value:8.3f}" for value in values) for name, values in rows]
    most = math.log(logits.shape[1])
    fields: dict[str, Any] = {"paths": [str(path)], "temperatures": list(config.temperatures), "ln_k": most}
    fields["entropy"], fields["entropy_centered"] = (values for _, values in rows)
    return Report("\n".join([*lines, f"ln K = {most:.3f} → {path}"]), fields)


def example(prototypes: int, seed: int, images: int = 256, lead: float = 0.25) -> Tensor:
    """Logits by chance, float64 `[images prototypes]`: normal, with a lead of one prototype that all images share."""
    generator = torch.Generator().manual_seed(seed)
    logits = 0.1 * torch.randn(images, prototypes, generator=generator, dtype=torch.float64)
    logits[:, prototypes // 3] += lead
    return logits


def read(name: str) -> Tensor:
    """Logits from a NumPy file, float64 `[images prototypes]`; nothing in it is executed.

    Raises:
        UserError: No such file, or no finite numbers of that shape.
    """
    try:
        logits = np.load(Path(name).expanduser(), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"Cannot read logits from {name}: {error}", "Give a .npy file of floats") from None
    if not isinstance(logits, np.ndarray) or logits.dtype.kind not in "fiu" or logits.ndim != 2 or logits.shape[1] < 2:
        what = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, np.ndarray) else "an archive"
        raise UserError(f"{name} holds {what}", "Give a .npy file of floats [images prototypes]")
    if not len(logits) or not np.isfinite(logits).all():
        raise UserError(f"{name} holds logits that are not finite numbers", "Save those of a healthy step")
    return torch.from_numpy(logits.astype(np.float64))


def softened(logits: Tensor, temperatures: tuple[float, ...]) -> Softened:
    """Softmax of the first image's logits at several temperatures, without and with centering.

    Args:
        logits: `[images prototypes]`.
        temperatures: Above 0.
    """
    one = torch.stack([logits[0], logits[0] - logits.mean(0)]).double()
    divided = one[:, None] / torch.tensor(temperatures, dtype=torch.float64)[:, None]
    probabilities = divided.softmax(-1)
    return Softened(probabilities, entropy(probabilities), temperatures)


def figure(found: Softened) -> Any:
    """A matplotlib figure: a column a temperature, above as they are, below centered, entropies written in."""
    number, prototypes = found.probabilities.shape[1:]
    drawn, axes = _plot.panels(2, number, 3.2)
    most = math.log(prototypes)
    for row, (name, color) in enumerate((("not centered", COLORS[1]), ("centered", COLORS[0]))):
        for column, temperature in enumerate(found.temperatures):
            axis, values = axes[row, column], found.probabilities[row, column]
            axis.bar(range(prototypes), values.tolist(), width=0.85, color=color)
            axis.axhline(1 / prototypes, color="gray", linewidth=0.6, linestyle=(0, (3, 3)))
            value = found.entropies[row, column].item()
            note = f"H = {value:.2f} ({value / most:.0%} of ln K)"
            axis.text(1, 0.98, note, ha="right", va="top", transform=axis.transAxes)
            axis.set_ylim(0, 1.25 * max(found.probabilities[:, column].max().item(), 2 / prototypes))
            if row == 0:
                axis.set_title(f"τ = {temperature:g}")
            else:
                axis.set_xlabel("prototype")
        axes[row, 0].set_ylabel(f"probability\n{name}")
    return drawn
