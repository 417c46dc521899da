"""Do label-free measures rank checkpoints as k-NN does? The demo's recipe, smaller, at several lengths.

Run: python benchmarks/label_free.py [--steps 100 200 400] [--out FILE.json]. About six minutes on one core. Every
kept checkpoint of each run is measured; its k-NN on held-out images is that of the run's online evaluation. A table
goes to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import keep, machine

import opendino
from opendino.evals.label_free import MEASURES, Config, evaluate, merit, spearman
from opendino.experiments.collapse import METHOD
from opendino.recipes import demo


def main() -> None:
    """Train, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 200, 400], help="lengths of the runs")
    parser.add_argument("--checkpoints", type=int, default=10, help="kept per run, without the untrained network")
    parser.add_argument("--width", type=int, default=16, help="of the network, conv4")
    parser.add_argument("--images", type=int, default=1000, help="measured on")
    parser.add_argument("--views", type=int, default=4, help="of each")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()
    runs = [_run(steps, args) for steps in args.steps]
    document = {
        "what": "Spearman's rank correlation of label-free measures (turned so that more is better) with k-NN top-1",
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "width": args.width,
        "images": args.images,
        "within_runs": [{"steps": run["steps"], **run["spearman"]} for run in runs],
        "within_runs_without_the_untrained": [{"steps": run["steps"], **_trained(run)} for run in runs],
        "last_checkpoints": [
            max(run["checkpoints"], key=lambda row: row["step"]) | {"of": run["steps"]} for run in runs
        ],
        "runs": runs,
    }
    for title in ("within_runs", "within_runs_without_the_untrained"):
        print(title.replace("_", " "), file=sys.stderr)
        for row in document[title]:
            told = "  ".join(f"{name} {'-' if row[name] is None else format(row[name], '.2f')}" for name in MEASURES)
            print(f"  {row['steps']:>5} steps  {told}", file=sys.stderr)
    keep(document, args.out)


def _run(steps: int, args: argparse.Namespace) -> dict[str, Any]:
    every = str(max(1, steps // args.checkpoints))
    with tempfile.TemporaryDirectory() as home:
        config = replace(
            demo.config(), method=METHOD, backbone_options={"width": args.width}, steps=steps, out=f"{home}/run",
            workers=0, checkpoint_every=every, eval_every=every, keep_checkpoints=10_000, eval_images=1500,
        )  # fmt: skip
        began = time.monotonic()
        result = opendino.train(config)
        trained = time.monotonic()
        settings = Config(
            result.run, all_checkpoints=True, images=args.images, views=args.views, workers=1, device="cpu"
        )
        fields = evaluate(settings).fields
        seconds = {"train": trained - began, "measure": time.monotonic() - trained}
    return {"steps": steps, "seconds": seconds, "knn": result.knn, **fields}


def _trained(run: dict[str, Any]) -> dict[str, float | None]:
    """The correlations without the untrained network, which differs in every measure and is easy to tell apart."""
    rows = [row for row in run["checkpoints"] if row["step"]]
    return {name: spearman([merit(name, row[name]) for row in rows], [row["knn"] for row in rows]) for name in MEASURES}


if __name__ == "__main__":
    main()
