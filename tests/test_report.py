"""The report of a run: complete, in one file, and no run fails because of it."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import opendino
from opendino import report
from opendino.core.errors import UserError
from opendino.data.open_source import open_source
from opendino.recipes import demo
from opendino.views.settings import changed
from opendino.visualize.drawing.line_plots import plot


class Checked(HTMLParser):
    """Notes what a page points to, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        if tag not in ("meta", "html", "body"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("html", "body"):
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a <b> & c"
    recipe = demo.config("toy:textures?n=64&size=32")
    method = replace(recipe.method, out_dim=32, hidden_dim=16, bottleneck_dim=8)
    config = replace(
        recipe, out=str(out), val="toy:textures?n=20&split=val", steps=12, batch=16, workers=0, eval_images=40,
        method=method, views=changed(recipe.views, {"local.number": 2}), backbone="vit/8",
        backbone_options={"embed_dim": 24, "depth": 2, "num_heads": 2},
        eval_every="50%",
    )  # fmt: skip
    opendino.train(config)
    return out


def test_the_page_is_complete_and_needs_nothing_else(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Checked()
    page.feed(text)
    assert page.open == []
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|<script", text)
    assert "a &lt;b&gt; &amp; c" in text and "<b> & c" not in text
    for words in (
        '<p class="bad"><b>one-hot</b>',
        "raw pixels",
        "the same network untrained",
        "attention of the CLS token",
        "query",
        "opendino resume",
    ):
        assert words in text, words
    for title in ("loss", "k-NN, top-1 (%)", "effective rank", "learning rate", "momentum", "temperature", "KL"):
        assert f"<title>{title}" in text or title in text, title
    assert "steps: 12" in text  # settings


def test_a_run_that_goes_on_has_a_page_that_follows(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert report.write(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".report*"))


def test_without_labels_and_readable_images_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8)).save(tmp_path / "flat" / f"{number}.png")
    recipe = demo.config(str(tmp_path / "flat"))
    opendino.train(
        replace(recipe, out=str(tmp_path / "run"), val=None, steps=3, batch=4, workers=0, backbone_options={"width": 4})
    )
    text = (tmp_path / "run" / "report.html").read_text()
    assert "No accuracy without labels" in text and "contribution of each position" in text
    for path in (tmp_path / "flat").iterdir():
        path.write_text("gone")
    report.write(tmp_path / "run")
    assert "No image could be read" in (tmp_path / "run" / "report.html").read_text()


def test_a_page_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "load", lambda *_: 1 / 0)
    recipe = demo.config("toy:textures?n=32&size=32")
    result = opendino.train(
        replace(
            recipe, out=str(tmp_path / "run"), steps=2, batch=8, workers=0, eval_images=0, backbone_options={"width": 4}
        )
    )
    assert result.steps == 2
    assert "no report was written: division by zero" in (tmp_path / "run" / "log.txt").read_text()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        report.write(tmp_path)


def test_a_plot_keeps_what_stands_out_and_leaves_out_what_is_not_finite() -> None:
    steps, values = list(range(100_000)), np.sin(np.arange(100_000) / 5000)
    values[77_777] = 9.0
    values[5] = np.nan
    svg = plot("a <b>", {"x & y": (steps, values.tolist())}, (0.5, "half"))
    tree = xml.etree.ElementTree.fromstring(svg)
    points = next(each for each in tree.iter() if each.tag.endswith("polyline")).attrib["points"].split()
    assert 700 < len(points) < 900
    heights = [float(point.split(",")[1]) for point in points]
    assert sorted(heights)[0] < sorted(heights)[1] - 50, "the one spike"
    assert "nan" not in svg and "x &amp; y" in svg
    for flat in ([3.0, 3.0], [0.0]):
        assert "polyline" in plot("flat", {"x": (list(range(len(flat))), flat)})


def test_an_odd_image_costs_the_page_nothing_but_itself(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        Image.new("RGB", (30_000, 1)).save(tmp_path / f"thin{n}.png")
        Image.new("RGB", (1, 30_000)).save(tmp_path / f"tall{n}.png")
        Image.new("RGB", (32, 32), (n * 80,) * 3).save(tmp_path / f"{n}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(report.resolve, "images", lambda config: open_source(str(tmp_path)))
    text = report.write(run).read_text(encoding="utf-8")
    page = Checked()
    page.feed(text)
    assert page.open == [] and "could not be drawn" not in text
    assert "aspect ratio" in text and "query" in text


@pytest.mark.parametrize("part", ["_summary", "_scores", "_plots", "_attention", "_neighbors", "_commands"])
def test_a_part_that_fails_says_why_and_costs_no_other(
    run: Path, monkeypatch: pytest.MonkeyPatch, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> str:
        raise RuntimeError("<odd> reason")

    monkeypatch.setattr(report, part, fail)
    text = report.write(run).read_text(encoding="utf-8")
    assert text.count("could not be drawn: &lt;odd&gt; reason") == 1
    assert "opendino resume" in text or part == "_commands"
    assert "<title>loss" in text or part == "_plots"
    assert "odd> reason" in capsys.readouterr().err


def test_a_page_without_its_images_has_all_the_rest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(config: object) -> None:
        raise UserError("There is no folder photos")

    monkeypatch.setattr(report.resolve, "images", gone)
    text = report.write(run).read_text(encoding="utf-8")
    assert text.count("There is no folder photos") == 2 and "<title>loss" in text


def test_figures_from_before_the_first_step_are_no_result() -> None:
    rows = [{"step": 0, "effective_rank": 3.0, "knn": {"teacher": 12.3}}, {"step": 1, "loss": 1.0}]
    assert "12.3" not in report._scores(rows, 10) and "before its first evaluation" in report._scores(rows, 10)
    later = [*rows, {"step": 5, "effective_rank": 3.0, "knn": {"teacher": 45.6}}]
    assert "45.6" in report._scores(later, 10) and "Measured at step 5 of 10" in report._scores(later, 10)
    assert "not finished" not in report._scores(later, 5)
