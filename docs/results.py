"""Writes docs/results.md and docs/figures/real.svg from two records of benchmarks/results: python docs/results.py

They are the newest real_*.json, which the figure shows, and the newest real_opponents_*.json, with lightly's pieces
and lightly-train. The section of other results at the page's end is written by hand and kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

PAGE = Path(__file__).with_name("results.md")
FIGURE = Path(__file__).with_name("figures") / "real.svg"
RESULTS = Path(__file__).parents[1] / "benchmarks/results"
WAYS = {
    "pixels": "raw pixels, 32×32", "color+LBP": "color and texture (LBP) by hand", "untrained": "untrained network",
    "lightly": "lightly's pieces, same network and processor time",
    "lightly-train": "lightly-train, same network and processor time", "ours": "opendino, default command",
}  # fmt: skip
MEASURES = {
    "knn": "k-NN", "knn scaled": "k-NN, scaled", "balanced": "balanced", "linear": "linear", "5 a class": "5 labels a class",
    "20 a class": "20 labels a class",
}  # fmt: skip
HEADINGS = "The default command, and no training", "Beside lightly's pieces and lightly-train"
WIDTH, ROW, LEFT, RIGHT, TOP = 780, 44, 180, 60, 40
# Okabe and Ito's colors, told apart by the color-blind too.
DOTS = {
    "pixels": ("#000000", "raw pixels"), "color+LBP": ("#E69F00", "color and texture by hand"),
    "untrained": ("#999999", "same network, untrained"), "ours": ("#0072B2", "opendino, 20 minutes"),
}  # fmt: skip
IMAGES = {
    "steel96": "steel surfaces, gray", "eurosat64": "satellite, RGB", "leaf96": "tomato leaves, RGB",
    "fluorescence": "cells, 3 channels, 16 bit", "bloodcells": "blood cells, RGB",
}  # fmt: skip


HEAD = """# Results on real images

Accuracy in percent on images held out of training: k-NN (k = 10, cosine) of the vectors as they are and of
vectors scaled by mean and deviation of the training images; of the scaled ones the mean over the classes, a
linear classifier on all labels of the training images, and on 5 and 20 labels a class (mean of 5 draws). ± is the
larger one of the standard errors over queries and over seeds. Training sees no labels. By hand means mean and deviation of each
channel and local binary patterns (LBP) of 8 points at 1 px and 16 at 2 px; raw pixels are all channels at 32×32.

## The images

`OPENDINO_DATA=DIR` names a folder with these sets, as `DIR/steel96/train/CLASS/*` and `DIR/steel96/val/CLASS/*`. They are not ours to hand
out; this is how each was made. An image is in `val` if the first eight hexadecimal digits of the SHA-256 of its file name, as a number,
are a multiple of 5 (bloodcells: of 4; leaf96: of what the file name calls a leaf, or of twenty shots of a camera that follow each other).

| set | images, train + val | from (GitHub) | how |
|---|---|---|---|
| steel96 | surfaces of rolled steel, 6 kinds of defects, gray, 1,439 + 360 | NEU-DET (K. Song, Y. Yan): siddhartamukherjee/NEU-DET-Steel-Surface-Defect-Detection | 200 px made 128 (Lanczos), JPEG of quality 85 |
| eurosat64 | land from a satellite, 10 uses, RGB, 2,156 + 544 | EuroSAT (Helber et al. 2019): DerrickLJH2000/EuroSAT-HyperSpectral-Image-Classification | original files of 64 px, of each class the 270 whose names have the smallest SHA-256 |
| leaf96 | tomato leaves, nine diseases and healthy, RGB, 1,272 + 327 | PlantVillage (Hughes and Salathé 2015): MarcoCaruso02/plantvillage | at most 160 of a class, 256 px made 96, JPEG of quality 85 |
| fluorescence | single cells, bright field, DNA stain and dark field, 16 bit, 1,392 + 328 | imaging flow cytometry (Blasi et al. 2016): minh-doan/MLCP | cells of 40 px cut from montages; four of seven phases: G1, G2, Prophase, S |
| bloodcells | white blood cells of two devices, 5 kinds, RGB, 298 + 102 | Zheng et al. 2018: zxaoyou/segmentation_WBC | squares of 1.4 times the box of a cell, 96 px, PNG |

