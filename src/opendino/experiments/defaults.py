"""Which defaults matter on a small dataset: the demo's run with one setting of DINO changed at a time, scored by k-NN.

Command: `opendino experiment defaults [--data FOLDER --val FOLDER]`
Every run sees the same number of images, except for the factor "momentum, long run" with three times as many, because
the best momentum depends on the length of the run. Cost: 62 runs of about a minute, an hour on two cores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from opendino.config import Config as RunConfig
from opendino.core import atomic_write
from opendino.core.accuracy import baseline_text
from opendino.core.errors import UserError, unknown
from opendino.core.ranges import Checked, Count, Repeats, Workers
from opendino.core.types import Report
from opendino.data.open_source import open_source
from opendino.engine.collapse_detection import Monitor
from opendino.experiments._trial_runs import TrialRun, run
from opendino.recipes import demo
from opendino.views.settings import changed

LONG = 3
FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "as it is": {"-": {}},
    "momentum": {f"{m:g} → 1": {"momentum": m, "momentum_end": 1.0} for m in (0.8, 0.9, 0.95, 0.99, 0.996)},
    "momentum, long run": {
        f"{m:g} → 1": {"momentum": m, "momentum_end": 1.0, "steps": LONG} for m in (0.8, 0.9, 0.95, 0.99, 0.996)
    },
    "K": {f"{k}": {"out_dim": k} for k in (64, 1024, 4096, 16384)},
    "teacher temperature": {
        f"{t:g}": {"teacher_temp": t, "teacher_temp_start": min(t, 0.04)} for t in (0.01, 0.03, 0.04, 0.07)
    },
    "centering": {
        "mean": {"centering": "mean", "teacher_temp": 0.04},
        "mean, no batch norm": {"centering": "mean", "teacher_temp": 0.04, "head_batch_norm": False},
        "no batch norm": {"head_batch_norm": False},
    },
    "local crops": {f"{n}": {"local.number": n} for n in (0, 2, 6, 8)},
    "batch": {f"{b}": {"batch": b} for b in (16, 32, 128, 256)},
}
"""Factor → value → changed settings of the method or, with a dot, of the views; also "batch", and "steps" as a multiple
of `Config.steps`."""


@dataclass(frozen=True)
class Config(Checked):
    """Size and data of the experiment."""

    out: str = "runs/lab-defaults"
    """Folder of the experiment; finished runs in it are not run again."""
    data: str = demo.DATA
    """Training images."""
    val: str | None = None
    """Labeled images for k-NN; by default a part of DATA is held out (for the demo's toy data, toy images)."""
    seeds: Repeats = 2
    steps: Count = 240
    """Steps of a run with batch size 64; other batch sizes see as many images."""
    jobs: Workers = 2
    """Number of runs at a time."""
    only: tuple[str, ...] = field(default=())
    """Factors to run, by name; empty for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.only:
            if name not in FACTORS:
                raise unknown("factor", name, FACTORS)


def trials(config: Config) -> list[TrialRun]:
    """The runs: the demo's."""
    base = demo.config(config.data)
    base = replace(
        base, val=base.val if config.data == demo.DATA else config.val, eval_every="100%",
        checkpoint_every="100%", keep_checkpoints=1, workers=0, report=False,
    )  # fmt: skip
    factors = dict.fromkeys(("as it is", *(config.only or FACTORS)))

    def planned(changes: dict[str, Any], seed: int) -> RunConfig:
        changes = dict(changes)
        batch, times = changes.pop("batch", 64), changes.pop("steps", 1)
        steps = max(1, round(config.steps * times * 64 / batch))
        views = changed(base.views, {name: changes.pop(name) for name in list(changes) if "." in name})
        method = replace(base.method, **changes)
        return replace(base, batch=batch, steps=steps, seed=seed, method=method, views=views)

    return [
        TrialRun(f"{factor} {value}".replace(" → 1", "").replace(",", ""), planned(changes, seed))
        for factor in factors
        for value, changes in FACTORS[factor].items()
        for seed in range(config.seeds)
    ]


def conduct(config: Config) -> Report:
    """Run and compare all settings; writes table.md and result.json to the folder.

    Raises:
        UserError: The images have no classes to measure with.
    """
    if not open_source(config.val or config.data).classes:
        hint = "The experiment compares by k-NN accuracy: give folders of classes"
        raise UserError(f"{config.val or config.data} has no classes", hint)
    folder, planned = Path(config.out), trials(config)
    rows = run(planned, folder, config.jobs)
    values = iter(zip(planned, rows, strict=True))
    found: list[dict[str, Any]] = []
    for factor in dict.fromkeys(("as it is", *(config.only or FACTORS))):
        for value in FACTORS[factor]:
            runs = [_outcome(*next(values)) for _ in range(config.seeds)]
            found.append({"factor": factor, "value": value, "runs": runs})
    text = _table(found)
    atomic_write.write(folder / "table.md", text + "\n")
    atomic_write.write(folder / "result.json", json.dumps({"data": config.data, "settings": found}, indent=1) + "\n")
    return Report(text, {"folder": str(folder), "settings": found})


def _outcome(trial: TrialRun, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Final scores of a run, and the collapses detected."""
    assert trial.config.steps is not None
    monitor = Monitor(trial.config.steps)
    named = {collapse.name for row in rows if "loss" in row and (collapse := monitor.watch(row))}
    knn = [row["knn"] for row in rows if "knn" in row][-1]
    also = {
        "balanced_accuracy": (rows[-1].get("balanced_accuracy") or {}).get("teacher"),
        "baseline_text": baseline_text(rows[-1]),
    }
    rank = rows[-1]["effective_rank"]
    return {"seed": trial.config.seed, "knn": knn, "effective_rank": rank, "named": sorted(named), **also}


def _table(found: list[dict[str, Any]]) -> str:
    base = [run["knn"]["teacher"] for run in found[0]["runs"]]
    lines = ["| factor | value | k-NN | against as it is, seed by seed | rank | named |", "|---|---|---|---|---|---|"]
    for each in found:
        knn = [run["knn"]["teacher"] for run in each["runs"]]
        spread = f" ± {stdev(knn):.1f}" if len(knn) > 1 else ""
        gains = ", ".join(f"{mine - theirs:+.1f}" for mine, theirs in zip(knn, base, strict=True))
        rank = mean(run["effective_rank"] for run in each["runs"])
        names = ", ".join(sorted({name for run in each["runs"] for name in run["named"]})) or "-"
        balanced = [run["balanced_accuracy"] for run in each["runs"] if run["balanced_accuracy"] is not None]
        even = f", balanced {mean(balanced):.1f} %" if balanced else ""
        cells = (each["factor"], each["value"], f"{mean(knn):.1f}{spread} %{even}", gains, f"{rank:.1f}", names)
        lines.append(f"| {' | '.join(cells)} |")
    before = [run["knn"] for each in found for run in each["runs"]]
    lines += ["", *(f"{name}: {mean(knn[name] for knn in before):.1f} %. " for name in ("untrained", "pixels"))]
    if comparison := found[0]["runs"][0]["baseline_text"]:
        lines.append(f"k-NN of each run: {comparison}.")
    return "\n".join(lines)
