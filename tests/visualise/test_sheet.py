"""Contact sheets."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from opendino.core.errors import UsageError
from opendino.visualise import sheet


def test_rows_of_tiles_with_a_place_for_each(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (400, 100), "red"), Image.new("RGB", (30, 30), "blue")
    long = "a/very/long/path/" * 9 + "图片\udcff\n.png"
    rows = [[sheet.Tile(red, ("query", long)), sheet.Tile(None, ("0.5", "gone.png"))], [sheet.Tile(blue, ("", ""))]]
    sheet.draw(rows, tmp_path / "sheet.png")
    picture = Image.open(tmp_path / "sheet.png")
    width, height = 160 + 8, 160 + 30 + 8
    assert picture.size == (2 * width + 8, 2 * height + 8)
    assert picture.getpixel((8 + 80, 8 + 80)) == (255, 0, 0)  # shrunk to 160×40, in the middle
    assert picture.getpixel((8 + 80, 8 + 50)) == (255, 255, 255)
    assert picture.getpixel((8 + width + 5, 8 + 5)) == (0xDD, 0xDD, 0xDD)
    assert picture.getpixel((8 + 5, 8 + height + 5)) == (0, 0, 255)  # enlarged
    text = picture.crop((8, 8 + 160 + 3, 8 + 168, 8 + 190)).convert("L")
    assert text.getextrema()[0] < 100  # something is written
    assert text.crop((162, 0, 168, 27)).getextrema()[0] == 255  # and stays below its picture


@pytest.mark.parametrize(("name", "told"), [("x.jpg", "End its name in .png"), ("no/x.png", "no folder")])
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        sheet.check(str(tmp_path / name))
