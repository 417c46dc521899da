"""Classify or segment images: opendino predict FOLDER DATA [--out FILE.csv or MASKS], FOLDER from `eval --out`"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from opendino.cli import Outcome, flags
from opendino.cli.predict_masks import write_masks
from opendino.core import atomic_write, distributed, log
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Workers
from opendino.data.open_source import list_paths
from opendino.data.video_file import join_every
from opendino.features.feature_table import table
from opendino.features.few_labels import predictions, to_csv
from opendino.models import segmentation_head
from opendino.models.classifier import given_labels, load_classifier


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino predict`."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of `opendino eval linear MODEL --train DIR --out FOLDER`, or of `eval segmentation`."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: a folder, a .tar or .zip, a text file of paths."""
    out: str | None = None
    """CSV file to write: path, class, probability, and labeled, the label of images that the classifier was trained on;
    by default it is printed. Paths are absolute, or names inside an archive, so the file works as DATA and as --labels.
    With a segmentation head: a folder for masks, palette PNGs of class numbers; masks that are there are not made
    again."""
    every: str = ""
    """Time between the frames used of videos in DATA: 2s, or all for every frame; default 1s."""
    polygons: bool = False
    """With a segmentation head: also write the regions of each mask as polygons, NAME.geojson beside NAME.png, with
    class and mean probability; x and y in pixels from the upper left corner."""
    batch: Batch = 64
    """Images per forward pass; a segmentation head takes one window of an image at a time."""
    workers: Workers = 4
    """Number of threads that decode images."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        join_every(self)


def run(args: list[str]) -> Outcome:
    """Predict the most probable class of every readable image, or of each of its pixels."""
    config = flags.parse(Config, args, "opendino predict", "Classify or segment images with a trained linear head.")
    for folder in (config.folder, str(Path(config.folder) / segmentation_head.OF_RUN)):
        if (Path(folder).expanduser() / segmentation_head.DESCRIPTION).is_file():
            return _masks(replace(config, folder=folder))
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
    keys = [source.key(index) for index in found.indices.tolist()]
    rows = predictions(classifier, found.features, list_paths(config.data, keys), given_labels(config.folder))
    text, known = to_csv(rows), classifier.known
    done = {"written": len(rows), "skipped": len(found.bad), "seconds": time.monotonic() - began}
    done["classifier"] = known and known.fields | {"measured": classifier.measured, "caution": classifier.caution}
    if not config.out:
        log.say(classifier.accuracy)
        named = [row | {"path": key} for row, key in zip(rows, keys, strict=True)]
        return Outcome(text.rstrip("\n"), {"predictions": named, **done})
    atomic_write.write(Path(config.out).expanduser(), text)
    counts = Counter(row["class"] for row in rows)
    given = sum(1 for row in rows if row["labeled"])
    lines = [f"{len(rows):,} images{found.unread} → {config.out}"]
    lines += [f"  {counts[name]:>8,}  {name}" for name in classifier.classes]
    lines += [f"{given:,} of them were given a label: column labeled"] if given else []
    lines.append(classifier.accuracy)
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
