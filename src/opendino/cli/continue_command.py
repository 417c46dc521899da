"""Train on from a finished run, on new images or a folder that has grown: opendino continue RUN [DATA] [--out NEW]"""

from __future__ import annotations

from opendino.cli import Outcome
from opendino.core.errors import UsageError

USAGE = "usage: opendino continue RUN [DATA] [--out NEW] [options of opendino train] [--json]"


def run(args: list[str]) -> Outcome | None:
    """Train on from a run, and compare the two."""
    if {"-h", "--help"} & set(args):
        print(
            f"{USAGE}\n\nA new run starts from the networks of RUN (teacher, student and heads) and trains on DATA; "
            "RUN is not changed. DATA may be other images, or the folder of RUN after images were added (default). The "
            "settings are those of RUN, with a fifth of its steps at a fifth of its learning rate.\nA fifth of the "
            "images (--hold-out) is kept out of training. At the end both models are compared on them, old images and "
            "new ones: with --labels folders or a CSV by k-NN accuracy, else by whether parts of an image find each "
            "other.\nTo start from the backbone alone: opendino train DATA --init RUN. All options: opendino train "
            "--help-all"
        )
        return None
    if not args or args[0].startswith("-"):
        raise UsageError(f"continue takes a run folder first, not {args[0] if args else 'nothing'}", USAGE)
    from opendino import existing_runs
    from opendino.cli.train_command import parse_from, report, start

    config = parse_from(existing_runs.continued(args[0]), args[1:], "opendino continue RUN", "Train on from a run.")
    return report(start(config))
