"""Images with segmentation masks: two folders side by side, PASCAL VOC, or generated images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from opendino.core.errors import UserError
from opendino.data.decode import decode
from opendino.data.source_files import is_hidden, is_image, printable, read_regular
from opendino.data.sources import toy
from opendino.datasets import mask_files

_LAYOUTS = (("images", "masks"), ("JPEGImages", "SegmentationClass"), ("JPEGImages", "SegmentationObject"))
_HINT = "Give a folder with images/ and masks/, the folder of PASCAL VOC, or toy:forms"


@dataclass(frozen=True)
class MaskedImage:
    """An image with its mask; both are functions, so that nothing is read before it is needed.

    Attributes:
        key: Name of the file without its suffix.
        image: Returns uint8 `[H W 3]`; raises `BadImage`.
        mask: Returns bool `[H W]`, the pixels of all objects; and bool `[H W]`, the void pixels, which are ignored. The
            size may differ from that of the image. Raises `BadImage`.
    """

    key: str
    image: Callable[[], np.ndarray]
    mask: Callable[[], tuple[np.ndarray, np.ndarray]]


def open_segmentation_dataset(data: str) -> list[MaskedImage]:
    """List the images that have a mask, sorted by name.

    Args:
        data: `toy:forms?...`; or a folder with images/ and masks/, with the same file names except for the suffix; or
            the folder of PASCAL VOC, with JPEGImages and SegmentationClass or SegmentationObject. If
            ImageSets/Segmentation/val.txt exists, only the images in it, in its order.

    Raises:
        UserError: The folder does not exist, has another layout or no images, or a listed image or mask is missing.
    """
    if toy.matches(data):
        return _toy_images(toy.build(data))
    root = Path(data).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder '{printable(str(root))}'", _HINT)
    for image_folder, mask_folder in _LAYOUTS:
        if (root / image_folder).is_dir() and (root / mask_folder).is_dir():
            return _paired(root, root / image_folder, root / mask_folder)
    raise UserError(f"{printable(str(root))} is not a dataset of images with masks", _HINT)


def _toy_images(source: toy.ToySource) -> list[MaskedImage]:
    def mask(index: int) -> tuple[np.ndarray, np.ndarray]:
        object_mask = source.mask(index) > 0
        return object_mask, np.zeros_like(object_mask)

    source.mask(0)  # raises UsageError for kinds without masks
    return [MaskedImage(source.key(i), partial(source.read, i), partial(mask, i)) for i in range(len(source))]


def _paired(root: Path, image_folder: Path, mask_folder: Path) -> list[MaskedImage]:
    images = {path.stem: path for path in image_folder.iterdir() if is_image(path.name) and not is_hidden(path.name)}
    stems = sorted(path.stem for path in mask_folder.glob("*.png") if path.stem in images)
    listed = root / "ImageSets" / "Segmentation" / "val.txt"
    if listed.is_file():
        stems = listed.read_text("utf-8", "replace").split()
        for stem in stems:
            if stem not in images or not (mask_folder / f"{stem}.png").is_file():
                where = image_folder if stem not in images else mask_folder
                raise UserError(f"{listed} names '{stem}', which is not in {printable(str(where))}")
    if not stems:
        raise UserError(f"No image in {printable(str(image_folder))} has a mask", "Masks are PNGs of the same names")
    return [
        MaskedImage(stem, partial(_read_image, images[stem]), partial(_read_mask, mask_folder / f"{stem}.png"))
        for stem in stems
    ]


def _read_image(path: Path) -> np.ndarray:
    return decode(read_regular(path))


def _read_mask(path: Path) -> tuple[np.ndarray, np.ndarray]:
    raw, _ = mask_files.read(path)
    objects, void = mask_files.objects(raw, mask_files.is_black_and_white(raw))
    return objects > 0, void
