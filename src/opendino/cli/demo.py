"""See it learn in five minutes, no data needed: opendino demo [--out RUN]"""

from __future__ import annotations

from opendino.cli import Outcome


def run(args: list[str]) -> Outcome:
    """Train the recipe `demo`; takes every flag of `opendino train` too."""
    from opendino.cli.train import parse
    from opendino.recipes import demo
    from opendino.train import train

    config = parse(args, recipe="demo", data=demo.DATA)
    result = train(config)
    knn = result.knn or {}
    text = "\n".join(
        [
            f"k-NN on images it has never seen, ten classes, after {result.seconds:.0f} s (chance: 10 %):",
            *(f"  {label:<34}{knn[key]:5.1f} %" for key, label in _ROWS.items() if key in knn),
            f"The run lies in {result.run}: config.yaml, metrics.jsonl, backbone.safetensors, checkpoints/",
            f"Its curves:           tensorboard --logdir {result.run}",
            "Your own images next: opendino train ~/photos",
        ]
    )
    return Outcome(text, {"run": result.run, "seconds": result.seconds, "knn": result.knn})


_ROWS = {
    "teacher": "DINO, the teacher (the one to use)",
    "student": "DINO, the student",
    "untrained": "the same network untrained",
    "pixels": "raw pixels",
}