"""


def record(path: Path, heading: str) -> str:
    """The tables of a record."""
    found, name = json.loads(path.read_text(encoding="utf-8")), path.name
    lines = [
        f"## {heading}",
        "",
        f"{found['machine']}, {found['date']} ([file](../benchmarks/results/{name})):",
        *([found["note"][0].upper() + found["note"][1:] + "."] if "note" in found else []),
        "",
        "```",
        found["command"],
        "```",
        "",
    ]
    for pack, ways in found["packs"].items():
        rows = {way: ways[way] for way in WAYS if way in ways}
        seeds = ", ".join(str(run["seed"]) for run in rows["ours"])
        lines += [f"### {pack}, {rows['ours'][0]['queries']} queries, seeds {seeds}", ""]
        lines += [f"| | {' | '.join(MEASURES.values())} | processor minutes |", f"|---|{'---|' * (len(MEASURES) + 1)}"]
        for way, runs in rows.items():
            cells = [cell(runs, measure) for measure in MEASURES]
            seconds = [run["processor seconds"] for run in runs if "processor seconds" in run]
            cells.append(f"{mean(seconds) / 60:.0f}" if seconds else "")
            lines.append(f"| {WAYS[way]} | {' | '.join(cells)} |")
        said = ", ".join(run["verdict"] for run in rows["ours"])
        lines += ["", f"The run's own verdict, from fewer queries: {said}.", ""]
    return "\n".join(lines)


def cell(runs: list[dict], measure: str) -> str:
    """Mean, for k-NN with the larger of its standard errors over seeds and over queries, e.g. "97.2 ± 0.9"."""
    values = [run[measure] for run in runs]
    if measure != "knn":
        return f"{mean(values):.1f}"
    seeds = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{mean(values):.1f} ± {max(seeds, mean(run['standard error'] for run in runs)):.1f}"


def picture(path: Path) -> str:
    """A record as SVG: a row for each set of images, a dot for each way, at the better of its two k-NN accuracies."""
    packs = json.loads(path.read_text(encoding="utf-8"))["packs"]
    height = TOP + ROW * len(packs) + 40

    def x(percent: float) -> float:
        return LEFT + percent / 100 * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for percent in range(0, 101, 20):
        parts.append(f'<line x1="{x(percent):.0f}" x2="{x(percent):.0f}" y1="{TOP}" y2="{height - 34}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(percent):.0f}" y="{height - 16}" text-anchor="middle">{percent}</text>')
    at = 16.0
    for color, label in DOTS.values():
        parts.append(f'<circle cx="{at}" cy="16" r="6" fill="{color}"/><text x="{at + 11}" y="20.5">{label}</text>')
        at += 7.2 * len(label) + 38
    for row, (pack, ways) in enumerate(packs.items()):
        y = TOP + ROW * (row + 0.5)
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4.5:.1f}" text-anchor="end">{IMAGES[pack]}</text>')
        best = {
            way: max(mean(run[measure] for run in ways[way]) for measure in ("knn", "knn scaled")) for way in DOTS
        }
        for number, (way, (color, _)) in enumerate(DOTS.items()):
            parts.append(f'<circle cx="{x(best[way]):.1f}" cy="{y + 7 * (number - 1.5):.1f}" r="6" fill="{color}"/>')
        ours = f'{y + 4.5:.1f}" fill="{DOTS["ours"][0]}">{best["ours"]:.1f} %'
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{ours}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    opponents = set(RESULTS.glob("real_opponents_*.json"))
    newest = [
        max(files, key=lambda path: (path.stem.rpartition("_")[2], path.name))
        for files in (set(RESULTS.glob("real_*.json")) - opponents, opponents)
    ]
    FIGURE.write_text(picture(newest[0]), encoding="utf-8")
    _, heading, by_hand = PAGE.read_text(encoding="utf-8").partition("\n## Other results\n")
    PAGE.write_text(HEAD + "\n".join(map(record, newest, HEADINGS)) + heading + by_hand, encoding="utf-8")
