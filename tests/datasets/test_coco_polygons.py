"""Polygons become masks: by pixel centers, in order, and only if the file is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opendino.core.errors import BadImage, UserError
from opendino.datasets.coco_polygons import CocoPolygons
from opendino.datasets.segmentation_dataset import open_segmentation_dataset

BOX, TRIANGLE = [1, 1, 5, 1, 5, 3, 1, 3], [0, 0, 4, 0, 0, 4]


def write(root: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    images = [{"id": 7, "file_name": "photos/a.jpg", "height": 6, "width": 8}]
    file = {"images": images, "annotations": annotations, "categories": [{"id": 9}, {"id": 3}], **changes}
    (root / "annotations.json").write_text(json.dumps(file))
    return root / "annotations.json"


def polygon(points: list[float], category: int = 3, **more: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": category, "segmentation": [points], **more}


def test_pixels_whose_centers_are_inside_get_the_number_of_the_category(tmp_path: Path) -> None:
    found = CocoPolygons(write(tmp_path, [polygon(BOX), polygon([4, 2, 99, 2, 99, 99, 4, 99], 9)]))
    assert "a.jpg" in found and "b.jpg" not in found
    wanted = np.zeros((6, 8), np.uint8)
    wanted[1:3, 1:5] = 1
    wanted[2:, 4:] = 2  # the later one counts; what is outside of the image is cut off
    assert np.array_equal(found.mask("a.jpg"), wanted)


def test_slanted_and_self_crossing_polygons(tmp_path: Path) -> None:
    mask = CocoPolygons(write(tmp_path, [polygon(TRIANGLE)])).mask("a.jpg")
    rows, columns = np.mgrid[:6, :8] + 0.5
    assert np.array_equal(mask == 1, (rows + columns < 4))
    bow = CocoPolygons(write(tmp_path, [polygon([0, 0, 6, 6, 6, 0, 0, 6])])).mask("a.jpg")
    assert bow[3, 0] == 1 and bow[3, 5] == 1 and bow[0, 3] == 0 and bow[5, 3] == 0
    crowd = CocoPolygons(write(tmp_path, [polygon(BOX, iscrowd=1)])).mask("a.jpg")
    assert sorted(np.unique(crowd)) == [0, 255]


def test_a_crowd_of_official_files_is_void(tmp_path: Path) -> None:
    runs = {"counts": [7, 3, 38], "size": [6, 8]}  # rows 1 to 3 of the second column
    crowd = polygon(BOX, iscrowd=1) | {"segmentation": runs}
    found = CocoPolygons(write(tmp_path, [polygon(TRIANGLE), crowd])).mask("a.jpg")
    assert (found == 255).sum() == 3 and (found[1:4, 1] == 255).all() and found[0, 0] == 1
    for wrong, told in (
        ({"counts": "x1"}, "neither polygons nor"),
        ({"counts": [7, 3]}, "10 pixels in an image of 8 x 6"),
    ):
        crowd = polygon(BOX, iscrowd=1) | {"segmentation": wrong}
        with pytest.raises(BadImage, match=told):
            CocoPolygons(write(tmp_path, [crowd])).mask("a.jpg")


@pytest.mark.parametrize("wrong", [{"counts": "x", "size": [6, 8]}, [[1, 2, 3, 4]], [["a"] * 6], None, [[1e9] * 6]])
def test_other_annotations_are_refused(wrong: object, tmp_path: Path) -> None:
    found = CocoPolygons(write(tmp_path, [polygon(BOX) | {"segmentation": wrong}]))
    with pytest.raises(BadImage, match="is not a list of polygons"):
        found.mask("a.jpg")


@pytest.mark.parametrize(
    ("annotations", "changes", "told"),
    [
        ([polygon(BOX, 4)], {}, "unknown category"),
        ([polygon(BOX) | {"image_id": 1}], {}, "unknown image"),
        ([], {"images": "a"}, "Expected `array`"),
        ([], {"categories": [{"id": number} for number in range(300)]}, "length <= 254"),
    ],
)
def test_other_files_are_refused(annotations: list[Any], changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        CocoPolygons(write(tmp_path, annotations, **changes))


def test_a_folder_of_images_with_polygons_is_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "c.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / name)
    write(tmp_path, [polygon(BOX)]).rename(tmp_path / "result.json")
    found = open_segmentation_dataset(str(tmp_path))
    assert len(found) == 1 and found.key(0) == "a" and found.without_mask == ["c"]
    assert found.numbers(0).sum() == 8 and found.numbers(0).shape == (6, 8)
    write(tmp_path, [])
    with pytest.raises(UserError, match=r"has a polygon in annotations\.json"):
        open_segmentation_dataset(str(tmp_path))
