"""Fine-tune a model: opendino finetune MODEL DATA [--labels FILE.csv or masks] [--val DIR] [--out RUN]"""

from __future__ import annotations

from dataclasses import replace

from opendino.cli import Outcome
from opendino.core.errors import UsageError

USAGE = "usage: opendino finetune MODEL DATA [--labels FILE.csv] [--val DIR] [--out RUN] [options of opendino train]"


def run(args: list[str]) -> Outcome | None:
    """Train a model on labels, and compare it with a classifier of its frozen features."""
    if {"-h", "--help"} & set(args):
        print(
            f"{USAGE} [--json]\n\nA new run starts from the network of MODEL and trains it as a classifier of the "
            "labeled images of DATA: first the classifier alone, then all of the network, the lower layers at lower "
            "rates. Labels are the sub-folders of DATA, or --labels FILE.csv of path,class; images without one are not "
            "used. With --labels masks it is trained for segmentation: DATA has images/ and masks/, as for `opendino "
            "eval segmentation`.\nA fifth of the labeled images (--hold-out) is kept out of training, or none if --val "
            "names others. At the end the network is compared on them with a linear classifier, or segmentation head, "
            "of the frozen features. `opendino predict RUN DATA` takes the better one.\nUp to 500 steps are enough for "
            "20,000 labels; with more: --steps 10000. If it overfits: fewer --steps, a lower --optim.lr. A large "
            "network: --method.lora-rank 8 trains adapters alone. All options: opendino train --help-all"
        )
        return None
    if not args or args[0].startswith("-"):
        raise UsageError(f"finetune takes a model first, not {args[0] if args else 'nothing'}", USAGE)
    from opendino import finetuning
    from opendino.cli.train_command import parse_from, report, start

    base = finetuning.settings(args[0])
    if any(arg.partition("=")[0] == "--val" for arg in args):
        base = replace(base, hold_out=0.0)
    config = parse_from(base, args[1:], "opendino finetune MODEL", "Fine-tune a model as a classifier.")
    if not config.data:
        raise UsageError("No images were named", "Give labeled images: opendino finetune MODEL ~/photos")
    return report(start(config))
