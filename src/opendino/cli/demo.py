"""See it learn in five minutes, no data needed: opendino demo [--out RUN]"""

from __future__ import annotations

from pathlib import Path

from opendino.cli import Outcome


def run(args: list[str]) -> Outcome:
    """Train the recipe `demo`; takes every flag of `opendino train` too."""
    from opendino.cli.train import parse, start
    from opendino.recipes import demo

    result = start(parse(args, recipe="demo", data=demo.DATA))
    page = Path(result.run) / "report.html"
    text = "\n".join(
        [
            f"k-NN on images it has never seen, ten classes, after {result.seconds:.0f} s (chance: 10 %):",
            *_rows(result.knn or {}),
            *(["and the classifiers themselves:", *_rows(result.accuracy)] if result.accuracy else []),
            f"The run lies in {result.run}: config.yaml, metrics.jsonl, backbone.safetensors, checkpoints/",
            *([f"Look at it:           {page}, in any browser"] if page.is_file() else []),
            "Your own images next: opendino train ~/photos",
        ]
    )
    fields = {"run": result.run, "seconds": result.seconds, "knn": result.knn, "accuracy": result.accuracy}
    return Outcome(text, fields)


_NAMES = {
    "teacher": "the teacher",
    "student": "the student",
    "baseline": "the labelled images alone",
    "untrained": "the same network untrained",
    "pixels": "raw pixels",
}


def _rows(scores: dict[str, float]) -> list[str]:
    """A line a network; the first is the one to use."""
    best = next(iter(scores), "")
    return [f"  {_NAMES[n] + ' (the one to use)' * (n == best):<34}{value:5.1f} %" for n, value in scores.items()]
