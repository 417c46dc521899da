"""Classify or segment images: opendino predict FOLDER DATA [--out FILE.csv or MASKS], FOLDER from `eval --out`"""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from opendino.cli import Outcome, flags
from opendino.cli.predict_masks import write_masks
from opendino.core import atomic_write, distributed, log
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Workers
from opendino.data.open_source import list_paths
from opendino.data.source_files import cell
from opendino.features.feature_table import table
from opendino.models import segmentation_head
from opendino.models.classifier import Classifier, load_classifier


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino predict`."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of `opendino eval linear MODEL --train DIR --out FOLDER`, or of `eval segmentation`."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: a folder, a .tar or .zip, a text file of paths."""
    out: str | None = None
    """CSV file to write (path, class, probability); by default they are printed. Paths are absolute, or names inside an
    archive, so the file works as DATA and as --labels. With a segmentation head: a folder for masks, palette PNGs of
    class numbers; masks that are there are not made again."""
    polygons: bool = False
    """With a segmentation head: also write the regions of each mask as polygons, NAME.geojson beside NAME.png, with
    class and mean probability; x and y in pixels from the upper left corner."""
    batch: Batch = 64
    """Images per forward pass; a segmentation head takes one window of an image at a time."""
    workers: Workers = 4
    """Number of threads that decode images."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu."""


def run(args: list[str]) -> Outcome:
    """Predict the most probable class of every readable image, or of each of its pixels."""
    config = flags.parse(Config, args, "opendino predict", "Classify or segment images with a trained linear head.")
    if (Path(config.folder).expanduser() / segmentation_head.DESCRIPTION).is_file():
        return _masks(config)
    if config.polygons:
        raise UsageError(f"--polygons needs a segmentation head, and {config.folder} is none", "Leave out --polygons")
    began = time.monotonic()
    if config.out and not Path(config.out).expanduser().absolute().parent.is_dir():
        raise UserError(f"There is no folder to write {config.out} into", "Create it, or choose another --out")
    device = distributed.device(config.device)
    model, classifier = load_classifier(config.folder)
    source = model.reading.open_images(config.data)
    found = table(model.to(device), source, classifier.tokens, batch=config.batch, workers=config.workers)
    if found.features.shape[1] != classifier.weight.shape[1]:
        raise UserError(
            f"The classifier takes {classifier.weight.shape[1]} features and the network gives "
            f"{found.features.shape[1]}",
            "Train the classifier again: opendino eval linear MODEL --train DIR --out FOLDER",
        )
    probabilities, labels = classifier(found.features).softmax(1).max(1)  # [B], [B]
    rows = [
        {"path": source.key(index), "class": classifier.classes[label], "probability": round(probability, 6)}
        for index, label, probability in zip(
            found.indices.tolist(), labels.tolist(), probabilities.tolist(), strict=True
        )
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", "probability"])
    for path, row in zip(list_paths(config.data, [row["path"] for row in rows]), rows, strict=True):
        writer.writerow([cell(path), cell(row["class"]), row["probability"]])
    known = classifier.known
    done = {"written": len(rows), "skipped": len(found.bad), "seconds": time.monotonic() - began}
    done["classifier"] = known.fields | {"measured": classifier.measured} if known else None
    if not config.out:
        log.say(_accuracy(classifier))
        return Outcome(text.getvalue().rstrip("\n"), {"predictions": rows, **done})
    atomic_write.write(Path(config.out).expanduser(), text.getvalue())
    counts = torch.bincount(labels, minlength=len(classifier.classes)).tolist()
    lines = [f"{len(rows):,} images{found.unread} → {config.out}"]
    lines += [f"  {count:>8,}  {name}" for name, count in zip(classifier.classes, counts, strict=True)]
    lines.append(_accuracy(classifier))
    return Outcome("\n".join(lines), {"out": config.out, **done})


def _masks(config: Config) -> Outcome:
    """Write the masks of a segmentation head."""
    if not config.out:
        raise UsageError(f"{config.folder} is a segmentation head: --out is missing", "Name a folder for the masks")
    device = distributed.device(config.device)
    model, head = segmentation_head.load_head(config.folder)
    out = Path(config.out).expanduser()
    found = write_masks(model.to(device), head, config.data, out, config.workers, config.polygons)
    return Outcome(*found)


def _accuracy(classifier: Classifier) -> str:
    """What is known about the accuracy of a classifier, in one line."""
    if classifier.known:
        how = f", {classifier.measured}" if classifier.measured else ""
        return f"accuracy of this classifier{how}: {classifier.known.sentence}"
    return f"accuracy of this classifier is not known: {classifier.measured or 'it was not measured'}"
