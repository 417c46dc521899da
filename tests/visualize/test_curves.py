"""Curves of runs: which are compared, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opendino.core.errors import UsageError, UserError
from opendino.visualize.curves import Config, show


def a_run(folder: Path, number: int) -> str:
    folder.mkdir(parents=True)
    rows = [{"step": 0, "effective_rank": 5.0, "knn": {"teacher": 20.0, "student": 21.0}}]
    rows += [{"step": n, "loss": 5 - n / number, "kl": None, "lr": n * 1e-4, "momentum": 0.9} for n in range(1, number)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')
    return str(folder)


def test_runs_beside_each_other(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "x" / "run", 2000), a_run(tmp_path / "y" / "run", 40)
    report = show(Config((one, other), out=str(tmp_path / "c.html")))
    assert report.fields["panels"] == ["Loss", "k-NN", "Effective rank", "Learning rate", "Teacher's momentum"]
    assert report.fields["steps"] == {"x/run": 1999, "y/run": 39}
    assert report.fields["last"]["y/run"]["loss"] == pytest.approx(5 - 39 / 40)
    page = (tmp_path / "c.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("<svg") == 1 and "&lt;svg" not in page
    assert "x/run" in page and "y/run" in page  # the legend is text


@pytest.mark.parametrize("suffix", [".txt", ".jpg"])
def test_another_suffix_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UsageError, match=r"has no supported suffix\. Use one of \.png, \.svg"):
        show(Config((a_run(tmp_path / "run", 5),), out=str(tmp_path / f"c{suffix}")))


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder: it has no metrics\.jsonl"):
        show(Config((str(tmp_path),), out=str(tmp_path / "c.png")))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="not measured anything yet"):
        show(Config((str(tmp_path),), out=str(tmp_path / "c.png")))
    with pytest.raises(UsageError, match="No run was named"):
        Config(())
