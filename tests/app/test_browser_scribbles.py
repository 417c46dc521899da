"""Strokes, masks and the export of the tab Segment in a real browser."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.app.browser import MARKS, Visit, picture, put, sentence
from tests.app.conftest import scene

from opendino.cli import main
from opendino.datasets import mask_files

sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = MARKS
_DISC, _LEFT = (0.55, 0.5), (0.12, 0.5)  # of an image `scene(5)`


def stroke(visit: Visit, panel: Any, at: tuple[float, float], photo: tuple[int, int]) -> None:
    """Paint a short stroke down from a point of the image, which the editor shows at most at its own size."""
    canvas = panel.locator("canvas").first.bounding_box()
    scale = float(panel.get_by_text(re.compile(r"^\d+%$")).inner_text().rstrip("%")) / 100
    x, y = (canvas[start] + canvas[side] / 2 + (part - 0.5) * size * scale
            for start, side, part, size in zip("xy", ("width", "height"), at, photo, strict=True))  # fmt: skip
    visit.page.mouse.move(x, y)
    visit.page.mouse.down()
    for step in range(6):  # as slowly as a hand
        visit.page.mouse.move(x, y + 3 * step)
        visit.page.wait_for_timeout(80)
    visit.page.mouse.up()
    visit.page.wait_for_timeout(500)


def color(panel: Any, number: int) -> None:
    panel.get_by_label("Color", exact=True).click()
    panel.locator("button.color").nth(number).click()
    panel.get_by_label("Brush", exact=True).click()


def show(panel: Any, note: str) -> None:
    panel.get_by_role("button", name="Show the mask").click()
    panel.get_by_text(re.compile(note)).wait_for()


def test_strokes_become_masks_and_a_head_that_predict_uses(visit: Visit, tmp_path: Path) -> None:
    panel = visit.tab("Segment")
    for number in (5, 6):
        scene(number, (240, 180)).save(tmp_path / f"{number}.png")
    put(panel, tmp_path / "5.png")
    panel.get_by_label("Color", exact=True).wait_for()
    visit.page.wait_for_timeout(3000)  # the editor builds its canvas
    stroke(visit, panel, _DISC, (240, 180))
    panel.get_by_role("button", name="Show the mask").click()
    sentence(visit.page, "Two classes are needed")
    color(panel, 1)
    stroke(visit, panel, _LEFT, (240, 180))
    show(panel, r"01-upload: red [\d.]+ %, green [\d.]+ % \(classes 0, 1\); \d")
    picture(panel, "Mask").wait_for()

    put(panel, tmp_path / "6.png")
    panel.get_by_text(re.compile("02-upload: red")).wait_for()  # its mask, before a stroke on it
    visit.page.wait_for_timeout(3000)
    color(panel, 2)
    stroke(visit, panel, (0.9, 0.5), (240, 180))
    show(panel, r"02-upload: red [\d.]+ %, green [\d.]+ %, pink [\d.]+ % \(classes 0, 1, 2\)")
    panel.get_by_label("Thumbnail 1 of 2").click()
    panel.get_by_text(re.compile("01-upload: red .*pink")).wait_for()

    panel.get_by_label("Names of the classes").fill("disc, left")
    show(panel, r"01-upload: disc .*, left .*, pink")
    panel.get_by_role("button", name="Export").click()
    panel.get_by_text("--names disc left 'class 2'").wait_for()
    with visit.page.expect_download() as download:
        panel.get_by_role("button", name="Download head").click()
    with zipfile.ZipFile(download.value.path()) as exported:
        exported.extractall(tmp_path)
    painted = [mask_files.read(tmp_path / f"export/scribbles/masks/0{n}-upload.png")[0] for n in (1, 2)]
    assert [np.unique(mask).tolist() for mask in painted] == [[0, 1, 255], [2, 255]]
    assert painted[0].shape == (180, 240) and painted[0][90, 132] == 0 and painted[0][92, 29] == 1
    words = ["predict", str(tmp_path / "export/head"), str(tmp_path / "export/scribbles/images"), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "masks")]) == 0
    for n in (1, 2):
        told, again = (mask_files.read(folder / f"0{n}-upload.png")[0]
                       for folder in (tmp_path / "export/masks", tmp_path / "masks"))  # fmt: skip
        assert (told == again).mean() > 0.999
