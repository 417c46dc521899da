"""Do the images of two tables differ? opendino drift TABLE_A TABLE_B [--k 10] [--sheet sheet.png]"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from torch import Tensor

from opendino.cli import Outcome, flags, run_verdict, table_sheet
from opendino.core import distributed
from opendino.core.errors import UserError
from opendino.core.progress import track
from opendino.core.ranges import Checked, Count, Repeats, Seed
from opendino.embeddings.embedding_table import EmbeddingTable, left_out
from opendino.embeddings.open_table import open_table
from opendino.embeddings.table_images import TableImages
from opendino.features.appearance import APPEARANCE, PERMUTATIONS, appearance, appearance_test
from opendino.features.duplicate_threshold import EQUAL
from opendino.features.nearest_neighbors import nearest
from opendino.features.neighbor_test import TwoSampleTest, neighbor_test, own_frac_of_parts
from opendino.visualize.drawing import tile_grid

_COLUMNS = 8
_MOST_READ = 1000  # images of a table that are read to compare how they look
_AREA_PX = 256 * 256
_ENDS = (("darkest", "brightest"), ("of least contrast", "of most contrast"), ("blurriest", "sharpest"))
_PRINTED = 8  # images of a measurement; the others are in --json and on the sheet
_DIFFER, _MAY_DIFFER = 0.01, 0.1
"""P-values below which tables differ, or may differ."""


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino drift`."""

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE_A")]
    """A .lance table or a .parquet file of `opendino embed`, e.g. of last month's images."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE_B")]
    """Another table of the same model, e.g. of today's images; if they differ, it lists those that do most."""
    k: Annotated[Count, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of neighbors of each image that are compared."""
    permutations: Repeats = 1000
    """Number of random exchanges of images between the tables; the p-value is at least 1 / (1 + permutations)."""
    num: Count = 40
    """Number of images to print and to draw."""
    sheet: str | None = None
    """Also save the images of TABLE_B that differ most as a picture: .png, .jpg, .svg, .html ... Its title says whether
    a difference is shown."""
    seed: Seed = 0
    """Random seed of the exchanges."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu. All pairs are compared."""


def run(args: list[str]) -> Outcome:
    """Test whether two tables come from the same distribution, and order the images of the second by distance."""
    config = flags.parse(Config, args, "opendino drift", "Test whether the images of two tables differ.")
    began = time.monotonic()
    sheet = tile_grid.out(config.sheet, tile_grid.PICTURES) if config.sheet else None
    device = distributed.device(config.device)
    tables = open_table(config.a), open_table(config.b)
    _check_same_model(*tables)
    run_verdict.warn_unless_learned(tables[0].about["model"])  # such features may not see a difference
    (keys_a, a), (keys_b, b) = (table.normalized() for table in tables)
    lost = sum(map(len, tables)) - len(keys_a) - len(keys_b)
    a, b = a.to(device), b.to(device)
    cosine = nearest(a, b, 1)[0][:, 0]
    new = (cosine < EQUAL).cpu()  # images that are in both tables say nothing about a difference
    num_shared = len(b) - int(new.sum())
    if not new.any() or len(a) + len(b) - num_shared < 3:
        raise UserError(
            f"All {len(b):,} images of {config.b} are in {config.a} too", "Embed images that are not in both tables"
        )
    b, cosine = b[new.to(device)], cosine.cpu()[new]
    keys_b = [key for key, kept in zip(keys_b, new.tolist(), strict=True) if kept]
    found = neighbor_test(a, b, config.k, config.permutations, config.seed)
    rows = _most_different(found.own[len(a) :], cosine, keys_b, config.num)
    looks, told = _compare_appearance(config, tables, (keys_a, keys_b))
    shown = [each for each in looks if each["p"] < _MAY_DIFFER]
    verdict = _verdict(found.p, shown, config.permutations)
    lines = _summary(config, found, (len(a), len(b)), f"{num_shared:,} more are in both tables" if num_shared else "")
    lines = [f"{verdict}: {lines[0]}{left_out(lost)}", *lines[1:], *told]
    parts = own_frac_of_parts(found.neighbors, len(a), len(b)) if found.p < _MAY_DIFFER and len(a) >= 2 * len(b) else []
    if parts:
        lines.append(_beside_parts(config, parts, found, len(b)))
    if found.p < _MAY_DIFFER:
        lines.append(
            f"images of {config.b} that differ most: share of own neighbors, cosine to the nearest of {config.a}"
        )
        lines.append(f"{'own':>6}{'cosine':>9}")
        lines += [f"{row['own']:>6.0%}{row['score']:>9.4f}  {row['path']}" for row in rows]
    elif not shown:  # some image always differs most: a list would look like a finding
        lines.append(
            "changes that training ignores on purpose (position, color) may not show in vectors; "
            f"single odd images: opendino outliers {config.b}"
        )
    if sheet:
        tiles = [(row["path"], f"own {row['own']:.0%}  {row['score']:.3f}") for row in rows]
        groups = [tiles] if found.p < _MAY_DIFFER or not shown else []
        groups += [[(row["path"], f"{each['name']} {row['value']:.3f}") for row in each["different"]] for each in shown]
        places = [row for group in groups for row in table_sheet.in_rows(group, _COLUMNS)]
        none = "" if found.p < _MAY_DIFFER or shown else ". Some images always differ most: these are no finding"
        table_sheet.save(places, tables[1].about, sheet, verdict + none)
        lines.append(f"→ {config.sheet}")
    fields = {
        "tables": [config.a, config.b], "images": [len(a), len(b)], "shared": num_shared, "k": config.k,
        "p": found.p, "permutations": config.permutations, "own_frac": list(found.own_frac),
        "expected_frac": list(found.expected_frac), "part_fracs": parts, "appearance": looks, "different": rows,
        "left_out": lost, "sheet": config.sheet, "seconds": time.monotonic() - began,
    }  # fmt: skip
    return Outcome("\n".join(lines), fields)


def _compare_appearance(
    config: Config, tables: tuple[EmbeddingTable, EmbeddingTable], keys: tuple[list[str], list[str]]
) -> tuple[list[dict], list[str]]:
    """Test whether brightness, contrast and sharpness differ, which vectors of a trained network hardly show.

    The images are read again. One test of all three, see `appearance_test`.

    Returns:
        One dict per measurement, and lines for people; no dicts if images cannot be read.
    """
    values: list[Tensor] = []
    names: list[str] = []  # of the images of B
    for table, its_keys, name in zip(tables, keys, (config.a, config.b), strict=True):
        order = torch.randperm(len(its_keys), generator=torch.Generator().manual_seed(config.seed))
        some = [its_keys[row] for row in order[:_MOST_READ].tolist()]
        images = TableImages(table.about, some, _AREA_PX)
        read = ((key, images.read(key)) for key in track(some, "images read"))
        found = {key: appearance(image) for key, image in read if image is not None}
        if not found:
            data = table.about["data"]
            line = f"brightness, contrast and sharpness are not compared: the images of {name} are not at {data}"
            return [], [line]
        values.append(torch.tensor([*found.values()], dtype=torch.float64))  # [images, 3]
        names = [*found]
    a, b = values
    test = appearance_test(a, b, seed=config.seed)
    rows, lines = [], [f"how {len(a):,} and {len(b):,} of the images look: mean (10th to 90th percentile)"]
    for number, (name, p, high) in enumerate(zip(APPEARANCE, test.p, test.high, strict=True)):
        of_a, of_b = _spread(a[:, number]), _spread(b[:, number])
        order = b[:, number].argsort(descending=high, stable=True)[: config.num].tolist()
        most = [{"path": names[row], "value": round(float(b[row, number]), 6)} for row in order]
        differs = p < _MAY_DIFFER
        rows.append({"name": name, "p": p, "a": of_a, "b": of_b, "different": most if differs else []})
        figures = [f"{each['mean']:.3f} ({each['p10']:.3f} to {each['p90']:.3f})" for each in (of_a, of_b)]
        lines.append(f"{name:<10} {' and '.join(figures)}: {significance(p, PERMUTATIONS, 'they')}")
        if differs:
            listed = ", ".join(f"{row['path']} ({row['value']:.3f})" for row in most[:_PRINTED])
            lines.append(f"  {_ENDS[number][high]} of {config.b}: {listed}")
    return rows, lines


def _verdict(p: float, shown: list[dict], permutations: int) -> str:
    """What the vectors and the looks of the images say."""
    of_vectors = significance(p, permutations, "the tables")
    if not shown:
        return of_vectors
    least = min(shown, key=lambda each: each["p"])
    names = ", ".join(each["name"] for each in shown)
    looks = significance(least["p"], PERMUTATIONS, "the images", f" in {names}")
    return f"{of_vectors}; {looks}" if p < _MAY_DIFFER else f"{looks}; in the vectors {of_vectors}"


def _spread(values: Tensor) -> dict[str, float]:
    low, high = values.quantile(torch.tensor([0.1, 0.9], dtype=values.dtype)).tolist()
    return {"mean": float(values.mean()), "p10": low, "p90": high}


def _check_same_model(a: EmbeddingTable, b: EmbeddingTable) -> None:
    if a.about["fingerprint"] != b.about["fingerprint"]:
        raise UserError(
            f"{a.name} holds vectors of {a.about['model']}, {b.name} of {b.about['model']} or another version of it",
            "Embed both sets of images with the same model",
        )


def _most_different(own: Tensor, cosine: Tensor, keys: list[str], num: int) -> list[dict]:
    """Images of B by their share of own neighbors, largest first, then by their cosine to A, smallest first."""
    by_cosine = cosine.argsort(stable=True)
    order = by_cosine[own[by_cosine].argsort(descending=True, stable=True)][:num]
    return [
        {"path": keys[row], "own": round(share, 4), "score": round(score, 6)}
        for row, share, score in zip(
            order.tolist(), own[order].tolist(), cosine[order].clamp(-1, 1).tolist(), strict=True
        )
    ]


def significance(p: float, permutations: int, who: str, what: str = "") -> str:
    """What a p-value says about two sets, e.g. "they may differ (p = 0.031)"; `what` is e.g. " in brightness"."""
    least = 1 / (1 + permutations)
    shown = f"p = {p:.3f}" if p > 1.5 * least else f"p ≤ {least:.2g}"
    if p < _DIFFER:
        return f"{who} differ{what} ({shown})"
    return f"{who} may differ{what} ({shown})" if p < _MAY_DIFFER else f"no difference is shown ({shown})"


def _beside_parts(config: Config, parts: list[float], found: TwoSampleTest, size: int) -> str:
    """Neighboring frames of a film differ from the rest of it without a change: is B more than such a part of A?"""
    higher = sum(part >= found.own_frac[1] for part in parts)
    return (
        f"beside it, {len(parts):,} parts of {config.a}, {size:,} images each, in the order of the table: "
        f"{min(parts):.1%} to {max(parts):.1%} own neighbors; {higher:,} of them differ from the rest as much as "
        f"{config.b} does" + ("" if not higher else ": images taken together may be all there is to it")
    )


def _summary(config: Config, found: TwoSampleTest, sizes: tuple[int, int], shared: str) -> list[str]:
    beside = f"; {shared} and not compared" if shared else ""
    return [
        f"{sizes[0]:,} images of {config.a}, {sizes[1]:,} of {config.b}{beside}",
        f"of the {config.k} nearest neighbors among both, {found.own_frac[0]:.1%} are own for {config.a} (no "
        f"difference: {found.expected_frac[0]:.1%}) and {found.own_frac[1]:.1%} for {config.b} "
        f"({found.expected_frac[1]:.1%})",
    ]
