"""The report of a run: complete, in one file, and no run fails because of it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tests.factories import dino_run, noise_folder

import opendino
from opendino import report
from opendino.core.errors import UserError
from opendino.data.metadata import confounders_hint
from opendino.data.open_source import open_source
from opendino.models.image_reading import ImageReading
from opendino.recipes import demo
from opendino.visualize.drawing import templates


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
    opendino.train(dino_run(out, steps=12, eval_every="50%", report=True))
    return out


def test_the_page_is_complete_and_needs_nothing_else(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Checked()
    page.feed(text)
    assert page.open == []
    assert page.links and all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink)\")|@import|url\((?!#)|<script", text)
    assert "a &lt;b&gt; &amp; c" in text and "<b> & c" not in text
    for words in (
        '<p class="bad"><b>collapsed (one-hot)</b>',
        "raw pixels",
        "untrained network",
        "attention of the CLS token",
        "query",
        "opendino resume",
    ):
        assert words in text, words
    for title in ("Loss", "k-NN", "Effective rank", "Learning rate", "momentum", "temperature", "KL", "Gradient norm"):
        assert re.search(f"<text[^>]*>[^<]*{title}", text), title
    assert "steps: 12" in text  # settings


def test_a_run_that_goes_on_has_a_page_that_follows(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert report.write(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".report*"))


def test_without_labels_and_readable_images_it_says_so(tmp_path: Path) -> None:
    noise_folder(tmp_path / "flat", 12)
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


def test_an_odd_image_costs_the_page_nothing_but_itself(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        Image.new("RGB", (30_000, 1)).save(tmp_path / f"thin{n}.png")
        Image.new("RGB", (1, 30_000)).save(tmp_path / f"tall{n}.png")
        Image.new("RGB", (32, 32), (n * 80,) * 3).save(tmp_path / f"{n}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(ImageReading, "open_images", lambda reading, data: open_source(str(tmp_path)))
    text = report.write(run).read_text(encoding="utf-8")
    page = Checked()
    page.feed(text)
    assert page.open == [] and "could not be drawn" not in text
    assert "aspect ratio" in text and "query" in text


@pytest.mark.parametrize("part", ["_summary", "_scores", "_curves", "_attention", "_neighbors", "_map"])
def test_a_part_that_fails_says_why_and_costs_no_other(
    run: Path, monkeypatch: pytest.MonkeyPatch, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> str:
        raise RuntimeError("<odd> reason")

    monkeypatch.setattr(report, part, fail)
    text = report.write(run).read_text(encoding="utf-8")
    assert text.count("could not be drawn: &lt;odd&gt; reason") == 1
    assert "opendino resume" in text
    assert (">Loss<" in text) == (part != "_curves")
    assert "odd> reason" in capsys.readouterr().err


def test_a_page_without_its_images_has_all_the_rest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(reading: ImageReading, data: str) -> None:
        raise UserError("There is no folder photos")

    monkeypatch.setattr(ImageReading, "open_images", gone)
    text = report.write(run).read_text(encoding="utf-8")
    assert text.count("There is no folder photos") == 3 and ">Loss<" in text


def test_figures_from_before_the_first_step_are_no_result() -> None:
    rows = [{"step": 0, "effective_rank": 3.0, "knn": {"teacher": 12.3}}, {"step": 1, "loss": 1.0}]
    assert report._scores(rows, 10)["interrupted"]
    later = report._scores([*rows, {"step": 5, "effective_rank": 3.0, "knn": {"teacher": 45.6}}], 10)
    assert not later["interrupted"] and later["step"] == "5 of 10"
    ((_, percent, _, text),) = later["charts"]["k-NN, top-1 on held-out images:"]
    assert (percent, text) == (45.6, "45.6%")
    assert not report._scores([{"step": 5, "effective_rank": 3.0}], 5)["step"]


def test_the_check_for_batch_effects_is_named_where_a_csv_is_known(run: Path, tmp_path: Path) -> None:
    assert "eval confounders" not in (run / "report.html").read_text(encoding="utf-8")
    meta = tmp_path / "meta.csv"
    meta.write_text("path,device\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(20)))
    hint = confounders_hint(str(run), "photos", str(meta))
    content = {"title": "", "kind": "commands", "content": {"run": run, "batch_effects": hint}, "error": ""}
    page = templates.render("report.html", title="run", sections=[content])
    assert f"--labels {meta}</p>" in page and "device in " in page
