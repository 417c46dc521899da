"""Figures of curves need no display, are reproducible, and are written only to supported formats."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opendino.core.errors import UsageError, UserError
from opendino.visualize.curves import Config, Panel, draw, of_runs, show, thinned

PANELS = [
    Panel("one", "y", {"a": [([0, 1, 2], [1.0, 2.0, 3.0]), ([0, 1, 2], [3.0, 2.0, 1.0])]}, level=(2.5, "ln K")),
    Panel("two", "z", {"b": [([0, 1], [1.0, 2.0]), ([0], [1.0])]}),
]


def test_a_picture_of_every_kind(tmp_path: Path) -> None:
    for kind in ("png", "svg", "pdf"):
        draw(PANELS, tmp_path / f"curves.{kind}")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > image.height > 300
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_curves_are_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        draw(PANELS, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no supported suffix\. Use one of \.png, \.svg"):
        draw(PANELS, tmp_path / "curves.txt")
    assert not list(tmp_path.iterdir())


def test_thinning_keeps_every_extreme() -> None:
    values = np.random.default_rng(0).normal(size=100_003)
    values[[5, 77_777]] = 40, -40
    steps, low, mean, high = thinned(np.arange(1, 100_004), values, 500)
    assert len(steps) == 500 and (np.diff(steps) > 0).all()
    assert (low.min(), high.max()) == (-40, 40)
    assert (low <= mean).all() and (mean <= high).all()
    assert np.isclose(mean.mean(), values.mean(), atol=1e-3)  # stretches differ by one value
    few = thinned(np.array([3, 9]), np.array([1.0, 2.0]), 500)
    assert [part.tolist() for part in few] == [[3, 9], [1, 2], [1, 2], [1, 2]]


def a_run(folder: Path, number: int) -> str:
    folder.mkdir(parents=True)
    rows = [{"step": 0, "effective_rank": 5.0, "knn": {"teacher": 20.0, "student": 21.0}}]
    rows += [{"step": n, "loss": 5 - n / number, "kl": None, "lr": n * 1e-4, "momentum": 0.9} for n in range(1, number)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')
    return str(folder)


def test_runs_beside_each_other(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "x" / "run", 2000), a_run(tmp_path / "y" / "run", 40)
    report = show(Config((one, other), out=str(tmp_path / "c.html")))
    assert report.fields["panels"] == ["Loss", "Effective rank", "k-NN", "Learning rate", "Teacher's momentum"]
    assert report.fields["steps"] == {"x/run": 1999, "y/run": 39}
    assert report.fields["last"]["y/run"]["loss"] == pytest.approx(5 - 39 / 40)
    page = (tmp_path / "c.html").read_text()
    assert page.startswith("<!doctype html>") and "<svg" in page


def test_one_run_shows_both_networks_and_many_the_one_to_use(tmp_path: Path) -> None:
    columns = {"knn.teacher": (np.array([0, 5]), np.array([1.0, 2])), "knn.student": (np.array([0]), np.array([3.0]))}
    (panel,) = of_runs({"a": columns})
    assert list(panel.curves) == ["teacher", "student"]
    (panel,) = of_runs({"a": columns, "b": columns})
    assert {name: list(curves[0][1]) for name, curves in panel.curves.items()} == {"a": [1, 2], "b": [1, 2]}


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder: it has no metrics\.jsonl"):
        show(Config((str(tmp_path),), out=str(tmp_path / "c.png")))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="not measured anything yet"):
        show(Config((str(tmp_path),), out=str(tmp_path / "c.png")))
    with pytest.raises(UsageError, match="No run was named"):
        Config(())


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'pip install "opendino\[show\]"'):
        draw(PANELS, tmp_path / "curves.png")
