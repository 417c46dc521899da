"""Segmentation from a few masks: a linear head and k-NN on frozen patch features, beside untrained and pixels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from msgspec import Meta
from torch import Tensor, nn
from torch.nn.functional import one_hot

from opendino.core import distributed
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Checked, Count, CountOrZero, Repeats, Seed, Workers
from opendino.core.types import Report
from opendino.data.train_val_overlap import only_in_val
from opendino.datasets.mask_files import VOID
from opendino.datasets.segmentation_dataset import open_segmentation_dataset
from opendino.features.crop_features import recalibrate_batch_norm
from opendino.features.dense_features import (
    NEIGHBORHOOD_PX,
    DenseEncoder,
    Scorer,
    patch_encoder,
    pixel_encoder,
    usual_blocks,
)
from opendino.features.image_stream import none_readable, skipped_message
from opendino.features.masked_images import MASKS, MaskedImages
from opendino.features.nearest_neighbors import nearest
from opendino.features.pixel_samples import PixelSamples, sample_points
from opendino.features.segmentation_scores import SegmentationScores, counts, scores
from opendino.models import segmentation_head
from opendino.models.load import Model, load
from opendino.models.resize import center_crop
from opendino.models.segmentation_head import SegmentationHead
from opendino.models.untrained import untrained

_RECALIBRATED = 64
_PIXELS = "pixels"
_COUNTED = 7  # numbers per class, see `segmentation_scores.counts`


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino eval segmentation`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    train: str = ""
    """Images with masks: a folder with images/ and masks/ (PNG of the same names, class numbers 0 to 254, 255 ignored)
    or annotations.json (COCO polygons), the PASCAL VOC folder, or toy:forms."""
    val: str | None = None
    """Images with masks to measure on; default: the images of --train that a head has not seen."""
    num_images: Annotated[tuple[Count, ...], Meta(min_length=1)] = (1, 5, 20)
    """Numbers of training images to try; all of them are always tried too."""
    num_draws: Repeats = 3
    """Random choices of these images; the figures are their mean."""
    names: tuple[str, ...] = ()
    """Names of the classes in the masks of --train, in the order of their numbers, for the head of --out."""
    blocks: Count | None = None
    """Number of last blocks whose patch features are joined; default: 4, or as many as the network has."""
    k: Count = 10
    """k-NN: number of neighbors."""
    boundary_px: CountOrZero = 2
    """Boundary F: distance up to which two boundaries agree, in pixels."""
    seed: Seed = 0
    """Random seed for the choice of images and pixels, and for the untrained network."""
    out: str | None = None
    """New folder for the linear head from all images, which `opendino predict` can load."""
    workers: Workers = 4
    """Number of threads that decode images."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


Setting = tuple[str, str, int]
"""Kind of features, kind of head, number of training images."""


@dataclass(frozen=True)
class Head:
    """A head and the training images it has seen."""

    setting: Setting
    images: Tensor
    score: Scorer


def evaluate(config: Config) -> Report:
    """Train heads on 1, 5, 20 and all masks, and measure them on other images.

    Raises:
        UserError: The model, images or masks do not exist or do not fit, or there is one class only.
    """
    if not config.train:
        raise UsageError(
            "--train is missing", "Name a folder with images/ and masks/ or annotations.json, PASCAL VOC, or toy:forms"
        )
    out = Path(config.out).expanduser() if config.out else None
    if out and out.exists():
        raise UserError(f"--out '{config.out}' exists already", "Choose another folder")
    began, device = time.monotonic(), distributed.device(config.device)
    model = load(config.model, config.which).to(device)
    train, val = _images(model, config)
    blocks = config.blocks or usual_blocks(model)
    networks = {model.which: model, "untrained": _untrained(model, train, config.seed).to(device)}
    encoders = {name: patch_encoder(network, blocks) for name, network in networks.items()}
    encoders[_PIXELS] = pixel_encoder(model)
    samples, classes = samples_of(train, encoders, config.seed)
    if len(config.names) not in (0, len(classes)):
        told = ", ".join(map(str, classes))
        raise UsageError(f"--names has {len(config.names)} names for the classes {told}", "Give one for each, in order")
    heads = list(_heads(samples, classes, blocks, config))
    counted, measured = measure(val, encoders, heads, classes, config.boundary_px)
    if val is train:
        measured &= torch.stack([~torch.isin(torch.arange(len(val)), head.images) for head in heads])
    found = _scores(heads, counted, measured, config.seed)
    notes = _notes(train, val, counted, config)
    setting = max(
        (each for each in found if each[:2] == (model.which, "linear")), key=lambda each: each[2], default=None
    )
    best, num_val = found[setting] if setting else None, int(measured.any(0).sum())
    fields: dict[str, Any] = {
        "miou": best and best.miou, "standard_error": best and best.error, "num_images": setting and setting[2],
        "num_train": len(samples[_PIXELS].images.unique()), "num_val": num_val, "classes": list(classes),
        "blocks": blocks, "boundary_px": config.boundary_px, "num_draws": config.num_draws,
        "scores": [dict(zip(("features", "head", "num_images"), each, strict=True)) | asdict(own)
                   for each, own in found.items()],
        "notes": notes, "out": config.out,
    }  # fmt: skip
    lines = [*_lines(found, fields, model, encoders, config), *(f"note: {note}" for note in notes)]
    if out:
        final = heads[-1].score
        assert isinstance(final, SegmentationHead)
        final = replace(final, names=config.names)
        if best:
            measured = f"mIoU {_with_error(best)} % from {fields['num_images']} masks, measured on {num_val} images"
            final = replace(final, measured=measured)
        segmentation_head.save(out, model, final, {name: fields[name] for name in _KEPT})
        lines.append(f"use it: opendino predict {config.out} DATA --out MASKS")
    return Report("\n".join(lines), {**fields, "seconds": time.monotonic() - began})


