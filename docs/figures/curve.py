"""Draws the README's figure: k-NN over training steps of one run, as SVG.

python docs/figures/curve.py RUN docs/figures/demo.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 780, 300, 52, 250, 24, 40
# Okabe and Ito's colors, told apart by the color-blind too.
LINES = {
    "teacher": ("#0072B2", "DINO, teacher"),
    "student": ("#E69F00", "DINO, student"),
    "untrained": ("#999999", "same network, untrained"),
    "pixels": ("#000000", "raw pixels"),
}


def main(run: str, out: str) -> None:
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    judged = [row for row in rows if "knn" in row]
    last = judged[-1]["step"]

    def place(step: float, percent: float) -> tuple[float, float]:
        x = LEFT + step / last * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - percent / 100 * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for percent in range(0, 101, 20):
        x, y = place(0, percent)
        parts.append(f'<line x1="{x}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}</text>')
    ends = []
    for name, (color, label) in LINES.items():
        points = [place(row["step"], row["knn"][name]) for row in judged]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = "" if name in ("teacher", "student") else ' stroke-dasharray="6 4"'
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.5"{dash}/>')
        ends.append([points[-1][1], color, f"{label} {judged[-1]['knn'][name]:.1f} %"])
    ends.sort()
    for above, below in zip(ends, ends[1:], strict=False):
        below[0] = max(below[0], above[0] + 16)
    for y, color, label in ends:
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}" fill="{color}">{label}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 8}">k-NN top-1 on held-out images, %</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">step {last}</text></svg>')
    Path(out).write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
