"""Images with segmentation masks: two folders side by side, COCO polygons, PASCAL VOC, or generated images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import numpy as np

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.source_files import is_hidden, is_image, printable, read_regular
from opendino.data.sources import toy
from opendino.datasets import mask_files
from opendino.datasets.coco_polygons import CocoPolygons

_LAYOUTS = (("images", "masks"), ("JPEGImages", "SegmentationClass"), ("JPEGImages", "SegmentationObject"))
_POLYGONS = ("annotations.json", "result.json")
_HINT = "Give a folder with images/ and masks/ or annotations.json (COCO), the folder of PASCAL VOC, or toy:forms"


@final
class SegmentationDataset(Source):
    """Images with one mask each; nothing is read before it is needed.

    Args:
        keys: Names of the files without their suffix.
        read: Index → encoded file, or uint8 `[H W 3]`; may raise `BadImage`.
        numbers: Index → mask, as returned by `numbers`; may raise `BadImage`.
        without_mask: Names of the images that have no mask and are left out.
    """

    def __init__(
        self,
        keys: Sequence[str],
        read: Callable[[int], bytes | np.ndarray],
        numbers: Callable[[int], np.ndarray],
        without_mask: Sequence[str] = (),
    ) -> None:
        self._keys, self._read, self._numbers, self.without_mask = keys, read, numbers, without_mask

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """Name of the file without its suffix."""
        return self._keys[index]

    def subset(self, indices: Sequence[int]) -> SegmentationDataset:
        """Some of the images with their masks, in that order."""
        keys = [self._keys[index] for index in indices]
        return SegmentationDataset(keys, lambda i: self._read(indices[i]), lambda i: self._numbers(indices[i]))

    def label(self, index: int) -> int:
        """-1: there are no classes."""
        return -1

    def read(self, index: int) -> bytes | np.ndarray:
        """See `Source`."""
        return self._read(index)

    def mask(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The pixels of all objects, bool `[H W]`; and the void pixels, bool `[H W]`, which are ignored.

        The size may differ from that of the image.

        Raises:
            BadImage: The file cannot be read.
        """
        raw = self._numbers(index)
        found, void = mask_files.objects(raw, mask_files.is_black_and_white(raw))
        return found > 0, void

    def numbers(self, index: int) -> np.ndarray:
        """The mask as it is stored, uint8 `[H W]`: class numbers, 255 for pixels to ignore.

        Raises:
            BadImage: The file cannot be read.
        """
        return self._numbers(index)


def open_segmentation_dataset(data: str, split: str = "val") -> SegmentationDataset:
    """Open the images that have a mask, sorted by name.

    Args:
        data: `toy:forms?...`; or a folder with images/ and masks/, with the same file names except for the suffix; or
            a folder with images/ and annotations.json or result.json, polygons of COCO; or the folder of PASCAL VOC,
            with JPEGImages and SegmentationClass or SegmentationObject.
        split: If ImageSets/Segmentation/SPLIT.txt exists, only the images in it are used, in its order.

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
            return _paired(root, root / image_folder, root / mask_folder, split)
    for name in _POLYGONS:
        if (root / "images").is_dir() and (root / name).is_file():
            return _with_polygons(root / "images", root / name)
    raise UserError(f"{printable(str(root))} is not a dataset of images with masks", _HINT)


def _toy_images(source: toy.ToySource) -> SegmentationDataset:
    source.mask(0)  # raises UsageError for kinds without masks
    return SegmentationDataset([source.key(index) for index in range(len(source))], source.read, source.mask)


def _with_polygons(folder: Path, file: Path) -> SegmentationDataset:
    polygons = CocoPolygons(file)
    names = sorted(path.name for path in folder.iterdir() if is_image(path.name) and not is_hidden(path.name))
    drawn = [name for name in names if name in polygons]
    if not drawn:
        raise UserError(f"No image in {printable(str(folder))} has a polygon in {file.name}", _HINT)
    return SegmentationDataset(
        [Path(name).stem for name in drawn],
        read=lambda index: read_regular(folder / drawn[index]),
        numbers=lambda index: polygons.mask(drawn[index]),
        without_mask=[Path(name).stem for name in names if name not in polygons],
    )


def _paired(root: Path, image_folder: Path, mask_folder: Path, split: str) -> SegmentationDataset:
    images: dict[str, Path] = {}
    for path in sorted(image_folder.iterdir()):
        if is_image(path.name) and not is_hidden(path.name):
            if other := images.get(path.stem):
                raise UserError(
                    f"{printable(str(image_folder))} has {printable(other.name)} and {printable(path.name)}, and one "
                    f"mask {printable(path.stem)}.png cannot be that of both",
                    "Rename or remove one of them",
                )
            images[path.stem] = path
    stems = sorted(path.stem for path in mask_folder.glob("*.png") if path.stem in images)
    without_mask = sorted(images.keys() - stems)
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if listed.is_file():
        stems, without_mask = listed.read_text("utf-8", "replace").split(), []
        for stem in stems:
            if stem not in images or not (mask_folder / f"{stem}.png").is_file():
                where = image_folder if stem not in images else mask_folder
                raise UserError(f"{listed} names '{stem}', which is not in {printable(str(where))}")
    if not stems:
        raise UserError(f"No image in {printable(str(image_folder))} has a mask", "Masks are PNGs of the same names")
    return SegmentationDataset(
        stems,
        read=lambda index: read_regular(images[stems[index]]),
        numbers=lambda index: mask_files.read(mask_folder / f"{stems[index]}.png")[0],
        without_mask=without_mask,
    )
