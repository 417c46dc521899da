"""Masks of images by a segmentation head: a palette PNG of class numbers per image, skipping those that are there."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendino.core import atomic_write
from opendino.core.errors import UserError
from opendino.data.open_source import absolute
from opendino.data.source_files import is_image, printable
from opendino.datasets import mask_files
from opendino.datasets.mask_polygons import feature_collection
from opendino.features.dense_features import patch_encoder
from opendino.features.image_stream import Bad, encode_images, none_readable, skipped_message
from opendino.models.load import Model
from opendino.models.segmentation_head import SegmentationHead, fingerprint

_ABOUT = "masks.json"


def write_masks(
    model: Model, head: SegmentationHead, data: str, folder: Path, workers: int, polygons: bool = False
) -> tuple[str, dict[str, Any]]:
    """Write a mask for every readable image that has none yet.

    Args:
        model: The network, on the device to use.
        head: The head on its features.
        data: DATA.
        folder: Created if absent. `masks.json` in it says which head and DATA its masks are of.
        workers: Number of threads that decode images.
        polygons: Write the regions of each mask beside it too, see `mask_polygons.feature_collection`.

    Returns:
        A text, and fields for `--json`.

    Raises:
        UserError: There are no images, none can be read, or the folder has other files.
    """
    began, bad = time.monotonic(), Bad()
    source = model.reading.open_images(data)
    encoder = patch_encoder(model, head.blocks)
    names = mask_names([source.key(index) for index in range(len(source))])
    about = {"head": fingerprint(model, head), "data": printable(absolute(data)), "classes": list(head.classes)}
    _claim(folder, about | ({"names": list(head.names)} if head.names else {}))
    paths = [[folder / name, *[(folder / name).with_suffix(".geojson")] * polygons] for name in names]
    left = [index for index, wanted in enumerate(paths) if not all(path.is_file() for path in wanted)]
    numbers, colors = np.array(head.classes, np.uint8), mask_files.palette()
    pixels_of = torch.zeros(len(numbers), dtype=torch.int64)

    def found(images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        return encoder.most_probable(images[0], head)

    for part in encode_images(source, left, lambda _, pixels: pixels, found, batch=1, workers=workers):
        bad += part.bad
        if part.output is not None:
            labels, probability = part.output
            pixels_of += labels.flatten().bincount(minlength=len(numbers))
            mask, wanted = numbers[labels.numpy()], paths[left[part.positions[0]]]
            if polygons:
                told = feature_collection(mask, probability.numpy(), dict(zip(head.classes, head.names, strict=False)))
                _write(wanted[1], json.dumps(told, separators=(",", ":")).encode())
            _write(wanted[0], mask_files.encode(mask, colors))
    written, existing = len(left) - len(bad), len(source) - len(left)
    if not written and not existing:
        raise none_readable(len(source), bad)
    fields: dict[str, Any] = {"out": str(folder), "written": written, "existing": existing, "skipped": len(bad)}
    fields["classes"] = {
        str(number): 100 * count / max(1, int(pixels_of.sum()))
        for number, count in zip(head.classes, pixels_of.tolist(), strict=True)
    }
    fields |= {"measured": head.measured, "seconds": time.monotonic() - began}
    fields |= {"names": dict(zip(fields["classes"], head.names, strict=True))} if head.names else {}
    lines = [f"{written:,} masks → {printable(str(folder))}" + f", {existing:,} were there already" * bool(existing)]
    if written:
        shares, names = fields["classes"].items(), head.names or [""] * len(numbers)
        lines += [
            f"  class {number:>3}  {share:5.1f} % of their pixels  {printable(name)}".rstrip()
            for (number, share), name in zip(shares, names, strict=True)
        ]
    lines += [f"note: {skipped_message(bad)}"] * bool(bad)
    return "\n".join([*lines, f"this head: {head.measured or 'not measured'}"]), fields


def mask_names(keys: Sequence[str]) -> list[str]:
    """A relative path for the mask of each image: that of the image with `.png` as its suffix.

    Two images that differ in nothing but the suffix keep it: `a.jpg.png` and `a.tif.png`. Where names are still
    the same, as of `/b/x.jpg` and `b/x.jpg`, each has a digest of its key before the suffix.
    """
    plain = ["/".join(part for part in PurePosixPath(key).parts if part not in ("/", "..")) for key in keys]
    stems = [str(PurePosixPath(name).with_suffix("")) if is_image(name) else name for name in plain]
    times = Counter(stems)
    names = [stem if times[stem] == 1 else name for stem, name in zip(stems, plain, strict=True)]
    times = Counter(names)
    digests = (hashlib.blake2b(key.encode(), digest_size=4).hexdigest() for key in keys)
    return [f"{name}{f'-{digest}' if times[name] > 1 else ''}.png" for name, digest in zip(names, digests, strict=True)]


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Write down what the masks in a folder are of, or check that it is the same.

    Raises:
        UserError: The folder has masks of another head or other images, or other files.
    """
    shown, another = printable(str(folder)), "Choose another --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _ABOUT
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(there, dict) or there.get("head") != about["head"]:
                raise UserError(f"{shown} has masks of another head", another)
            if there != about:
                raise UserError(f"{shown} has masks of {there.get('data')}", another)
        elif any(folder.iterdir()):
            raise UserError(f"{shown} has files that are not masks of this command", another)
        atomic_write.write(path, json.dumps(about) + "\n")
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write {shown}: {error}", another) from error


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write.write(path, content)
    except OSError as error:
        raise UserError(
            f"Cannot write {printable(str(path))}: {error.strerror}", "Run the same command again to continue"
        ) from error
