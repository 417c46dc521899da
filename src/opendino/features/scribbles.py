"""Segmentation from brush strokes: a linear head on the patch features under them, in less than a second.

The strokes are masks in which every pixel without paint is ignored. So `opendino eval segmentation` makes the same head
from the folder that `write` leaves.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from opendino.core import atomic_write
from opendino.core.errors import UserError
from opendino.datasets import mask_files
from opendino.datasets.mask_files import VOID
from opendino.features.dense_features import DenseFeatures, patch_encoder, usual_blocks
from opendino.features.pixel_samples import ROWS, PixelSamples, sample_points
from opendino.models import segmentation_head
from opendino.models.load import Model
from opendino.models.segmentation_head import SegmentationHead

_QUICK_ROWS, _QUICK_STRENGTH = 400, 1.0  # at least 200 rows of each class
_SEED = 0  # the default of `opendino eval segmentation`
_KEPT_BYTES = 2**30

_REPEAT = """\
head/       the network and the head: opendino predict head IMAGES --out MASKS
scribbles/  the images and the strokes, as class numbers; 255 is not painted
masks/      the masks of these images by the head, as class numbers
{classes}
The same head again, from the strokes:
{again}
"""


@dataclass(frozen=True)
class Scribbled:
    """An image with brush strokes.

    Attributes:
        name: Name of its files, without a suffix.
        image: `[H W C]` with the values of the file, as `Model.pixels` takes it.
        strokes: uint8 `[H W]`, class numbers; 255 where nothing is painted.
    """

    name: str
    image: np.ndarray
    strokes: np.ndarray

    @property
    def classes(self) -> list[int]:
        """Numbers of the classes that are painted."""
        return [int(number) for number in np.unique(self.strokes) if number != VOID]


class PatchCache:
    """Keeps the patch features of images, the most recently used ones, up to a gigabyte; for several threads."""

    def __init__(self) -> None:
        self._lock, self._kept = threading.Lock(), OrderedDict[tuple[str, str], DenseFeatures]()

    def features(self, model: Model, image: np.ndarray) -> DenseFeatures:
        """The features of an image `[H W C]` at full resolution, of the last blocks of a network.

        Raises:
            UserError: The image has other channels than the model, or the features of the network are not a grid.
        """
        digest = hashlib.sha256(f"{image.shape} {image.dtype}".encode())
        digest.update(np.ascontiguousarray(image).data)
        key = model.fingerprint, digest.hexdigest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = patch_encoder(model, usual_blocks(model)).keep(model.pixels(image))
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > 1 and sum(map(_num_bytes, self._kept.values())) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return found


def _num_bytes(features: DenseFeatures) -> int:
    return sum(window.nbytes for _, _, window in features.windows)


def train(model: Model, scribbled: Sequence[Scribbled], cache: PatchCache, quick: bool = False) -> SegmentationHead:
    """A head from the strokes on some images: that of `opendino eval segmentation`.

    Args:
        model: The network.
        scribbled: One image or more, in the order of their names; those without a stroke are not used.
        cache: Keeps the features for the next time.
        quick: From a tenth of the pixels and with a fixed penalty, to be shown while somebody paints.

    Raises:
        UserError: Fewer than two classes are painted.
    """
    used = [each for each in scribbled if each.classes]
    if len({number for each in used for number in each.classes}) < 2:
        raise UserError("Two classes are needed", "Paint a stroke of each, in two colors")
    features, numbers, images, places = [], [], [], []
    for index, each in enumerate(used):
        points, own = sample_points(each.strokes, len(used), _SEED, index)
        features.append(cache.features(model, each.image).at(points))
        numbers.append(own)
        images.append(torch.full_like(own, index))
        places.append(points)
    classes, labels = torch.cat(numbers).unique(return_inverse=True)
    samples = PixelSamples(torch.cat(features), labels, torch.cat(images), torch.cat(places))
    chosen = samples.balanced(samples.images.unique(), _SEED, _QUICK_ROWS if quick else ROWS)
    weight, bias = chosen.linear(len(classes), _SEED, _QUICK_STRENGTH if quick else None)
    return SegmentationHead(weight, bias, tuple(classes.tolist()), usual_blocks(model))


def mask(model: Model, head: SegmentationHead, image: np.ndarray, cache: PatchCache) -> np.ndarray:
    """The class number of every pixel of an image `[H W C]`, uint8 `[H W]`."""
    labels = cache.features(model, image).label_maps([head])[0]
    return np.array(head.classes, np.uint8)[labels.numpy()]


def write(
    folder: Path, model: Model, scribbled: Sequence[Scribbled], cache: PatchCache, names: Mapping[int, str] = {}
) -> SegmentationHead:
    """Write the head, the strokes with their images, the masks, and the commands that use and repeat them.

    Args:
        folder: Created if absent: head/, scribbles/, masks/ and README.txt are written into it.
        model, scribbled, cache: As for `train`; images without a stroke get a mask too.
        names: What classes are called, by number; the others are called "class N". Without any the head has no names.

    Returns:
        The head.

    Raises:
        UserError: Fewer than two classes are painted.
    """
    head = train(model, scribbled, cache)
    if names:
        head = replace(head, names=tuple(names.get(number, f"class {number}") for number in head.classes))
    segmentation_head.save(folder / "head", model, head, {"num_train": sum(bool(each.classes) for each in scribbled)})
    for part in ("scribbles/images", "scribbles/masks", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    colors = mask_files.palette()
    for each in scribbled:
        if each.classes:
            suffix, content = _encoded(model, each.image)
            atomic_write.write(folder / "scribbles/images" / f"{each.name}{suffix}", content)
            atomic_write.write(folder / f"scribbles/masks/{each.name}.png", mask_files.encode(each.strokes, colors))
        found = mask(model, head, each.image, cache)
        atomic_write.write(folder / f"masks/{each.name}.png", mask_files.encode(found, colors))
    told = "".join(f"            {number} {name}\n" for number, name in zip(head.classes, head.names, strict=False))
    atomic_write.write(folder / "README.txt", _REPEAT.format(classes=told, again=repeating_command(head)))
    return head


def repeating_command(head: SegmentationHead) -> str:
    """The command that makes a head again from what `write` leaves."""
    names = f" --names {shlex.join(head.names)}" if head.names else ""
    return f"opendino eval segmentation head --train scribbles{names} --out head-again"


def _encoded(model: Model, image: np.ndarray) -> tuple[str, bytes]:
    """Suffix and content of a file that the model reads as this image: a PNG, or the values of each channel."""
    content, names = io.BytesIO(), model.reading.names
    if image.dtype == np.uint8 and image.shape[2] == 3 and not names:
        Image.fromarray(image).save(content, "PNG")
        return ".png", content.getvalue()
    numbered = map(str, range(image.shape[2]))
    planes = zip(names or numbered, np.moveaxis(image, 2, 0), strict=True)
    np.savez_compressed(content, allow_pickle=False, **dict(planes))
    return ".npz", content.getvalue()
