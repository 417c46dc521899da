"""One list of panels: all metrics are drawn, long lines keep their extremes, colors mean the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from opendino.visualize.drawing import line_charts, panels
from opendino.visualize.drawing.style import COLORS


def column(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(values)), np.array(values)


def test_no_metric_is_in_two_panels() -> None:
    metrics = [metric for panel in panels.PANELS for metric in panel.metrics]
    assert len(set(metrics)) == len(metrics)
    assert not panels._NOT_DRAWN & {*metrics}


def test_one_run_shows_all_networks_and_several_the_one_to_use() -> None:
    columns = {"knn.teacher": column(1, 2), "knn.student": column(3), "loss": column(5, 4)}
    loss, knn = panels.charts({"a": columns})
    assert (list(loss.lines), list(knn.lines)) == (["a"], ["teacher", "student"])
    _, knn = panels.charts({"a": columns, "b": columns})
    assert {name: line.values.tolist() for name, line in knn.lines.items()} == {"a": [1, 2], "b": [1, 2]}


def test_several_runs_show_what_they_started_from() -> None:
    """The caption says to end above it. Equal runs share the line."""

    def networks(untrained: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {"knn.teacher": column(1, 2), "knn.untrained": column(untrained, untrained)}

    (knn,) = panels.charts({"a": networks(1), "b": networks(1)})
    assert [*knn.lines] == ["a", "b", "untrained network"] and "untrained network" in knn.panel.caption
    (knn,) = panels.charts({"a": networks(1), "b": networks(3)})
    assert [*knn.lines] == ["a", "b", "a untrained", "b untrained"]
    assert len({line.color for line in knn.lines.values()}) == 4


def test_without_a_teacher_or_a_cross_entropy_no_text_speaks_of_them() -> None:
    simsiam = {"loss": column(1, 0), "feature_spread": column(1, 1), "knn.student": column(3, 4)}
    swav = simsiam | {"entropy_frac": column(1, 1)}
    byol = simsiam | {"momentum": column(1, 1), "knn.teacher": column(3, 4)}
    dino = byol | swav
    texts = [
        " ".join(
            f"{each.panel.title} {each.panel.label} {each.panel.caption}" for each in panels.charts({"a": columns})
        )
        for columns in (simsiam, swav, byol, dino)
    ]
    assert ["nats" in text for text in texts] == [False, False, False, True]
    assert ["teacher" in text for text in texts] == [False, False, False, True]
    both = panels.charts({"a": dino, "b": simsiam})
    assert both[0].panel.label == "" and any(chart.panel.title.startswith("Teacher's entropy") for chart in both)


def test_names_of_lines_fit_in_a_legend() -> None:
    names = [name for panel in panels.PANELS for name in panel.metrics.values()]
    assert max(map(len, [*names, *(name for name, _ in panels.NETWORKS.values())])) <= line_charts._NAME_LETTERS


def test_several_runs_have_a_chart_per_metric() -> None:
    columns = {"feature_spread": column(1, 2), "projection_spread": column(3, 4)}
    (spread,) = panels.charts({"a": columns})
    assert list(spread.lines) == ["features", "projections"]
    charts = panels.charts({"a": columns, "b": {"feature_spread": column(5)}})
    assert [chart.panel.title for chart in charts] == ["Spread: features", "Spread: projections"]
    assert [list(chart.lines) for chart in charts] == [["a", "b"], ["a"]]


def test_a_metric_that_no_panel_names_gets_its_own(tmp_path: Path) -> None:
    rows = [{"step": n, "loss": 1.0, "ok": 1.0, "patch_loss/x": n / 2, "majority": 3.0} for n in range(50)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    charts = panels.charts({"a": panels.of_file(tmp_path / "m.jsonl")})
    assert [chart.panel.title for chart in charts] == ["Loss", "Patch loss/x"]
    assert charts[1].lines["a"].values.tolist() == [n / 2 for n in range(50)]


def test_a_run_has_its_color_in_every_chart_and_no_other_line_has_it() -> None:
    columns = {
        "loss": column(1), "knn.teacher": column(1), "knn.student": column(2), "knn.pixels": column(3),
        "feature_spread": column(1), "projection_spread": column(1),
    }  # fmt: skip
    for own in COLORS:
        for chart in panels.charts({"a": columns}, {"a": own}):
            tints = [line.color for line in chart.lines.values()]
            assert tints[0] == own and len(set(tints)) == len(tints)
    for chart in panels.charts({"a": columns, "b": columns}, {"a": "#123456", "b": "#654321"}):
        assert {name: line.color for name, line in chart.lines.items()} == {"a": "#123456", "b": "#654321"}


def test_a_network_has_one_color_whatever_comes_first() -> None:
    """In a run without a teacher of its own, the student is the network to use."""
    for keys in (["knn.teacher", "knn.student"], ["knn.student", "knn.teacher"]):
        (chart,) = panels.charts({"a": {key: column(1) for key in keys}})
        assert {name: line.color for name, line in chart.lines.items()} == {"teacher": COLORS[0], "student": COLORS[1]}


def test_thinning_keeps_every_extreme() -> None:
    values = np.random.default_rng(0).normal(size=100_003)
    values[[5, 77_777]] = 40, -40
    line = panels.line((np.arange(1, 100_004), values), "#000000")
    assert len(line.steps) == 500 and (np.diff(line.steps) > 0).all()
    assert (line.low.min(), line.high.max()) == (-40, 40)
    assert (line.low <= line.values).all() and (line.values <= line.high).all()
    assert np.isclose(line.values.mean(), values.mean(), atol=1e-3)  # stretches differ by one value
    few = panels.line((np.array([3, 9]), np.array([1.0, 2.0])), "#000000")
    assert [part.tolist() for part in few[:4]] == [[3, 9], [1, 2], [1, 2], [1, 2]]


def test_repetitions_are_a_mean_and_a_range() -> None:
    line = panels.repeated([([1, 2, 3], [1.0, 2, 3]), ([1, 2], [3.0, 6])], "#000000")
    assert [part.tolist() for part in line[:4]] == [[1, 2], [2, 4], [1, 2], [3, 6]]


def test_bars_name_the_baselines() -> None:
    assert panels.bars({}) == []
    ((name, percent, tint, text), _) = panels.bars({"knn": {"untrained": 31.0, "teacher": 50.0}, "num_queries": 100})
    assert (name, percent) == ("untrained network", 31.0)
    assert tint == panels.NETWORKS["untrained"][1] and text == "31.0% ± 4.6"


@pytest.mark.parametrize("number", [1, 700])
def test_metrics_that_start_late_are_found(tmp_path: Path, number: int) -> None:
    """A run resumed with another version, or a loss that starts after a warm-up."""
    with open(tmp_path / "m.jsonl", "w") as file:
        file.writelines(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in range(number))
        file.writelines(json.dumps({"step": number + n, "loss": 1.0, "late": 2.0}) + "\n" for n in range(3))
    assert panels.of_file(tmp_path / "m.jsonl")["late"].values.tolist() == [2.0] * 3
