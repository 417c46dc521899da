"""What the tab Curves draws, without a page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.app.conftest import row, write_run

from opendino.app import chart_grid, curves_tab, pace, run_curves
from opendino.core import metrics_log
from opendino.core.errors import UserError
from opendino.visualize.drawing import panels
from opendino.visualize.drawing.style import COLORS


def drawn_curves(runs: dict[str, Path], reader: run_curves.Reader) -> tuple[str, list[panels.Chart]]:
    columns = {name: reader.columns(run) for name, run in runs.items()}
    return curves_tab.table(runs, columns, reader), curves_tab.charts(runs, columns, reader)


def test_curves_tell_runs_apart_and_escape_their_names(tmp_path: Path) -> None:
    runs = {f"<b>{name}": write_run(tmp_path / name, 100, done) for name, done in (("a", 100), ("b", 60))}
    table, charts = drawn_curves(runs, run_curves.Reader())
    assert "100 of 100" in table and "60 of 100" in table and "finished" in table and "running" in table
    assert "<b>" not in table and "&lt;b&gt;a" in table
    assert all(color in table for color in COLORS[:2])
    assert [chart.panel.title for chart in charts[:2]] == ["Loss", "k-NN"]


def test_a_collapsed_run_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 100, 0)
    same = row(1, 100).replace('"entropy_frac": 0.5', '"entropy_frac": 0.999')
    (run / "metrics.jsonl").write_text(same * 60)
    _, verdict = curves_tab.state(run, 60, 100, {}, {})
    assert verdict is not None and verdict.name == "collapsed (uniform)"
    assert "collapsed (uniform)</span>" in drawn_curves({"a": run}, run_curves.Reader())[0]


@pytest.mark.parametrize(
    ("teacher", "word"), [(80.0, "finished, learned"), (52.0, ">not shown to learn<"), (40.0, ">not shown")]
)
def test_a_finished_run_says_whether_it_has_learned(tmp_path: Path, teacher: float, word: str) -> None:
    run = write_run(tmp_path / "run", 100, 100)
    measured = {
        "step": 100, "effective_rank": 9.0, "knn": {"teacher": teacher, "untrained": 50.0}, "majority": 30.0,
        "balanced_accuracy": {"teacher": teacher, "untrained": 50.0}, "num_queries": 50,
    }  # fmt: skip
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(measured) + "\n")
    drawn = drawn_curves({"run": run}, run_curves.Reader())[0]
    assert word in drawn and ("On the command line: Train longer" in drawn) == (teacher == 52)
    assert ("On the command line: Longer training is not likely to help" in drawn) == (teacher == 40)
    assert f"{teacher:.1f}% ± " in drawn and "balanced" in drawn and "30.0%" in drawn and "50 queries" in drawn


def test_an_accuracy_by_folders_that_nobody_called_classes_is_named_so(tmp_path: Path) -> None:
    for confirmed in (0, 1):
        run = write_run(tmp_path / str(confirmed), 100, 100)
        measured = {"step": 100, "knn": {"teacher": 22.3}, "judged_on": {"confirmed": confirmed}}
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(measured) + "\n")
        drawn = drawn_curves({"run": run}, run_curves.Reader())[0]
        assert "22.3%" in drawn and ("by folders (unconfirmed)" in drawn) == (not confirmed)


def test_of_a_run_that_has_grown_only_what_is_new_is_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 100, 10)
    reader = run_curves.Reader()
    assert reader.columns(run)["loss"][0][-1] == 10
    assert reader.columns(run) is reader.columns(run)
    course = reader._read[run].course
    with open(run / "metrics.jsonl", "a") as file:
        file.write(row(11, 100))
    changes = course.changes
    assert reader.columns(run)["loss"][0].tolist() == list(range(1, 12))
    assert course.changes == changes + 1  # one more piece, not the whole again
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="was deleted"):
        reader.columns(run)


def test_a_long_run_is_read_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_curves, "_TICK_BYTES", 1)  # a chunk is the least
    monkeypatch.setattr(metrics_log, "_CHUNK_BYTES", 1000)
    run = write_run(tmp_path / "run", 100, 100)
    reader = run_curves.Reader()
    first = reader.columns(run)
    assert 0 < first["loss"].steps[-1] < 100
    assert "MB left" in curves_tab.table({"a": run}, {"a": first}, reader)
    while reader.left(run):
        reader.columns(run)
    assert reader.columns(run)["loss"].steps[-1] == 100


def colors(charts: list[panels.Chart]) -> dict[str, set[str]]:
    """Name of a line → its colors in the charts."""
    found: dict[str, set[str]] = {}
    for chart in charts:
        for name, line in chart.lines.items():
            found.setdefault(name, set()).add(line.color)
    return found


def test_a_run_has_one_color_in_all_charts_and_keeps_it(tmp_path: Path) -> None:
    runs = {name: write_run(tmp_path / name, 100, 100, seed) for seed, name in enumerate("abc")}
    text = (runs["a"] / "metrics.jsonl").read_text()  # the first has no KL, so it is absent from that chart
    (runs["a"] / "metrics.jsonl").write_text(text.replace('"kl"', '"other"'))
    reader = run_curves.Reader()
    own = {name: reader.color(run) for name, run in runs.items()}
    assert len(set(own.values())) == 3
    start = {"untrained network": {COLORS[-1]}}  # which the runs share
    assert colors(drawn_curves(runs, reader)[1]) == {name: {tint} for name, tint in own.items()} | start
    del runs["a"]  # no longer chosen
    assert colors(drawn_curves(runs, reader)[1]) == {name: {own[name]} for name in "bc"} | start
    alone = colors(drawn_curves({"b": runs["b"]}, reader)[1])
    assert all(len(tints) == 1 for tints in alone.values()) and alone["b"] == {own["b"]} == alone["teacher"]


def test_a_plot_has_every_point_and_the_range_of_what_is_averaged() -> None:
    values, spread = np.array([1.0, 2.0, 3.0]), np.array([0, 1, 0])
    line = panels.Line(np.arange(3), values, values - spread, values + spread, "#123456")
    found = chart_grid.options(panels.Chart(panels.Panel("loss", {"loss": ""}, "nats"), {"a <b>": line}))
    assert found["value"].to_numpy().tolist() == [[0, 1, "a <b>"], [1, 1, "a <b>"], [1, 3, "a <b>"], [2, 3, "a <b>"]]
    assert found["color_map"] == {"a <b>": "#123456"} and found["y_title"] == "nats"


def test_a_long_line_is_a_few_ranges_to_its_last_step() -> None:
    values = np.sin(np.arange(5000.0))
    values[[7, 4321]] = -8, 9
    values[100:200] = np.nan
    line = panels.line((np.arange(5000), values), "#123456")
    points = chart_grid.options(panels.Chart(panels.PANELS[0], {"a": line}))["value"]
    assert 200 < len(points) <= 250 and points["value"].isna().sum() == 0
    assert points["value"].agg(["min", "max"]).tolist() == [-8, 9] and points["step"].iloc[-1] == line.steps[-1]


def test_a_plot_with_other_colors_is_another_plot() -> None:
    """Gradio draws the old numbers in new colors where a plot keeps its key."""

    def key(name: str, color: str) -> object:
        line = panels.line((np.arange(3), np.arange(3.0)), color)
        return chart_grid.options(panels.Chart(panels.PANELS[0], {name: line}))["key"]

    assert key("a", "#123456") == key("a", "#123456")
    assert len({key("a", "#123456"), key("b", "#123456"), key("a", "#654321")}) == 3


def test_a_run_whose_settings_cannot_be_read_costs_no_other_its_curves(tmp_path: Path) -> None:
    runs = {name: write_run(tmp_path / name, 100, 100) for name in "ab"}
    (runs["a"] / "config.yaml").write_text("{")
    reader = run_curves.Reader()
    drawn, charts = drawn_curves(runs, reader)
    assert "config.yaml" in drawn and "100 of 100" in drawn and [*charts[0].lines] == ["a", "b"]


def test_runs_of_the_same_name_are_numbered() -> None:
    assert curves_tab._short(["a/x", "b/x"]) == {"a/x": "1", "b/x": "2"}
    assert curves_tab._short(["a/x", "b/y"]) == {"a/x": "x", "b/y": "y"}


def test_new_runs_are_selected_and_a_choice_is_kept() -> None:
    assert curves_tab.with_new(["b"], ["a", "b", "c"], ["new", "a", "b", "c"]) == ["new", "b"]
    assert curves_tab.with_new(["b", "gone"], ["b", "gone"], ["b"]) == ["b"]
    assert curves_tab.with_new([], [], [*"abcdef"]) == [*"abcd"], "as many as at first"


def test_an_expensive_drawing_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now, spent = [100.0], [0.0]
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0], thread_time=lambda: spent[0]))
    drawing = pace.Pace()
    assert drawing.due()
    with drawing.counted():
        spent[0] += 0.5
    assert not drawing.due()
    now[0] += 0.5 / pace.SHARE
    assert drawing.due()
    for _ in range(3):  # three people at once
        with drawing.counted():
            spent[0] += 0.1
    now[0] += 0.29 / pace.SHARE
    assert not drawing.due()
    now[0] += 0.02 / pace.SHARE
    assert drawing.due()


def test_settings_and_state_follow_their_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, 100, 40)
    assert run_curves.settings(run) is run_curves.settings(run)
    (run / "config.yaml").write_text("steps: 7\n", encoding="utf-8")
    os.utime(run / "config.yaml", ns=(1, 1))
    assert run_curves.settings(run) == {"steps": 7}
