"""Figures of charts need no display, are reproducible, and leave matplotlib as it was."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from opendino.visualize.drawing import line_charts, style
from opendino.visualize.drawing.panels import Chart, Line, Panel, charts

ONE = np.arange(1, 31)
COLUMNS = {"loss": (ONE, 5 - ONE / 10), "knn.teacher": (ONE, ONE * 2.0), "knn.pixels": (ONE, ONE * 1.0)}


def drawn(path: Path) -> bytes:
    style.save(line_charts.figure(charts({"a <b>": COLUMNS})), path)
    return path.read_bytes()


def test_a_file_of_every_format(tmp_path: Path) -> None:
    drawn(tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > image.height > 300
    assert drawn(tmp_path / "c.svg").startswith(b"<?xml")
    assert drawn(tmp_path / "c.pdf").startswith(b"%PDF")
    assert drawn(tmp_path / "c.html").startswith(b"<!doctype html>")


@pytest.mark.parametrize("suffix", style.FIGURES)
def test_the_same_charts_are_the_same_file(tmp_path: Path, suffix: str) -> None:
    assert drawn(tmp_path / f"c{suffix}") == drawn(tmp_path / f"c{suffix}")


def test_text_in_svg_is_text_and_escaped() -> None:
    svg = style.svg(line_charts.figure(charts({"a <b>": {"loss": COLUMNS["loss"]}, "c": {"loss": COLUMNS["loss"]}})))
    texts = [each.text for each in xml.etree.ElementTree.fromstring(svg).iter() if each.tag.endswith("text")]
    assert {"Loss", "a <b>", "c", "step"} <= {*texts}


def legends(columns: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> tuple[int, list[bool]]:
    figure = line_charts.figure(charts(columns))
    return len(figure.legends), [axis.get_legend() is not None for axis in figure.axes if axis.get_visible()]


def test_one_legend_where_colors_mean_the_same_everywhere() -> None:
    assert legends({"a": COLUMNS, "b": COLUMNS}) == (1, [False, False])
    assert legends({"a": COLUMNS}) == (0, [False, True])  # blue is the run and its teacher


def test_all_text_is_inside_the_figure_and_no_legend_covers_a_line() -> None:
    networks = ("teacher", "student", "untrained", "pixels", "color")
    matches = {f"crop_match.{name}": (ONE, ONE * (1.0 + place)) for place, name in enumerate(networks)}
    long = {"a_metric_of_a_plug_in_with_a_name_that_is_long": (ONE, ONE * 1.0)}
    figure = line_charts.figure(charts({"a": COLUMNS | matches | long}))
    figure.draw_without_rendering()
    axes = [axis for axis in figure.axes if axis.get_visible()]
    boxes = [axis.get_tightbbox() for axis in axes]
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert all((legend := axis.get_legend()) is None or not legend.get_tightbbox().overlaps(axis.bbox) for axis in axes)


def test_a_logarithmic_axis_only_for_numbers_above_zero() -> None:
    def scale(low: float) -> str:
        values = np.array([low, 1.0, 100.0])
        chart = Chart(Panel("norm", {"norm": ""}, log=True), {"a": Line(ONE[:3], values, values, values, "#000000")})
        return line_charts.figure([chart]).axes[0].get_yscale()

    assert (scale(0.1), scale(0.0)) == ("log", "linear")


def test_threads_draw_the_same_and_settings_do_not_leak(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    expected = drawn(tmp_path / "c.svg")
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda n: drawn(tmp_path / f"{n}.svg"), range(8)))
    assert set(files) == {expected}
    assert dict(mpl.rcParams) == before


def test_matplotlib_is_imported_only_to_draw() -> None:
    """Nor pyplot when drawing: its figures would never be freed."""
    code = (
        "import sys; from opendino import report, training; from opendino.visualize import curves; "
        "assert 'matplotlib' not in sys.modules; "
        "from opendino.visualize.drawing import style; style.svg(style.figure(1, 1, 1)[0]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