_KEPT = ("miou", "standard_error", "num_images", "num_train", "num_val", "num_draws")


def _images(model: Model, config: Config) -> tuple[MaskedImages, MaskedImages]:
    """Images to train on and to measure on; the same without --val."""
    train = MaskedImages(model, open_segmentation_dataset(config.train, "train"), config.workers)
    if config.val is None:
        return train, train
    val = open_segmentation_dataset(config.val, "val")
    train_keys, keys = ([images.key(index) for index in range(len(images))] for images in (train.dataset, val))
    kept = only_in_val((config.train, train_keys), (config.val, keys))
    val = MaskedImages(model, val if len(kept) == len(val) else val.subset(kept), config.workers)
    return train, val


def _untrained(model: Model, images: MaskedImages, seed: int) -> Model:
    """The untrained network; the statistics of its BatchNorm are those of some of the images."""
    found = untrained(model, seed)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in found.backbone.modules()):
        side, settings = model.preprocessing["image_px"], model.preprocessing
        crops = [center_crop(pixels, side, side) for _, pixels, _ in images.each(_RECALIBRATED)]
        together = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        recalibrate_batch_norm(found.backbone, together, settings["mean"], settings["std"], torch.device("cpu"))
    return found


def samples_of(
    train: MaskedImages, encoders: dict[str, DenseEncoder], seed: int
) -> tuple[dict[str, PixelSamples], tuple[int, ...]]:
    """Labeled pixels with each kind of features, and the class numbers that occur.

    Raises:
        UserError: No image can be read, or there are fewer than two classes.
    """
    features: dict[str, list[Tensor]] = {name: [] for name in encoders}
    numbers, images, places = [], [], []
    for index, pixels, mask in train.each():
        points, own = sample_points(mask, len(train), seed, index)
        for name, encoder in encoders.items() if len(points) else ():
            features[name].append(encoder.at(pixels, points))
        numbers.append(own)
        images.append(torch.full_like(own, index))
        places.append(points)
    if not numbers:
        raise none_readable(len(train), train.bad)
    classes, labels = torch.cat(numbers).unique(return_inverse=True)
    if len(classes) < 2:
        there = f"is class {int(classes)}" if len(classes) else "is ignored"
        raise UserError(f"Every pixel of the {len(numbers)} masks {there}, and a head needs two classes", MASKS)
    rest = labels, torch.cat(images), torch.cat(places)
    return {name: PixelSamples(torch.cat(own), *rest) for name, own in features.items()}, tuple(classes.tolist())


def _heads(samples: dict[str, PixelSamples], classes: tuple[int, ...], blocks: int, config: Config) -> Iterator[Head]:
    """Heads on each choice of images and each kind of features; the last is the linear one of the network on all."""
    images = next(iter(samples.values())).images.unique()
    choices: list[Tensor] = []
    for number in sorted(set(config.num_images)):
        for draw in range(config.num_draws if number < len(images) else 0):
            rng = np.random.Generator(np.random.Philox(key=[config.seed, draw]))
            choices.append(images[torch.from_numpy(rng.permutation(len(images))[:number])])
    # The seed of the head on all images does not depend on the choices: scribbles on the page give the same head.
    for draw, chosen in [*enumerate(choices, 1), (0, images)]:
        for features, own in reversed(samples.items()):
            rows = own.balanced(chosen, config.seed + draw)
            yield Head((features, "k-NN", len(chosen)), chosen, _neighbors(rows, len(classes), config.k))
            weight, bias = rows.linear(len(classes), config.seed)
            yield Head((features, "linear", len(chosen)), chosen, SegmentationHead(weight, bias, classes, blocks))


def _neighbors(rows: PixelSamples, num_classes: int, k: int) -> Scorer:
    """Scores of classes: their shares of the k nearest pixels by cosine."""
    votes = one_hot(rows.labels, num_classes).float()
    return lambda features: votes[nearest(rows.features, features, min(k, len(votes)))[1]].mean(1)


