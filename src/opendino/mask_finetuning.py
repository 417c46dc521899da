"""Fine-tuning from masks: whether it is better than a segmentation head on the frozen features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from opendino.config import ResolvedConfig
from opendino.core import log
from opendino.data.fingerprint import key_digests
from opendino.data.held_out import is_held_out
from opendino.data.train_val_overlap import only_in_val_at_the_end
from opendino.datasets.labeled_pixels import LabeledPixels
from opendino.datasets.mask_metrics import class_iou
from opendino.datasets.segmentation_dataset import SegmentationDataset, open_segmentation_dataset
from opendino.evals.segmentation import Head, measure, samples_of
from opendino.features.dense_features import patch_encoder, usual_blocks
from opendino.features.masked_images import MaskedImages
from opendino.features.paired_change import Change, change
from opendino.models import segmentation_head
from opendino.models.classifier import FROZEN
from opendino.models.load import Model
from opendino.models.segmentation_head import SegmentationHead


def against_frozen_head(config: ResolvedConfig, folder: Path, start: Model, tuned: Model) -> dict[str, Any]:
    """Compare a fine-tuned network with the one it started from, by mIoU of held-out images, image by image.

    Both get a head as `opendino eval segmentation` makes it, from the masks that the run was trained on: the run's own
    classifier is not used, because it was trained on crops. The better network with its head is saved in `head/`, the
    frozen one unless the fine-tuned one is shown to be better; the frozen one also in `frozen/`.

    Args:
        config: Settings of the run.
        folder: The run's folder.
        start, tuned: The network that the run started from, and the fine-tuned one; on the same device.

    Returns:
        As `finetuning.against_frozen_head`, with "measure" "segmentation".
    """
    log.say("comparing with a segmentation head on the frozen features on held-out images")
    blocks = usual_blocks(start)
    encoders = {name: patch_encoder(model, blocks) for name, model in (("frozen", start), ("finetuned", tuned))}
    train, val = (MaskedImages(start, part, config.workers) for part in _parts(config))
    samples, classes = samples_of(train, encoders, config.seed)
    heads = []
    for name, rows in samples.items():
        images = rows.images.unique()
        weight, bias = rows.balanced(images, config.seed).linear(len(classes), config.seed)
        heads.append(Head((name, "linear", len(images)), images, SegmentationHead(weight, bias, classes, blocks)))
    found = _compared(val, encoders, heads, classes) if len(val) else None
    verdict = found.verdict if found else "unknown"
    keep = "finetuned" if verdict == "better" else "frozen"
    networks = {"frozen": start, "finetuned": tuned}
    for place, name in ((FROZEN, "frozen"), (segmentation_head.OF_RUN, keep)):
        head = heads[list(samples).index(name)].score
        assert isinstance(head, SegmentationHead)
        score = {"miou": found.before if name == "frozen" else found.after} if found else {}
        if score:
            measured = f"mean mIoU of an image {score['miou']:.1f} % on {len(val):,} held-out images"
            head = replace(head, measured=f"{name} network: {measured}")
        segmentation_head.save(folder / place, networks[name], head, score)
    return {
        "measure": "segmentation", "verdict": verdict, "keep": keep, **(vars(found) if found else {}),
        "says": _says(found, folder),
    }  # fmt: skip


def _parts(config: ResolvedConfig) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The images that the run was trained on, and those to compare on."""
    images = LabeledPixels(config.data)
    if config.val is not None:
        val = open_segmentation_dataset(config.val, "val")
        keys, val_keys = ([each.key(index) for index in range(len(each))] for each in (images.dataset, val))
        return images.dataset, val.subset(only_in_val_at_the_end((config.data, keys), (config.val, val_keys)))
    held = is_held_out(key_digests(images), config.hold_out)
    train, val = (images.dataset.subset(np.flatnonzero(part).tolist()) for part in (~held, held))
    return train, val


def _compared(val: MaskedImages, encoders: dict[str, Any], heads: list[Head], classes: tuple[int, ...]) -> Change:
    """The change of the mIoU of an image, over the classes that occur in it or were found."""
    counted, measured = measure(val, encoders, heads, classes, boundary_px=2)
    miou: Tensor = class_iou(counted[..., :3].double()).nanmean(-1)[:, measured.all(0)]  # [2, images]
    before, after = miou.nan_to_num(1.0)
    return change(before, after, whole=False)


def _says(found: Change | None, folder: Path) -> str:
    """What came out, and what `predict` takes."""
    taken = f"`opendino predict {folder} DATA --out MASKS` takes the"
    if found is None:
        return f"No images with masks were kept out to compare on: {taken} frozen features. Give --val DIR"
    figures = f"mIoU of an image {found.after:.1f} %, frozen {found.before:.1f} %, {found.difference}"
    network = "fine-tuned network" if found.verdict == "better" else "frozen features"
    return f"{found.summary} than a segmentation head on the frozen features ({figures}): {taken} {network}"
