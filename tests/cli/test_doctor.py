"""The doctor reads any run folder, finished or not, and says the same as the run itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opendino.cli import main, run_verdict

HEALTHY = {"loss": 3.0, "entropy_frac": 0.6, "marginal_frac": 0.9, "feature_spread": 0.5, "ok": 1.0}

LATE = {"effective_rank": 9.0, "crop_match": {"teacher": 75.0, "untrained": 65.0}}
EARLY = LATE | {"effective_rank": 4.0}


def run(
    home: Path, sick: dict[str, float], knn: dict[str, float] | None = None, steps: int = 100, of: int = 100
) -> str:
    (home / "config.yaml").write_text(f"data: photos\nsteps: {of}\n")
    rows = [{"step": step, **HEALTHY, **(sick if step > 20 else {})} for step in range(1, steps + 1)]
    rows += [{"step": steps, **evaluation, **({"knn": knn} if knn else {})} for evaluation in (EARLY, LATE)]
    torn = '{"step": 101, "lo'
    (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    return str(home)


@pytest.mark.parametrize(
    ("sick", "name"),
    [
        ({"entropy_frac": 0.999}, "collapsed (uniform)"),
        ({"marginal_frac": 0.01, "entropy_frac": 0.005}, "collapsed (one-hot)"),
        ({"marginal_frac": 0.6}, "collapsed (constant)"),
        ({"feature_spread": 0.001}, "collapsed (dead)"),
        ({"projection_spread": 0.01}, "collapsed (dead)"),
        ({"ok": 0.0}, "not shown to learn"),
        ({}, "learned"),
    ],
)
def test_it_names_what_the_rows_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sick: dict[str, float], name: str
) -> None:
    assert main(["doctor", run(tmp_path, sick), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == name
    assert found["evidence"] and bool(found["cure"]) == (name != "learned")
    assert main(["doctor", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: {found['evidence']}\n")


@pytest.mark.parametrize(("method", "named"), [("lejepa", "--method.sigreg-weight"), ("not_installed", "--optim.lr")])
def test_the_cure_is_that_of_the_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, named: str
) -> None:
    folder = run(tmp_path, {"feature_spread": 0.001})
    with open(tmp_path / "config.yaml", "a") as file:
        file.write(f"method: {{name: {method}}}\n")
    assert main(["doctor", folder, "--json"]) == 0
    assert named in json.loads(capsys.readouterr().out)["cure"]


def test_no_better_than_untrained_is_not_shown_to_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    knn = {"teacher": 40.0, "student": 41.0, "untrained": 45.0}
    assert main(["doctor", run(tmp_path, {}, knn), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "not shown to learn" and found["cure"]
    assert "40.0%" in found["evidence"] and "45.0%" in found["evidence"]
    assert main(["doctor", run(tmp_path, {}, knn, of=500), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "not shown to learn" and not found["cure"], "it may still come"


def test_a_run_that_is_not_shown_to_learn_warns_where_it_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_verdict.warn_unless_learned("timm:resnet18")
    run_verdict.warn_unless_learned(str(tmp_path))
    assert not capsys.readouterr().err
    run_verdict.warn_unless_learned(run(tmp_path, {}))
    assert not capsys.readouterr().err
    run_verdict.warn_unless_learned(run(tmp_path, {}, {"teacher": 40.0, "untrained": 45.0}))
    assert "is not shown to learn: its features may be no better" in capsys.readouterr().err


def test_no_run_folder_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 1
    assert "it has no metrics.jsonl" in capsys.readouterr().err
    assert main(["doctor"]) == 2


def test_a_csv_of_devices_is_named_with_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path, {})
    assert main(["doctor", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["confounders"] is None
    meta = tmp_path / "meta.csv"
    meta.write_text("path,device\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(20)))
    (tmp_path / "config.yaml").write_text(f"data: photos\nsteps: 100\nlabels: {meta}\n")
    assert main(["doctor", folder]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("batch effects: device in ")
    assert last.endswith(f"opendino eval confounders {folder} --labels {meta}")
