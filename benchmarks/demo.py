"""The demo over several seeds: is DINO better than raw pixels and the untrained network, and by how much?

Run with `make bench`, or: python benchmarks/demo.py [--seeds 3] [--out FILE.json]. About a minute per seed on two
CPU cores. A table goes to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from record import keep, machine

import opendino
from opendino.recipes import demo

NETWORKS = ("teacher", "student", "untrained", "pixels")


def main() -> None:
    """Train, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of runs (default 3)")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()

    runs = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as home:
            result = opendino.train(replace(demo.config(), seed=seed, out=f"{home}/run"))
        assert result.knn is not None
        runs.append({"seed": seed, "seconds": result.seconds, "collapse": result.collapse, **result.knn})
        print(
            f"seed {seed}: {result.seconds:.0f} s, " + ", ".join(f"{n} {result.knn[n]:.1f}" for n in NETWORKS),
            file=sys.stderr,
        )

    document = {
        "what": "k-NN top-1 in percent on held-out toy textures, recipe demo",
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "mean": {name: mean(run[name] for run in runs) for name in NETWORKS},
        "stdev": {name: stdev(run[name] for run in runs) if len(runs) > 1 else None for name in NETWORKS},
        "above_pixels": mean(run["teacher"] - run["pixels"] for run in runs),
        "above_untrained": mean(run["teacher"] - run["untrained"] for run in runs),
        "runs": runs,
    }
    keep(document, args.out)


if __name__ == "__main__":
    main()