def measure(
    val: MaskedImages,
    encoders: dict[str, DenseEncoder],
    heads: Sequence[Head],
    classes: tuple[int, ...],
    boundary_px: int,
) -> tuple[Tensor, Tensor]:
    """Counts int64 `[heads images K+1 7]` of each head on each image, and which are measured, bool `[heads images]`.

    The last class stands for all that the training images lack.
    """
    number = len(classes)
    index = torch.full((256,), number, dtype=torch.uint8)
    index[list(classes)] = torch.arange(number, dtype=torch.uint8)
    index[VOID] = VOID
    counted = torch.zeros(len(heads), len(val), number + 1, _COUNTED, dtype=torch.int64)
    measured = torch.zeros(len(heads), len(val), dtype=torch.bool)
    for image, pixels, mask in val.each():
        truth = index[torch.from_numpy(mask).long()]
        measured[:, image] = bool((truth <= number).any())
        for name, encoder in encoders.items():
            own = [place for place, head in enumerate(heads) if head.setting[0] == name]
            for place, labels in zip(own, encoder.label_maps(pixels, [heads[i].score for i in own]), strict=True):
                counted[place, image] = counts(truth, labels, number + 1, boundary_px)
    if not measured.any():
        raise none_readable(len(val), val.bad)
    return counted, measured


def _scores(heads: Sequence[Head], counted: Tensor, measured: Tensor, seed: int) -> dict[Setting, SegmentationScores]:
    """Figures of each setting whose heads are measured, the mean of their draws."""
    found = {}
    for setting in sorted({head.setting for head in heads}, key=lambda each: each[2]):
        rows = torch.tensor([head.setting == setting for head in heads])
        if measured[rows].any(1).all():
            found[setting] = scores(counted[rows], measured[rows], seed)
    return found


def _notes(train: MaskedImages, val: MaskedImages, counted: Tensor, config: Config) -> list[str]:
    notes = []
    for images, data in {train: config.train, val: config.val or config.train}.items():
        if without := images.dataset.without_mask:
            total = len(without) + len(images)
            notes.append(f"{len(without)} of {total} images of {data} are left out: no mask, e.g. {without[0]}")
        if images.bad:
            notes.append(f"{data}: {skipped_message(images.bad)}")
    if unknown := int(counted[0, :, -1, 1].sum()):
        share = 100 * unknown / int(counted[0, :, :, 1].sum())
        notes.append(f"{share:.1f} % of the pixels of {config.val} are of classes that {config.train} lacks: one more "
                     "class with an IoU of 0")  # fmt: skip
    return notes


def _lines(
    found: dict[Setting, SegmentationScores],
    fields: dict[str, Any],
    model: Model,
    encoders: dict[str, DenseEncoder],
    config: Config,
) -> list[str]:
    """The report: mIoU by number of masks, then all figures of the largest number."""
    num_train, classes, where = fields["num_train"], fields["classes"], config.val or "the images a head has not seen"
    window = encoders[model.which].window_px
    lines = [
        f"{num_train} images with masks of {config.train}, {len(classes)} classes; measured on {where}, "
        f"{fields['num_val']} images",
        f"frozen patch features of {model.backbone.name}, last {fields['blocks']} blocks, full resolution in windows "
        f"of up to {window} px; pixels: {NEIGHBORHOOD_PX} × {NEIGHBORHOOD_PX} px around each; classes balanced",
        f"mIoU in percent ± standard error, over all pixels; mean of {config.num_draws} draws of images",
    ]
    if not found:
        return [*lines, "not measured: all images are trained on; give others with --val"]
    kinds = [(name, head) for name in encoders for head in ("linear", "k-NN")]
    lines.append(f"{'masks':>7}" + "".join(f"{f'{name} {head}':>20}" for name, head in kinds))
    for number in sorted({setting[2] for setting in found}):
        cells = [found[name, head, number] for name, head in kinds]
        lines.append(f"{number:>7}" + "".join(f"{_with_error(each):>20}" for each in cells))
    most = max(setting[2] for setting in found)
    lines.append(f"from {most} masks, in percent:")
    names = "".join(f"{f'IoU of {number}':>11}" for number in classes)
    lines.append(f"{'':>20}{'mIoU':>8}{'pixels':>8}{f'boundary F, {config.boundary_px} px':>20}{names}")
    for name, head in kinds:
        own = found[name, head, most]
        figures = "".join(f"{_shown(each):>11}" for each in own.iou[: len(classes)])
        lines.append(
            f"{f'{name} {head}':>20}{own.miou:8.1f}{own.pixel_accuracy:8.1f}{_shown(own.boundary_f):>20}{figures}"
        )
    return lines


def _with_error(own: SegmentationScores) -> str:
    return f"{own.miou:.1f}" + (f" ± {own.error:.1f}" if own.error is not None else "")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
