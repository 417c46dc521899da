"""Train a small model on generated images, about a minute: opendino demo [--out RUN]"""

from __future__ import annotations

from pathlib import Path

from opendino.cli import Outcome
from opendino.core.accuracy import baseline_text, format_accuracies


def run(args: list[str]) -> Outcome | None:
    """Train the recipe `demo`; takes every flag of `opendino train`."""
    from opendino.cli.train_command import brief_help, parse, start
    from opendino.recipes import demo

    if {"-h", "--help"} & set(args):
        summary = "Train a small model on generated images (recipe demo). Takes all options of `opendino train`."
        print(brief_help(args, "opendino demo [DATA] [OPTIONS]", summary, recipe="demo"))
        return None

    result = start(parse(args, recipe="demo", data=demo.DATA))
    page, found = Path(result.run) / "report.html", dict(result.__dict__)
    text = "\n".join(
        [
            f"k-NN accuracy on held-out images of ten classes, after {result.seconds:.0f} s (chance: 10 %):",
            *_rows(format_accuracies(found)),
            *(["accuracy of the trained classifiers:"] if result.accuracy else []),
            *_rows(format_accuracies(found, "accuracy")),
            baseline_text(found),
            f"{result.verdict}: {result.evidence}",
            *([f"cure: {result.cure}"] if result.cure else []),
            f"Run folder: {result.run}: config.yaml, metrics.jsonl, backbone.safetensors, checkpoints/",
            *([f"Report: {page} (open it in a browser)"] if page.is_file() else []),
            "Next, train on your own images: opendino train ~/photos",
        ]
    )
    return Outcome(text, {name: found[name] for name in _FIELDS})


_FIELDS = (
    "run", "seconds", "knn", "accuracy", "balanced_accuracy", "standard_error", "accuracy_balanced", "majority",
    "num_queries", "verdict", "evidence", "cure",
)  # fmt: skip
_NAMES = {
    "teacher": "teacher",
    "student": "student",
    "baseline": "trained on labeled images only",
    "untrained": "untrained network",
    "pixels": "raw pixels",
}


def _rows(scores: dict[str, str]) -> list[str]:
    """One line per network, the recommended one first."""
    best = next(iter(scores), "")
    return [f"  {_NAMES[n] + ' (recommended)' * (n == best):<34} {text}" for n, text in scores.items()]
