"""What the tabs draw, without a page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngImageFile
from tests.app.conftest import scene, write_run

from opendino.app import (
    context,
    duplicates_tab,
    label_tab,
    model_cache,
    page_words,
    painting,
    run_curves,
    scribble_tab,
    temperature_tab,
    train_tab,
    video_tracking_tab,
)
from opendino.core.errors import UserError
from opendino.embeddings.duplicate_groups import Duplicates
from opendino.visualize.drawing.style import COLORS


@pytest.mark.parametrize(
    ("sliders", "word"),
    [
        ((0.04, 0.1, 1, 0.25, 32, 0), "Balanced"),
        ((0.04, 0.1, 0, 0.25, 32, 0), "One prototype dominates"),
        ((1, 0.1, 1, 0.25, 32, 0), "Uniform output"),
        ((1, 0.1, 0, 0.25, 32, 0), "Uniform output"),
        ((0.04, 0.1, 0, 0, 32, 0), "Balanced"),  # without a lead there is nothing to center
    ],
)
def test_the_laboratory_names_each_way_to_fail(sliders: tuple[float, ...], word: str) -> None:
    note, *charts = temperature_tab.draw(*sliders)
    assert f"<b>{word}.</b>" in note
    for chart in charts:
        assert len(chart["value"]) == 32 and sum(chart["value"]["probability"]) == pytest.approx(1)
        assert "% of ln K" in chart["label"]


def layer(size: tuple[int, int], *discs: tuple[int, int, int, str]) -> bytes:
    """A transparent PNG with discs (x, y, radius, color), their rims softened as a browser paints them."""
    image = Image.new("RGBA", (4 * size[0], 4 * size[1]), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    for x, y, radius, color in discs:
        pen.ellipse([4 * (x - radius), 4 * (y - radius), 4 * (x + radius), 4 * (y + radius)], color)
    out = io.BytesIO()
    image.resize(size, Image.Resampling.BOX).save(out, "PNG")
    return out.getvalue()


def test_brush_colors_become_objects() -> None:
    labels = painting.painted_labels([layer((80, 60), (20, 30, 8, COLORS[1]), (60, 30, 8, COLORS[3]))])
    assert labels.shape == (60, 80) and set(np.unique(labels)) == {0, 1, 3}
    assert labels[30, 20] == 1 and labels[30, 60] == 3 and labels[5, 40] == 0


def test_an_empty_layer_has_no_numbers() -> None:
    assert not painting.painted_labels([layer((80, 60))]).any()
    assert painting.painted_labels([]).tolist() == [[0]]


def test_numbers_become_a_layer_and_numbers_again() -> None:
    labels = np.arange(7, dtype=np.uint8).repeat(5)[None].repeat(4, 0)
    content = io.BytesIO()
    painting.as_layer(labels).save(content, "PNG")
    assert np.array_equal(painting.painted_labels([content.getvalue()]), labels)


def test_a_huge_layer_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    Image.new("1", (7990, 7990)).save(content, "PNG")  # a few kilobytes
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match="7990 x 7990 pixels"):
        painting.painted_labels([content.getvalue()])


def test_layers_are_counted_and_weighed_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(layer((8, 8)))
    sent = {"path": str(tmp_path / "a.png")}
    assert len(painting.layers({"layers": [sent, None]}, tmp_path)) == 1
    with pytest.raises(UserError, match="9 layers"):
        painting.layers({"layers": [sent] * 9}, tmp_path)
    monkeypatch.setattr(painting, "_MAX_LAYER_BYTES", 10)
    with pytest.raises(UserError, match="more than 0 MB"):
        painting.layers({"layers": [sent]}, tmp_path)


@pytest.mark.parametrize("value", [1e9, -1, float("nan"), float("inf"), "3", None, True, [3], {}])
def test_what_no_slider_can_give_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="out of its range"):
        context.bounded(value, 0, 50)
    with pytest.raises(UserError, match="out of its range"):
        temperature_tab.draw(0.04, 0.1, 1, 0.25, value, 0)


def test_a_disc_is_tracked(place: Path) -> None:
    model = model_cache.ModelCache(torch.device("cpu")).model(str(place / "runs/first"))
    frames = [("", np.asarray(scene(number, (160, 120)))) for number in range(5)]
    labels = painting.painted_labels([layer((160, 120), (48, 60, 27, COLORS[1]))])
    drawn = list(video_tracking_tab.draw_tracked(model, iter(frames), labels, 120))
    assert len(drawn) == 5 and all(frame.shape == (120, 160, 3) for frame in drawn)
    inside = np.any(drawn[-1] != frames[-1][1], -1)
    y, x = np.mgrid[:120, :160]
    disc = (x - 160 * 0.5) ** 2 + (y - 60) ** 2 < 30**2  # it has moved by 32 px
    assert (inside & disc).sum() / (inside | disc).sum() > 0.6


def test_labels_stay_when_another_table_is_chosen() -> None:
    state = label_tab._of_table(None, "one.parquet", "photos") | {"labels": {"1.png": "cat"}}
    better = label_tab._of_table(state, "two.parquet", "photos")
    assert better["labels"] == {"1.png": "cat"} and better["keys"] == []
    other = label_tab._of_table(better, "cells.parquet", "cells")
    assert other["labels"] == {} and other["kept"] == {"photos": {"1.png": "cat"}}, "the same name may be another image"
    assert label_tab._of_table(other, "one.parquet", "photos")["labels"] == {"1.png": "cat"}


def test_labels_of_a_list_predict_the_rest(place: Path, tmp_path: Path) -> None:
    shown = model_cache.ModelCache(torch.device("cpu")).table(str(place / "photos.parquet"))
    keys = shown.vectors[0]
    truth = {key: "left" if number % 8 < 4 else "right" for number, key in enumerate(keys[:12])}
    lines = [f"/data/upload/1/0a1b2c3d-{key},{name}" for key, name in (truth | {"x.png": "no"}).items()]
    (tmp_path / "studio.csv").write_text("\n".join(["image,choice", *lines]))
    labels, unmatched = label_tab.read_labels(tmp_path / "studio.csv", keys)
    assert labels == truth
    assert unmatched == "1 of the 13 paths in the list match no image, e.g. x.png"
    classifier, rows = label_tab.predicted(shown, labels)
    assert (
        "on 12 images (95% interval" in classifier.accuracy and "most frequent class gives 66.7%" in classifier.accuracy
    )
    assert [row["labeled"] for row in rows] == [*labels.values(), *[""] * 12]
    assert {row["class"] for row in rows} == {"left", "right"} and all(0.5 <= row["probability"] <= 1 for row in rows)
    few = label_tab.predicted(shown, {key: labels[key] for key in keys[3:5]})[0]
    assert "2 labels are too few to measure it" in few.accuracy
    with pytest.raises(UserError, match="The labels are of 1 class"):
        label_tab.predicted(shown, {keys[0]: "left"})
    (tmp_path / "other.csv").write_text("path,class\nnone.png,x\n")
    with pytest.raises(UserError, match="1 of the 1 paths in The list match no image"):
        label_tab.read_labels(tmp_path / "other.csv", keys)


class FakeJob(train_tab.TrainingJob):
    """A training job that fails with a given message."""

    def __init__(self, out: Path, stopped: bool = False, message: str = "") -> None:
        self.out, self.stopped, self._message = out, stopped, message
        self.archive, self._words = None, ["train", "my photos", "--minutes", "20"]

    @property
    def failed(self) -> str:
        return self._message

    @property
    def said(self) -> list[str]:
        return ["backbone = <conv4>"]


def test_progress_is_drawn_and_failures_are_told(tmp_path: Path) -> None:
    out, curves = write_run(tmp_path / "run", 100, 60), run_curves.Reader()
    drawn = train_tab.draw(FakeJob(out), True, curves)
    assert "<b>Training:</b> 60 of 100 steps" in drawn and "width:60.0%" in drawn and "<th>teacher</th>" in drawn
    assert curves.color(out) in drawn and "backbone = &lt;conv4&gt;" in drawn
    assert "<b>Stopped:</b>" in train_tab.draw(FakeJob(out, stopped=True), False, curves)
    assert "&lt;x&gt;" in train_tab.draw(FakeJob(out, message="<x>"), False, curves)


def test_before_the_first_step_the_page_shows_what_the_run_says_last(tmp_path: Path) -> None:
    curves = run_curves.Reader()
    assert "<b>Training, no step yet:</b> backbone = &lt;conv4&gt;" in train_tab.draw(FakeJob(tmp_path), True, curves)
    stopped = train_tab.draw(FakeJob(tmp_path, stopped=True), False, curves)
    assert "Stopped before the first step; nothing was saved" in stopped and "model" not in stopped


def test_a_finished_training_names_its_model(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run", 100, 100)
    drawn = train_tab.draw(FakeJob(out), False, run_curves.Reader(), "runs/<a>")
    assert "choose its model at the top of the page: <b>runs/&lt;a&gt;</b>" in drawn
    chosen = train_tab.draw(FakeJob(out), False, run_curves.Reader(), "runs/<a>", chosen=True)
    assert "Its model is chosen at the top of the page: <b>runs/&lt;a&gt;</b>" in chosen


def test_a_training_that_has_not_learned_says_what_to_do(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run", 100, 100)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 100, "effective_rank": 9.0, "knn": {"teacher": 50.5, "untrained": 50.0}}\n')
    drawn = train_tab.draw(FakeJob(out), False, run_curves.Reader())
    assert "<b>not shown to learn</b>" in drawn and "<b>What to do:</b> Train longer: a larger “Number" in drawn
    shown, _, rest = drawn.partition("<details>")
    assert "--" not in shown and "opendino train &#39;my photos&#39; --minutes 20" in rest and "--optim.lr" in rest
    (out / "metrics.jsonl").write_text((out / "metrics.jsonl").read_text().replace("50.5", "40.0"))
    lowered = train_tab.draw(FakeJob(out), False, run_curves.Reader())
    assert "<b>What to do:</b> On the command line: Longer training is not likely to help" in lowered
    uploaded = FakeJob(out, message="m")
    uploaded.archive, uploaded._words = tmp_path / "1.zip", ["demo", str(tmp_path / "1.zip")]
    assert "<pre>opendino demo images.zip</pre>" in train_tab.draw(uploaded, False, run_curves.Reader())


@pytest.mark.parametrize(
    ("said", "on_the_page"),
    [
        ("2 folders; --labels none if they are dates", "2 folders; “Sub-folders are: Dates, batches or other” if"),
        ("no evaluation shows that (see --eval-images and --eval-every)", "no evaluation shows that"),
        ("3 pages? Choose --stack channels or max", "3 pages? Choose “Pages of a file are”: channels or max"),
        ("Lower --optim.lr", "Lower --optim.lr (Names with -- are settings of the command line, see below.)"),
    ],
)
def test_flags_become_fields_of_the_page(said: str, on_the_page: str) -> None:
    assert page_words.in_page_words(said).startswith(on_the_page)


def test_what_has_no_field_is_said_to_be_for_the_command_line() -> None:
    fact = page_words.of_images('4 images of 2 files each, one per channel: --channel-files "{id}_w{channel}.tif"')
    assert fact.endswith("on the command line; start this page with that run, which reads them together")
    assert page_words.of_images("8 bit; --stack max") == "8 bit; “Pages of a file are”: max"
    told = page_words.verdict_words("k-NN 5 < 9 (see --eval-images)", "Lower --optim.lr")
    assert told == "k-NN 5 < 9. On the command line: Lower --optim.lr"
    assert page_words.verdict_words("rank 2", "Use other images") == "rank 2. Use other images"


@pytest.mark.parametrize(
    ("num_images", "text"),
    [(500, "less than a minute left"), (60_000, "about 10 min left"), (720_000, "about 2.0 hours left")],
)
def test_the_time_left_follows_from_the_speed_so_far(num_images: int, text: str) -> None:
    rows = [{"images_per_second": 100.0}, {"images_per_second": 100.0}, {"images_per_second": 1.0}, {}]
    assert train_tab._time_left(rows, num_images) == text
    assert train_tab._time_left([{}], num_images) == ""


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        (0.95, "with cosine 0.95 or more."),
        (0.99961, "with cosine 0.9996 or more."),
        (0.99997, "with cosine 0.999970 or more."),
        (1.0, "with identical vectors."),
    ],
)
def test_a_threshold_below_1_is_never_told_as_1(threshold: float, text: str) -> None:
    found = duplicates_tab.sentence(Duplicates([], threshold, None, 0), 24)
    assert found == f"0 groups among 24 images, {text}"


def test_only_choices_of_the_page_become_flags() -> None:
    flags = train_tab.server_flags("A trial of 10 steps", None, "Classes", "max", "auto")
    assert flags == ["--steps", "10", "--labels", "folders", "--stack", "max"]
    named = train_tab.server_flags("Minutes", 7.5, "Not said", "ask", "aerial")
    assert named[:4] == ["--minutes", "7.5", "--recipe", "aerial"]
    assert train_tab.server_flags("Minutes", 10_000, "Not said", "ask", "auto")[:2] == ["--minutes", "10000"]
    trial = "A trial of 10 steps"
    for wrong in (
        ("--init x", 1, "Classes", "ask", "auto"), (trial, 1, "/etc/passwd", "ask", "auto"),
        ([], 1, "Classes", "0", "auto"), (trial, 1, "Classes", "ask", "small --init x"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="not among the choices"):
            train_tab.server_flags(*wrong)
    for minutes in (0.4, 10_001, None, "1 --init x"):
        with pytest.raises(UserError, match=r"from 0\.5 to 10000"):
            train_tab.server_flags("Minutes", minutes, "Classes", "ask", "auto")


def test_names_of_classes_are_those_typed_in_the_order_of_the_colors() -> None:
    typed = scribble_tab.class_names("background, scratch (deep),,pore")
    assert typed == {0: "background", 1: "scratch (deep)", 3: "pore"}
    assert scribble_tab.class_names(None) == {} and scribble_tab.class_names(" , ") == {}
    hostile = scribble_tab.class_names("--out x `a`<b>\n$c, " + "y" * 99 + "," * 20 + "z")
    assert hostile == {0: "out x a b c", 1: "y" * 40}
