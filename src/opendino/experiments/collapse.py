"""Collapse: the paper's ablation of centering and sharpening at small scale, diagnosed by collapse detection.

Command: `opendino experiment collapse`
Caron et al. 2021, section 5.3 and figure 7. Cost: 50 runs of about a minute, half an hour on two cores.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from opendino.config import Config as RunConfig
from opendino.core import atomic_write
from opendino.core.accuracy import baseline_text
from opendino.core.errors import unknown
from opendino.core.ranges import Checked, Count, Repeats, Workers
from opendino.core.types import Report
from opendino.engine.collapse_detection import Monitor
from opendino.experiments._trial_runs import TrialRun, run
from opendino.methods import byol, dino
from opendino.recipes import demo
from opendino.views.settings import changed
from opendino.visualize.drawing import line_charts, style
from opendino.visualize.drawing.panels import Chart, Panel, repeated


@dataclass(frozen=True)
class Setting:
    """What one row of the experiment changes.

    Attributes:
        changes: Changed settings of the method.
        expected: Verdict expected from the paper or from `why`; None if it depends on the run. Such a run counts as
            healthy if its k-NN accuracy ends three points above the untrained network's, else as collapsed.
        why: The reason.
    """

    changes: dict[str, Any]
    expected: str | None
    why: str


METHOD = dino.Config(
    out_dim=256, hidden_dim=256, bottleneck_dim=64, teacher_temp=0.04, momentum=0.95, momentum_end=0.99
)
"""DINO of the paper, for a small network."""
SETTINGS = {
    "both": Setting({}, "healthy", "centering and sharpening balance each other"),
    "centering only": Setting({"sharpening": False}, "uniform", "centering alone pulls to the uniform distribution"),
    "sharpening only": Setting({"centering": "none"}, "one-hot", "sharpening alone lets one prototype win everywhere"),
    "neither": Setting({"sharpening": False, "centering": "none"}, "constant", "any constant output is optimal"),
    "center momentum 0.99": Setting(
        {"center_momentum": 0.99}, None, "the center remembers 100 steps, nearly half of this run; fine in the paper's"
    ),
    "center momentum 0.999": Setting(
        {"center_momentum": 0.999}, None, "the center remembers 1,000 steps, too long for a run of 240"
    ),
    "teacher temp 0.07": Setting(
        {"teacher_temp": 0.07, "teacher_temp_start": 0.07}, None, "without warm-up the paper warns of it"
    ),
    "no EMA": Setting(
        {"momentum": 0.0, "momentum_end": 0.0},
        None,
        "teacher and student agree on a constant output that changes every few steps",
    ),
}
BYOL = {
    "BYOL": Setting({}, "healthy", "the predictor makes student and teacher different"),
    "BYOL without predictor": Setting({"predictor": False}, "dead", "a constant projection costs nothing"),
}


@dataclass(frozen=True)
class Config(Checked):
    """Size of the experiment."""

    out: str = "runs/lab-collapse"
    """Folder of the experiment; finished runs in it are not run again."""
    seeds: Repeats = 5
    steps: Count = 240
    jobs: Workers = 2
    """Number of runs at a time."""
    only: tuple[str, ...] = field(default=())
    """Settings to run, by name; empty for all. A wrong name lists them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.only:
            if name not in SETTINGS | BYOL:
                raise unknown("setting", name, SETTINGS | BYOL)


def trials(config: Config) -> list[TrialRun]:
    """The runs: the demo's, with the paper's method."""
    base = replace(
        demo.config(), steps=config.steps, method=METHOD, eval_every="100%", eval_images=1000,
        checkpoint_every="100%", keep_checkpoints=1, workers=0, report=False,
    )  # fmt: skip
    small = byol.Config(hidden_dim=512, projection_dim=64)

    def parts(name: str) -> dict[str, Any]:
        if name in BYOL:
            return {"method": replace(small, **BYOL[name].changes), "views": {}}
        views = changed(base.views, {"local.number": 2})
        return {"method": replace(METHOD, **SETTINGS[name].changes), "views": views}

    names = config.only or tuple(SETTINGS | BYOL)
    return [TrialRun(name, replace(base, **parts(name), seed=seed)) for name in names for seed in range(config.seeds)]


