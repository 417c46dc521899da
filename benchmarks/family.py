"""BYOL, mean teacher and distillation on toy images: does each beat its baseline?

BYOL against raw pixels; mean teacher with 10 % of the labels against the same network on those labels alone; a small
student distilled from DINO's teacher against that teacher, and against the same student trained by DINO for as many
steps.

Run: python benchmarks/family.py [--seeds 3] [--out FILE.json]. About ten minutes per seed on one CPU core. A table
goes to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import keep, machine

import opendino
from opendino.engine.run_result import Result
from opendino.experiments.collapse import METHOD
from opendino.methods import byol, distill, mean_teacher
from opendino.recipes import demo
from opendino.views.settings import changed

METHODS = ["byol", "mean_teacher", "distill"]


def main() -> None:
    """Train, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of runs of each (default 3)")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, help="methods (default all)")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()

    seeds = [one(seed, args.only) for seed in range(args.seeds)]
    names = [name for name in seeds[0] if name != "seed"]
    document = {
        "what": "toy textures, in percent: k-NN top-1 (BYOL, distillation), accuracy of the classifier (mean teacher)",
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "mean": {name: mean(each[name] for each in seeds) for name in names},
        "stdev": {name: stdev(each[name] for each in seeds) if len(seeds) > 1 else None for name in names},
        "seeds": seeds,
    }
    keep(document, args.out)


def one(seed: int, only: list[str]) -> dict[str, Any]:
    """Run every requested method once."""
    base = replace(
        demo.config(), steps=400, seed=seed, method=METHOD, eval_every="50%", eval_images=2000,
        checkpoint_every="100%", workers=0,
    )  # fmt: skip
    found: dict[str, Any] = {"seed": seed}
    with tempfile.TemporaryDirectory() as home:

        def run(name: str, **changes: Any) -> Result:
            result = opendino.train(replace(base, out=f"{home}/{name}", **changes))
            print(f"seed {seed}, {name}: {result.seconds:.0f} s, {result.knn}, {result.accuracy}", file=sys.stderr)
            return result

        if "byol" in only:
            knn = run("byol", method=byol.Config(hidden_dim=512, projection_dim=64), views={}).knn or {}
            found |= {f"byol_{name}": value for name, value in knn.items()}
        if "mean_teacher" in only:
            told = run(
                "mean_teacher", data="toy:textures?n=2000&size=16", val="toy:textures?n=1000&size=16&split=val",
                labels="10%", steps=1000, method=mean_teacher.Config(),
                views=changed(mean_teacher.VIEWS, {"global.size": 16}),
            )  # fmt: skip
            found |= {f"mean_teacher_{name}": value for name, value in (told.accuracy or {}).items()}
        if "distill" in only:
            run("big")
            small: dict[str, Any] = {"backbone_options": {"width": 8}}
            distilled = run("distilled", method=distill.Config(teacher=f"{home}/big"), views={}, **small)
            alone = run("alone", **small)
            found |= {f"distill_{name}": value for name, value in (distilled.knn or {}).items()}
            found |= {"alone_teacher": (alone.knn or {})["teacher"]}
            found |= {"distill_seconds": distilled.seconds, "alone_seconds": alone.seconds}
    return found


if __name__ == "__main__":
    main()
