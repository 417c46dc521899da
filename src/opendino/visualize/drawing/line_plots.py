"""Small SVG line plots over steps without a plotting library, for self-contained HTML pages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from opendino.visualize.drawing.tile_grid import COLORS

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 44, 26
_MAX_BUCKETS = 400
"""Maximum number of buckets of a line, each shown by its minimum and maximum: about one per pixel."""

Line = tuple[ArrayLike, ArrayLike]
Style = tuple[str, str]
"""(color, SVG attribute of the dashes or an empty string)."""
_DASHES = ("", ' stroke-dasharray="7 3"', ' stroke-dasharray="2 3"')  # beyond eight colors


def style(number: int) -> Style:
    """Style of line number `number`, from 0."""
    return COLORS[number % len(COLORS)], _DASHES[number // len(COLORS) % len(_DASHES)]


def plot(
    title: str,
    lines: Mapping[str, Line],
    level: tuple[float, str] | None = None,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
    styles: Mapping[str, Style] | None = None,
) -> str:
    """SVG plot with one set of axes.

    Args:
        title: Quantity and unit.
        lines: Name → (steps, values); values that are not finite are skipped. At least one finite value in total.
        level: A dashed horizontal line, and its label.
        bands: Name of a line → (steps, minimum, maximum), drawn as a pale band.
        styles: Name of a line → color and dashes; default: by its position in `lines`.
    """
    bands, styles = bands or {}, styles or {name: style(number) for number, name in enumerate(lines)}
    shown = {name: _thinned(*line) for name, line in lines.items()}
    xs = np.concatenate([x for x, _ in shown.values()])
    ys = np.concatenate([y for _, y in shown.values()] + ([np.array([level[0]])] if level else []))
    ys = np.concatenate([ys, *(edge for _, low, high in bands.values() for edge in (low, high))])
    assert len(xs), f"{title} has nothing to show"
    x_low, x_high = float(xs.min()), max(float(xs.max()), float(xs.min()) + 1)
    ticks = _ticks(float(ys.min()), float(ys.max()))
    y_low, y_high = min(ticks[0], float(ys.min())), max(ticks[-1], float(ys.max()))

    def to_x(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def to_y(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="11" role="img"><title>{escape(title)}</title>',
        f'<text x="{_LEFT}" y="14" font-size="12" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in ticks:
        parts.append(f'<path d="M{_LEFT} {to_y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{to_y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x, anchor in ((x_low, "start"), (x_high, "end")):
        parts.append(f'<text x="{to_x(x):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{x:,.0f}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">step</text>')
    if level:
        parts.append(
            f'<path d="M{_LEFT} {to_y(level[0]):.1f}H{_WIDTH - _RIGHT}" stroke="#777" stroke-dasharray="5 4"/>'
            f'<text x="{_WIDTH - _RIGHT}" y="{to_y(level[0]) - 4:.1f}" text-anchor="end">{escape(level[1])}</text>'
        )
    legend_x = float(_LEFT)
    for name, (x, y) in shown.items():
        color, dashes = styles[name]
        if name in bands:
            steps, low, high = (edge.tolist() for edge in bands[name])
            outline = [*zip(steps, high, strict=True), *zip(steps[::-1], low[::-1], strict=True)]
            points = " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in outline)
            parts.append(f'<polygon points="{points}" fill="{color}" fill-opacity="0.2"/>')
        points = " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"{dashes}/>')
        if len(x) == 1:
            parts.append(f'<circle cx="{to_x(float(x[0])):.1f}" cy="{to_y(float(y[0])):.1f}" r="2.5" fill="{color}"/>')
        parts.append(f'<text x="{legend_x:.0f}" y="32" fill="{color}">{escape(name)}</text>')
        legend_x += 6.2 * len(name) + 14
    return "".join([*parts, "</svg>"])


def _thinned(steps: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The finite values; for long lines only the minimum and maximum of each bucket, in order."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= 2 * _MAX_BUCKETS:
        return x, y
    edges = np.linspace(0, len(x), _MAX_BUCKETS + 1).astype(int)
    chosen = [
        first + int(f(y[first:last])) for first, last in itertools.pairwise(edges) for f in (np.argmin, np.argmax)
    ]
    chosen = np.unique([0, *chosen, len(x) - 1])
    return x[chosen], y[chosen]


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers in a range."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
