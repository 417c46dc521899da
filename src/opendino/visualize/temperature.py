"""Effect of temperature and centering: softmax of the same logits at several temperatures.

The figure shows the probabilities of one image over the prototypes, without centering and after subtraction of the mean
over many images (the center). A low temperature sharpens: the entropy decreases, and without centering one prototype
dominates for every image. Centering removes this dominance; alone it leads to the uniform distribution, so DINO uses
both.

The logits are random (`--seed`) with one prototype that is larger for all images, or read from a NumPy file. Logits of
a run are not available: the exported backbones do not include the projection head.
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
from opendino.visualize.drawing import style, tile_grid
from opendino.visualize.drawing.style import COLORS


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino visualize temperature`."""

    temperatures: Annotated[tuple[Temperature, ...], Meta(min_length=1, max_length=6)] = (0.04, 0.07, 0.1, 1.0)
    """Softmax temperatures, one column each (DINO: teacher 0.04 to 0.07, student 0.1)."""
    prototypes: Annotated[int, Meta(ge=2, le=2**24)] = 32
    """Number of prototypes K of random logits."""
    seed: Seed = 0
    """Random seed of the logits."""
    logits: str | None = None
    """A .npy file of float logits [images prototypes]: shows the first image, centers by the mean over all."""
    out: str = "temperature.png"
    """Output file: .png, .svg, .pdf or .html."""


@dataclass(frozen=True)
class Softened:
    """Probabilities of one image.

    Attributes:
        probabilities: float64 `[2 temperatures K]`: not centered, and centered; sums to 1 over K.
        entropies: float64 `[2 temperatures]` in nats.
        temperatures: The softmax temperatures.
    """

    probabilities: Tensor
    entropies: Tensor
    temperatures: tuple[float, ...]


def show(config: Config) -> Report:
    """Draw the distributions.

    Raises:
        UserError: The file of logits does not exist or is invalid.
    """
    path = tile_grid.out(config.out, style.FIGURES)
    logits = read(config.logits) if config.logits else example(config.prototypes, config.seed)
    found = softened(logits, config.temperatures)
    with style.applied():
        style.save(figure(found), path)
    rows = [("not centered", found.entropies[0].tolist()), ("centered", found.entropies[1].tolist())]
    lines = [f"{'entropy (nats) at':<18}" + "".join(f"{t:>8g}" for t in config.temperatures)]
    lines += [f"{name:<18}" + "".join(f"{value:8.3f}" for value in values) for name, values in rows]
    max_entropy = math.log(logits.shape[1])
    fields: dict[str, Any] = {"paths": [str(path)], "temperatures": list(config.temperatures), "ln_k": max_entropy}
    fields["entropy"], fields["entropy_centered"] = (values for _, values in rows)
    return Report("\n".join([*lines, f"ln K = {max_entropy:.3f} → {path}"]), fields)


def example(prototypes: int, seed: int, images: int = 256, lead: float = 0.25) -> Tensor:
    """Random logits, float64 `[images prototypes]`: normal, and one prototype larger by `lead` for all images."""
    generator = torch.Generator().manual_seed(seed)
    logits = 0.1 * torch.randn(images, prototypes, generator=generator, dtype=torch.float64)
    logits[:, prototypes // 3] += lead
    return logits


def read(name: str) -> Tensor:
    """Read logits from a NumPy file, float64 `[images prototypes]`; pickles are refused.

    Raises:
        UserError: The file does not exist, has another shape, or holds values that are not finite.
    """
    try:
        logits = np.load(Path(name).expanduser(), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"Cannot read logits from {name}: {error}", "Use a .npy file of floats [images prototypes]"
        ) from None
    if not isinstance(logits, np.ndarray) or logits.dtype.kind not in "fiu" or logits.ndim != 2 or logits.shape[1] < 2:
        what = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, np.ndarray) else "an archive"
        raise UserError(f"{name} holds {what}", "Use a .npy file of floats [images prototypes]")
    if not len(logits) or not np.isfinite(logits).all():
        raise UserError(f"{name} is empty or holds NaN or infinite logits", "Save finite logits")
    return torch.from_numpy(logits.astype(np.float64))


def softened(logits: Tensor, temperatures: tuple[float, ...]) -> Softened:
    """Softmax of the logits of the first image at several temperatures, without and with centering.

    Args:
        logits: `[images prototypes]`.
        temperatures: Above 0.
    """
    stacked = torch.stack([logits[0], logits[0] - logits.mean(0)]).double()  # [2, K]
    divided = stacked[:, None] / torch.tensor(temperatures, dtype=torch.float64)[:, None]  # [2, T, K]
    probabilities = divided.softmax(-1)
    return Softened(probabilities, entropy(probabilities), temperatures)


def figure(found: Softened) -> Any:
    """A matplotlib figure: one column per temperature; top: not centered, bottom: centered; with entropies."""
    num_temperatures, prototypes = found.probabilities.shape[1:]
    fig, axes = style.figure(2, num_temperatures, 3.2)
    max_entropy = math.log(prototypes)
    for row, (name, color) in enumerate((("not centered", COLORS[1]), ("centered", COLORS[0]))):
        for column, temperature in enumerate(found.temperatures):
            axis, values = axes[row, column], found.probabilities[row, column]
            axis.bar(range(prototypes), values.tolist(), width=0.85, color=color)
            axis.axhline(1 / prototypes, color="gray", linewidth=0.6, linestyle=(0, (3, 3)))
            value = found.entropies[row, column].item()
            note = f"H = {value:.2f} ({value / max_entropy:.0%} of ln K)"
            axis.text(1, 0.98, note, ha="right", va="top", transform=axis.transAxes)
            axis.set_ylim(0, 1.25 * max(found.probabilities[:, column].max().item(), 2 / prototypes))
            if row == 0:
                axis.set_title(f"τ = {temperature:g}")
            else:
                axis.set_xlabel("prototype")
        axes[row, 0].set_ylabel(f"probability\n{name}")
    return fig
