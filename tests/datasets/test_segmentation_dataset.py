"""Images with masks: three layouts, and the errors if something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opendino.core.errors import BadImage, UsageError, UserError
from opendino.data.decode import decode
from opendino.datasets.segmentation_dataset import SegmentationDataset, open_segmentation_dataset


def write(root: Path, folders: tuple[str, str], masks: dict[str, np.ndarray]) -> Path:
    """Gray images, and their masks as given."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for stem, mask in masks.items():
        Image.new("RGB", (6, 4), (9, 9, 9)).save(root / folders[0] / f"{stem}.jpg")
        Image.fromarray(mask).save(root / folders[1] / f"{stem}.png")
    return root


def keys(dataset: SegmentationDataset) -> list[str]:
    return [dataset.key(index) for index in range(len(dataset))]


def test_two_folders_side_by_side(tmp_path: Path) -> None:
    white, numbered = np.array([[0, 255]], np.uint8), np.array([[0, 2, 255]], np.uint8)
    root = write(tmp_path, ("images", "masks"), {"b": white, "a": numbered})
    Image.new("RGB", (3, 3)).save(root / "images" / "without.png")
    found = open_segmentation_dataset(str(root))
    assert keys(found) == ["a", "b"] and found.without_mask == ["without"]
    assert [found.numbers(index).tolist() for index in (0, 1)] == [[[0, 2, 255]], [[0, 255]]]
    assert decode(found.read(0)).shape == (4, 6, 3)
    assert [part.tolist() for part in found.mask(0)] == [[[False, True, False]], [[False, False, True]]]
    assert [part.tolist() for part in found.mask(1)] == [[[False, True]], [[False, False]]]


@pytest.mark.parametrize("kind", ["SegmentationClass", "SegmentationObject"])
def test_voc_with_and_without_its_list(kind: str, tmp_path: Path) -> None:
    mask = np.array([[0, 15, 255]], np.uint8)
    root = write(tmp_path, ("JPEGImages", kind), {"one": mask, "two": mask, "three": mask})
    assert keys(open_segmentation_dataset(str(root))) == ["one", "three", "two"]
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("two\none\n")
    assert keys(open_segmentation_dataset(str(root))) == ["two", "one"]
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("three\n")
    assert keys(open_segmentation_dataset(str(root), "train")) == ["three"]
    (root / kind / "two.png").unlink()
    with pytest.raises(UserError, match=rf"val\.txt names 'two', which is not in .*{kind}"):
        open_segmentation_dataset(str(root))


def test_drawn_forms() -> None:
    found = open_segmentation_dataset("toy:forms?n=3&size=16")
    truth, void = found.mask(2)
    assert (len(found), decode(found.read(2)).shape, truth.shape) == (3, (16, 16, 3), (16, 16))
    assert truth.any() and not void.any()
    with pytest.raises(UsageError, match="toy:forms"):
        open_segmentation_dataset("toy:textures")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        open_segmentation_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"not a dataset of images with masks. Give a folder with images/ and masks/"):
        open_segmentation_dataset(str(tmp_path))
    with pytest.raises(UserError, match=r"No image in .*images has a mask"):
        open_segmentation_dataset(str(write(tmp_path, ("images", "masks"), {})))
    root = write(tmp_path / "damaged", ("images", "masks"), {"a": np.zeros((2, 2), np.uint8)})
    (root / "masks" / "a.png").write_bytes(b"no image")
    with pytest.raises(BadImage):
        open_segmentation_dataset(str(root)).mask(0)


def test_two_images_for_one_mask_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, ("images", "masks"), {"1": np.zeros((4, 6), np.uint8)})
    Image.new("RGB", (6, 4)).save(root / "images" / "1.png")
    with pytest.raises(UserError, match=r"has 1\.jpg and 1\.png, and one mask 1\.png cannot be that of both"):
        open_segmentation_dataset(str(root))
