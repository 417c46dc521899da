"""What is said about a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.app.conftest import scene

from opendino.cli import inspect_command
from opendino.core.errors import UserError
from opendino.data import image_overview
from opendino.data.image_overview import look_at, recommended_recipe


def test_every_image_is_looked_at_if_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_overview, "_LOOKED_AT", 3)
    for each in range(12):
        scene(each, (32, 32)).save(tmp_path / f"{each}.png")
    (tmp_path / "broken.png").write_bytes(b"<html>")
    assert look_at(str(tmp_path)).facts["looked at"] == "3 of 13 images, spread over the set"
    found = look_at(str(tmp_path), every_image=True)
    assert found.facts["looked at"].startswith("13 of 13") and [key for key, _ in found.bad] == ["broken.png"]


def test_counts_sizes_depth_and_files_that_cannot_be_used(tmp_path: Path) -> None:
    for folder, number in (("cats", 3), ("dogs", 2)):
        (tmp_path / folder).mkdir()
        for each in range(number):
            scene(each, (40 + 8 * each, 32)).save(tmp_path / folder / f"{each}.png")
    (tmp_path / "dogs/broken.png").write_bytes(b"<html>")
    found = look_at(str(tmp_path))
    assert found.facts["images"] == "6 in 2 folders: cats 3, dogs 3"
    assert found.facts["size in pixels"] == "40 × 32 to 56 × 32; most often 40 × 32 (40%)"
    assert found.facts["depth"].startswith("8 bit") and found.facts["channels"] == "3: red, green, blue"
    assert found.facts["looked at"] == "6 of 6 images, spread over the set"
    assert "values" not in found.facts and "recipe" not in found.facts and found.recipe == "auto"
    assert [key for key, _ in found.bad] == ["dogs/broken.png"] and "web page" in found.bad[0][1]
    assert len(found.examples) == 5


def test_gray_and_rgb_photographs_belong_together(tmp_path: Path) -> None:
    for number in range(6):  # most are gray
        scene(number).convert("L" if number < 4 else "RGB").save(tmp_path / f"{number}.jpg")
    found = look_at(str(tmp_path))
    assert not found.bad and len(found.examples) == 6
    assert found.facts["looked at"].startswith("6 of 6 images") and found.facts["channels"].startswith("3: red")
    assert found.facts["notes"] == "gray, read as RGB (4 of 6 images)"


def test_16_bit_images_are_shown_by_the_range_of_the_set(tmp_path: Path) -> None:
    for number in range(4):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.full((16, 16), 1000 + 100 * number, np.uint16))
    found = look_at(str(tmp_path))
    assert found.facts["depth"].startswith("16 bit") and "1000 to 1300" in found.facts["values"]
    assert inspect_command.run([str(tmp_path)]).text.endswith(f"opendino train {tmp_path} --recipe microscopy")
    assert found.recipe == "microscopy" == recommended_recipe(str(tmp_path)) and "microscopy" in found.facts["recipe"]
    brightness = [np.asarray(image).mean() for image, _ in found.examples]
    assert brightness == sorted(brightness) and brightness[0] == 0 and brightness[-1] == 255


def test_pages_of_unknown_meaning_are_a_question(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 16, 16), np.uint16), photometric="minisblack")
    with pytest.raises(UserError, match="--stack"):
        look_at(str(tmp_path))
    assert recommended_recipe(str(tmp_path)) == "auto" and recommended_recipe(str(tmp_path), "max") == "microscopy"
    assert look_at(str(tmp_path), "max").facts["images"] == "1"


def test_five_channels_are_shown_in_colors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 4096, (16, 16, 5), dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"{number}.tif", pixels, planarconfig="contig", photometric="minisblack")
    found = look_at(str(tmp_path))
    assert found.facts["channels"].startswith("5: ") and len(found.examples) == 3
    assert all(image.mode == "RGB" for image, _ in found.examples)
