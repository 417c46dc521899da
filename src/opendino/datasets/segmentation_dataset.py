"""Images of which a mask says where the objects are: two folders side by side, PASCAL VOC, or drawn ones."""

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
_HINT = "Give a folder with images/ and masks/, PASCAL VOC's folder, or toy:forms"


@dataclass(frozen=True)
class MaskedImage:
    """An image with its mask; nothing is read before it is asked for.

    Attributes:
        key: The file's name without its ending.
        image: → uint8 `[H W 3]`; raises `BadImage`.
        mask: → bool `[H W]`, where any object is; and bool `[H W]`, the void, which counts for nothing. Of another size
            than the image, perhaps. Raises `BadImage`.
    """

    key: str
    image: Callable[[], np.ndarray]
    mask: Callable[[], tuple[np.ndarray, np.ndarray]]


def open_segmentation_dataset(data: str) -> list[MaskedImage]:
    """The images that have a mask, by name.

    Args:
        data: `toy:forms?...`; or a folder with images/ and masks/, files of the same names but for their endings; or
            PASCAL VOC's, with JPEGImages and SegmentationClass or SegmentationObject, and only what
            ImageSets/Segmentation/val.txt lists where there is one.

    Raises:
        UserError: No such folder or layout, nothing in it, or a listed image or mask is missing.
    """
    if toy.matches(data):
        return _drawn(toy.build(data))
    root = Path(data).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder '{printable(str(root))}'", _HINT)
    for image_folder, mask_folder in _LAYOUTS:
        if (root / image_folder).is_dir() and (root / mask_folder).is_dir():
            return _paired(root, root / image_folder, root / mask_folder)
    raise UserError(f"{printable(str(root))} is no set of images with masks", _HINT)


def _drawn(source: toy.ToySource) -> list[MaskedImage]:
    def mask(index: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = source.mask(index) > 0
        return drawn, np.zeros_like(drawn)

    source.mask(0)  # refuses kinds that have none
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
        MaskedImage(stem, partial(_image, images[stem]), partial(_mask, mask_folder / f"{stem}.png")) for stem in stems
    ]


def _image(path: Path) -> np.ndarray:
    return decode(read_regular(path))


def _mask(path: Path) -> tuple[np.ndarray, np.ndarray]:
    raw, _ = mask_files.read(path)
    objects, void = mask_files.objects(raw, mask_files.is_black_and_white(raw))
    return objects > 0, void
