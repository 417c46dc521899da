"""Choose images to label, diverse and uncertain: opendino select TABLE --num 100 --out CHOSEN.txt [--labeled CSV]"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from opendino.cli import Outcome, flags
from opendino.core import atomic_write, distributed, log
from opendino.core.errors import UserError
from opendino.core.progress import track
from opendino.core.ranges import Checked, Count, OutOfRange, Seed
from opendino.data.labels import image_finder
from opendino.data.list_columns import read_list
from opendino.data.open_source import list_paths, not_files
from opendino.data.source_files import line, printable, unescape
from opendino.embeddings.diverse_selection import next_to_label
from opendino.embeddings.embedding_table import left_out
from opendino.embeddings.open_table import open_table


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino select`."""

    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A .lance table or a .parquet file of `opendino embed`."""
    num: Count
    """Number of images to choose."""
    out: str
    """List to write (.txt, .lst): one absolute path, or name inside an archive, per line. Works as DATA."""
    labeled: str | None = None
    """Images that are already labeled: a CSV of path,class, or a list of paths. The chosen ones differ from these too.
    With classes, images that a classifier of these labels is unsure of come first."""
    seed: Seed = 0
    """Seed of the clusters; unused with --labeled."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out.lower().endswith((".txt", ".lst")):
            raise OutOfRange("out", self.out, "End its name in .txt: a list of paths, which works as DATA")
        if self.labeled and Path(self.labeled).expanduser().absolute() == Path(self.out).expanduser().absolute():
            raise OutOfRange("out", self.out, "It is the list of labeled images: choose another name")


def run(args: list[str]) -> Outcome:
    """Choose the first images by cluster, the most typical of each, and the next ones by greedy k-center.

    That is TypiClust (Hacohen et al. 2022), then Sener & Savarese (2018): each image is the one farthest from all that
    are labeled or chosen before it. With classes the distance is multiplied by the uncertainty of a classifier.
    """
    config = flags.parse(Config, args, "opendino select", "Choose images of a table to label: diverse, and uncertain.")
    began = time.monotonic()
    out, device = Path(config.out).expanduser(), distributed.device(config.device)
    if not out.absolute().parent.is_dir():
        raise UserError(f"There is no folder to write {config.out} into", "Create it, or choose another --out")
    table = open_table(config.table)
    keys, vectors = table.normalized()
    lost = len(table) - len(keys)
    paths = list_paths(table.about["data"], keys)
    labeled = _labeled(config.labeled, keys, paths) if config.labeled else {}
    start, names = list(labeled), [name for name in labeled.values() if name]
    if config.num > len(keys) - len(start):
        told = f", {len(start):,} of them labeled" if start else ""
        most = len(keys) - len(start)
        raise UserError(
            f"--num is {config.num}, and there are {len(keys):,} images{told}{left_out(lost)}",
            f"Choose at most {most}",
        )
    centers, unsure = next_to_label(vectors, labeled, config.num, config.seed, device)
    chosen = list(track(centers, "images chosen", config.num))
    atomic_write.write(out, "".join(f"{line(paths[row])}\n" for row, _ in chosen))
    radius = chosen[-1][1]
    text = f"{len(chosen):,} of {len(keys):,} images → {config.out}; every image is within {radius:.3f} of a chosen one"
    text += f" (distance of unit vectors, 0 to 2){left_out(lost)}"
    if told := not_files([paths[row] for row, _ in chosen]):
        text += f"\nnote: {told}"
    rows: list[dict[str, Any]] = [{"path": keys[row], "radius": round(radius, 6)} for row, radius in chosen]
    if unsure is not None:
        for row, told in zip((row for row, _ in chosen), rows, strict=True):
            told["uncertainty"] = round(float(unsure[row]), 6)
        mean = sum(row["uncertainty"] for row in rows) / len(rows)
        text += (
            f"\nuncertainty of a classifier of the {len(names):,} labels, 0 sure to 1 unsure: chosen {mean:.2f}, "
            f"all images {float(unsure.mean()):.2f}"
        )
    return Outcome(
        text,
        {
            "out": config.out,
            "chosen": rows,
            "labeled": len(start),
            "left_out": lost,
            "seconds": time.monotonic() - began,
        },
    )


def _labeled(path: str, keys: list[str], paths: list[str]) -> dict[int, str]:
    """Row number → class, or "", of the images in a list, which names them by key or by path as `--out` writes them.

    Raises:
        UserError: The list cannot be read, or none of its images is in the table.
    """
    row = {unescape(name): number for names in (paths, keys) for number, name in enumerate(names)}
    folder, by_file = Path(path).expanduser().absolute().parent, image_finder(keys)

    def find(name: str) -> int | None:
        return row.get(name, row.get(str(folder / name), by_file(name)))

    named = read_list(str(Path(path).expanduser()), lambda name: find(name) is not None)
    numbers = {name: find(name) for name in named}
    rows = {number: named[name] for name, number in numbers.items() if number is not None}
    lost = [name for name, number in numbers.items() if number is None]
    if not rows:
        raise UserError(f"None of the {len(named)} images in {path} is in the table", "Write one key or path per line")
    if lost:
        log.warn(
            f"{len(lost):,} of the {len(named):,} images in {path} are not in the table, e.g. {printable(lost[0])}"
        )
    return dict(sorted(rows.items()))
