"""How far can a measure without labels be trusted? Runs, healthy and not, ordered by each measure and by k-NN.

Run: OPENDINO_DATA=DIR python benchmarks/measures.py --out FILE.json. The runs are those of benchmarks/verdicts.py,
about a minute each on one core; runs that are in FILE.json are not run again. Compared are the start and the end of a
run, and the ends of two runs on the same images, where their k-NN accuracies differ by more than chance explains. The
table goes to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import verdicts
from record import keep, machine

import opendino
from opendino.core import accuracy, atomic_write, metrics_log
from opendino.core.errors import UserError
from opendino.engine.interrupt import Interrupted
from opendino.evals import label_free
from opendino.features import measure_trust

Measured = dict[str, Any]
"""A checkpoint: its measures, its k-NN accuracy in percent ("knn") and the number of queries."""
_OF_RUN = {"crop_match": 1.0, "loss": -1.0, "entropy_frac": -1.0}
"""Measures that a run logs, and their sign where more is better."""
MEASURES = (*label_free.MEASURES, *_OF_RUN)


def main() -> None:
    """Train what is missing, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="measures of the runs; continued if it exists")
    parser.add_argument("--runs", type=int, default=10_000, help="train at most this many")
    parser.add_argument("--keep", action="store_true", help="write the figures that `opendino eval label-free` quotes")
    parser.add_argument("--images", type=int, default=1000, help="of val, measured on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    document = json.loads(args.out.read_text()) if args.out.is_file() else {"machine": machine(), "runs": {}}
    missing = [run for run in verdicts.plan() if run.name not in document["runs"]]
    with tempfile.TemporaryDirectory() as home:
        for run in missing[: args.runs]:
            document["runs"][run.name] = _measured(run, Path(home), args.images)
            atomic_write.write(args.out, json.dumps(document) + "\n")
    found = table(document["runs"])
    print(text(found), file=sys.stderr)
    if args.keep:
        shares = {name: {kind: {key: each[key] for key in ("pairs", "right")} for kind, each in kinds.items()}
                  for name, kinds in found.items()}  # fmt: skip
        sets = len({name.partition(",")[0] for name in document["runs"]})
        kept = {"machine": document["machine"], "date": time.strftime("%Y-%m-%d"), "runs": len(document["runs"]),
                "sets": sets, "right": shares}  # fmt: skip
        measure_trust.FOUND.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    keep({"what": "share of pairs that a label-free measure orders as k-NN does", "machine": document["machine"],
          "date": time.strftime("%Y-%m-%d"), "runs": len(document["runs"]), "right": found}, None)  # fmt: skip


def table(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Measure → for "start and end" and "two runs": number of pairs, percent ordered as by k-NN, pairs most wrong."""
    pairs = {"start and end": list(_start_and_end(runs)), "two runs": list(_two_runs(runs))}
    return {
        measure: {kind: _agreement(measure, [pair for pair in each if _decided(pair)]) for kind, each in pairs.items()}
        for measure in MEASURES
    }


def text(found: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = ["| measure | start and end of a run | two runs on the same images | most wrong |", "|---|---|---|---|"]
    for measure, kinds in found.items():
        shown = [f"{each['right']:.0f} % of {each['pairs']}" if each["pairs"] else "-" for each in kinds.values()]
        wrong = "; ".join(kinds["start and end"]["wrong"][:2])
        lines.append(f"| {measure} | {' | '.join(shown)} | {wrong} |")
    return "\n".join(lines)


def _measured(run: verdicts.Run, home: Path, images: int) -> list[Measured]:
    """The start and the end of a run; fewer if it stopped with an error."""
    config = replace(verdicts.config_of(run, home), keep_checkpoints=9)
    out = Path(tempfile.mkdtemp(dir=home)) / "run"
    try:
        opendino.train(replace(config, out=str(out)))
    except Interrupted:
        raise
    except UserError:  # too many skipped steps
        return []
    rows = metrics_log.rows(out / "metrics.jsonl")
    wanted = label_free.Config(str(out), data=config.val, all_checkpoints=True, images=images, workers=1, device="cpu")
    measures = {row["step"]: row for row in label_free.evaluate(wanted).fields["checkpoints"]}
    evaluated = [row for row in rows if "knn" in row and row["step"] in measures]
    logged = [row for row in rows if "loss" in row]
    found = []
    for row in (evaluated[0], evaluated[-1]):
        steps = logged[:5] if row["step"] == 0 else logged[-5:]
        of_steps = [name for name in ("loss", "entropy_frac") if name in steps[0]]
        found.append({
            **{name: measures[row["step"]][name] for name in label_free.MEASURES},
            **{name: sum(each[name] for each in steps) / len(steps) for name in of_steps},
            "crop_match": row["crop_match"]["teacher"], "knn": row["knn"]["teacher"],
            "num_queries": row["num_queries"], "step": row["step"],
        })  # fmt: skip
    return found


def _start_and_end(runs: dict[str, list[Measured]]) -> Iterator[tuple[str, Measured, Measured]]:
    for name, states in runs.items():
        if len(states) == 2:
            yield name, states[0], states[1]


def _two_runs(runs: dict[str, list[Measured]]) -> Iterator[tuple[str, Measured, Measured]]:
    ended = {name: states[1] for name, states in runs.items() if len(states) == 2}
    for (name, one), (other, two) in itertools.combinations(ended.items(), 2):
        # Losses and entropies of two methods, or of two networks, are not on one scale.
        same = name.partition(",")[0] == other.partition(",")[0] and ("BYOL" in name) == ("BYOL" in other)
        if same and ("ViT" in name) == ("ViT" in other):
            yield f"{name} / {other}", one, two


def _decided(pair: tuple[str, Measured, Measured]) -> bool:
    """Whether the k-NN accuracies differ by more than chance explains."""
    _, one, two = pair
    return abs(two["knn"] - one["knn"]) > accuracy.chance_of_difference(one["knn"], two["knn"], one["num_queries"])


def _agreement(measure: str, pairs: list[tuple[str, Measured, Measured]]) -> dict[str, Any]:
    rights, wrong = [], []
    for name, one, two in pairs:
        merits = [_merit(measure, each.get(measure)) for each in (one, two)]
        if None in merits:
            continue
        gain, better = two["knn"] - one["knn"], merits[1] - merits[0]  # pyright: ignore[reportOperatorIssue]
        rights.append(0.5 if better == 0 else float(better * gain > 0))
        if rights[-1] < 0.5:
            wrong.append((abs(gain), f"{name} ({gain:+.1f} points)"))
    share = 100 * sum(rights) / len(rights) if rights else math.nan
    return {"pairs": len(rights), "right": share, "wrong": [name for _, name in sorted(wrong, reverse=True)[:5]]}


def _merit(measure: str, value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return _OF_RUN[measure] * value if measure in _OF_RUN else label_free.merit(measure, value)


if __name__ == "__main__":
    main()