def conduct(config: Config) -> Report:
    """Run and diagnose all settings; writes table.md, result.json and curves.svg to the folder."""
    folder, planned = Path(config.out), trials(config)
    found = [
        _outcome(trial.setting, trial.config, rows)
        for trial, rows in zip(planned, run(planned, folder, config.jobs), strict=True)
    ]
    settings = list(dict.fromkeys(trial.setting for trial in planned))
    sick, well = ([each for each in found if (each["truth"] != "healthy") == ill] for ill in (True, False))
    detection = {
        "collapsed": len(sick),
        "named_rightly_in_first_third": sum(
            each["first_named"] is not None
            and each["first_named"] <= config.steps / 3
            and each["truth"] in (each["outcome"], "collapsed")
            for each in sick
        ),
        "healthy": len(well),
        "silent": sum(not each["named"] for each in well),
    }
    text = _table(settings, found, detection)
    fields = {"detection": detection, "runs": [{k: v for k, v in each.items() if k != "curves"} for each in found]}
    atomic_write.write(folder / "table.md", text + "\n")
    atomic_write.write(folder / "result.json", json.dumps(fields, indent=1) + "\n")
    _figure(settings, found, folder / "curves.svg")
    return Report(f"{text}\n\nFigure: {folder / 'curves.svg'}", fields | {"folder": str(folder)})


def _outcome(setting: str, config: RunConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Final scores of a run, and when which collapse was detected."""
    assert config.steps is not None
    monitor, steps = Monitor(config.steps), [row for row in rows if "loss" in row]
    named = [(row["step"], collapse.name) for row in steps if (collapse := monitor.watch(row))]
    # The most frequent one: an unstable run may leave a collapse and return to it.
    outcome = Counter(name for _, name in named).most_common(1)[0][0] if named else "healthy"
    knn = [row["knn"] for row in rows if "knn" in row][-1]
    by_knn = "healthy" if knn["teacher"] > knn["untrained"] + 3 else "collapsed"
    return {
        "setting": setting,
        "seed": config.seed,
        "truth": (SETTINGS | BYOL)[setting].expected or by_knn,
        "outcome": outcome,
        "named": sorted({name for _, name in named}),
        "first_named": next((step for step, name in named if name == outcome), None),
        "knn": knn["teacher"],
        "untrained": knn["untrained"],
        "balanced_accuracy": (rows[-1].get("balanced_accuracy") or {}).get("teacher"),
        "baseline_text": baseline_text(rows[-1]),
        "effective_rank": rows[-1]["effective_rank"],
        "curves": {
            name: ([row["step"] for row in steps], [row[name] for row in steps])
            for name in ("teacher_entropy", "kl", "projection_spread", "feature_spread")
            if name in steps[-1]
        },
    }


def _table(settings: list[str], found: list[dict[str, Any]], detection: dict[str, int]) -> str:
    lines = [
        "| setting | expected | named | from step, median (latest) | k-NN of the teacher | rank | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in settings:
        runs = [each for each in found if each["setting"] == setting]
        names = ", ".join(f"{name} {n}×" for name, n in Counter(each["outcome"] for each in runs).most_common())
        balanced = [each["balanced_accuracy"] for each in runs if each["balanced_accuracy"] is not None]
        even = f", balanced {mean(balanced):.1f} %" if balanced else ""
        first = [each["first_named"] for each in runs if each["first_named"]]
        when = f"{median(first):.0f} ({max(first)})" if first else "-"
        knn = [each["knn"] for each in runs]
        spread = f" ± {stdev(knn):.1f}" if len(knn) > 1 else ""
        rank = mean(each["effective_rank"] for each in runs)
        about = (SETTINGS | BYOL)[setting]
        cells = (
            setting,
            about.expected or "depends",
            names,
            when,
            f"{mean(knn):.1f}{spread} %{even}",
            f"{rank:.1f}",
            about.why,
        )
        lines.append(f"| {' | '.join(cells)} |")
    untrained = mean(each["untrained"] for each in found)
    d = detection
    return "\n".join(
        [
            *lines,
            "",
            f"Untrained network: k-NN {untrained:.1f} %. Collapsed runs correctly diagnosed within their first third: "
            f"{d['named_rightly_in_first_third']} of {d['collapsed']}. Healthy runs without "
            f"any collapse warning: {d['silent']} of {d['healthy']}.",
            *([f"k-NN of each run: {found[0]['baseline_text']}."] if found[0]["baseline_text"] else []),
        ]
    )


def _figure(settings: list[str], found: list[dict[str, Any]], path: Path) -> None:
    """One line per setting: the mean over its seeds and their range."""
    charts = []
    for title, label, metric in (
        ("Entropy of the teacher's output", "nats", "teacher_entropy"),
        ("KL(teacher ‖ student)", "nats", "kl"),
        ("Spread of the teacher's projections", "0 is a collapse", "projection_spread"),
    ):
        lines = {}
        for number, setting in enumerate(settings):
            runs = [each["curves"][metric] for each in found if each["setting"] == setting and metric in each["curves"]]
            if runs:
                lines[setting] = repeated(runs, style.color(number))
        if lines:
            charts.append(Chart(Panel(title, {metric: ""}, label), lines))
    style.save(line_charts.figure(charts), path)
