"""See it learn in five minutes, no data needed: opendino demo [--out RUN]"""

from __future__ import annotations

from pathlib import Path

from opendino.cli import Outcome
from opendino.core.accuracy import shown, yardstick


def run(args: list[str]) -> Outcome:
    """Train the recipe `demo`; takes every flag of `opendino train` too."""
    from opendino.cli.train_command import parse, start
    from opendino.recipes import demo

    result = start(parse(args, recipe="demo", data=demo.DATA))
    page, found = Path(result.run) / "report.html", dict(result.__dict__)
    text = "\n".join(
        [
            f"k-NN on images it has never seen, ten classes, after {result.seconds:.0f} s (chance: 10 %):",
            *_rows(shown(found)),
            *(["and the classifiers themselves:", *_rows(shown(found, "accuracy"))] if result.accuracy else []),
            yardstick(found),
            f"{result.verdict}: {result.evidence}",
            f"The run lies in {result.run}: config.yaml, metrics.jsonl, backbone.safetensors, checkpoints/",
            *([f"Look at it:           {page}, in any browser"] if page.is_file() else []),
            "Your own images next: opendino train ~/photos",
        ]
    )
    return Outcome(text, {name: found[name] for name in _FIELDS})


_FIELDS = (
    "run", "seconds", "knn", "accuracy", "balanced_accuracy", "standard_error", "accuracy_balanced", "majority",
    "num_queries", "verdict", "evidence",
)  # fmt: skip
_NAMES = {
    "teacher": "the teacher",
    "student": "the student",
    "baseline": "the labeled images alone",
    "untrained": "the same network untrained",
    "pixels": "raw pixels",
}


def _rows(scores: dict[str, str]) -> list[str]:
    """A line a network; the first is the one to use."""
    best = next(iter(scores), "")
    return [f"  {_NAMES[n] + ' (the one to use)' * (n == best):<34} {told}" for n, told in scores.items()]
