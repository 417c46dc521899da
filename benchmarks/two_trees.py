"""The training step of DINO in two checkouts, in turns: what a change of the code costs.

Run: python benchmarks/two_trees.py BEFORE AFTER [--backbone vit_small/16] [--batch 8] [--turns 15] [--threads 1]
[--device cpu] [--precision bfloat16] [--decode FOLDER]. BEFORE and AFTER are folders with src/opendino, e.g. git
worktrees. Each has a process that waits while the other works. A step draws the parameters of the views, cuts them and
trains; with --decode it reads 256 images of a folder and decodes them to working size instead. The last line of stdout
is one JSON document: the medians in ms, and the median over turns of the ratio after / before with its quartiles.
--cpu-time counts the time of the processor, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Start a process for each tree and let them take turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--backbone", default="vit_small/16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--decode", default="", metavar="FOLDER", help="decode its images instead of training")
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    trees = [start(tree, options) for tree in (options.before, options.after)]
    turn(trees[0]), turn(trees[1])  # the first steps warm up
    seconds: list[list[float]] = []
    for number in range(options.turns):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        taken = {which: turn(trees[which]) for which in order}
        seconds.append([taken[0], taken[1]])
        print(f"turn {number + 1}: before {taken[0]:.3f} s, after {taken[1]:.3f} s", file=sys.stderr)
    for tree in trees:
        tree.stdin.close()
        tree.wait()
    before, after = (1000 * statistics.median(column) / options.steps for column in zip(*seconds, strict=True))
    low, ratio, high = statistics.quantiles([b / a for a, b in seconds], n=4)
    found = {"before_ms": before, "after_ms": after, "ratio": ratio, "quartiles": [low, high], "turns": options.turns}
    print(json.dumps({name: value for name, value in vars(options).items() if isinstance(value, int | str)} | found))


def start(tree: Path, options: argparse.Namespace) -> Any:
    """A process that makes steps with the code of a tree."""
    clock = "process_time" if options.cpu_time else "perf_counter"
    task = [options.backbone, str(options.batch), str(options.steps), str(options.threads), options.device, clock]
    task.append(options.precision)
    function = "work"
    if options.decode:
        task, function = [options.decode, str(options.steps), clock], "decode"
    environment = os.environ | {"PYTHONPATH": str(tree.absolute() / "src"), "OMP_NUM_THREADS": str(options.threads)}
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import two_trees; two_trees.%s(*sys.argv[1:])"
    command = [sys.executable, "-c", code % function, str(Path(__file__).parent), *task]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def turn(tree: Any) -> float:
    """Seconds of a tree's next steps."""
    tree.stdin.write("go\n")
    tree.stdin.flush()
    return float(tree.stdout.readline())


def work(backbone: str, batch: str, steps: str, threads: str, device: str, clock: str, precision: str) -> None:
    """Make some steps for each line of stdin, and print the seconds they took."""
    import torch

    from opendino import config as configs
    from opendino.core.types import Clock, Views
    from opendino.engine import optim
    from opendino.methods import dino
    from opendino.models import build
    from opendino.training import step
    from opendino.views.multi_crop import multi_crop
    from opendino.views.sampling import sample_views

    torch.manual_seed(0)
    torch.set_num_threads(int(threads))
    number, where, dtype = int(batch), torch.device(device), getattr(torch, precision)
    config = configs.Config(data="", backbone=backbone, method=dino.Config(freeze_last_layer="0"))
    spec, settings = configs.views(config), optim.ResolvedConfig()
    method = dino.build(config.method, lambda role: build.backbone(backbone)).train()
    method.to(where).to(memory_format=torch.channels_last)
    optimizer = optim.build(settings, method.student)
    canvas = torch.randint(0, 256, (number, 3, 256, 256), dtype=torch.uint8, device=where)
    done, now = 0, getattr(time, clock)
    for _ in sys.stdin:
        began = now()
        for _ in range(int(steps)):
            draws = sample_views(spec, 0, done, range(number), [(256, 256)] * number)
            crops = multi_crop(canvas, {name: each.to(where) for name, each in draws.items()}, spec)
            views = Views(crops, torch.full((number,), -1, device=where), torch.arange(number))
            tensors, _ = step(method, optimizer, settings, number, Clock(done, 1000, 100), [views], dtype)
            done += 1
        float(tensors["loss"])  # wait for the device
        print(now() - began, flush=True)


def decode(folder: str, steps: str, clock: str) -> None:
    """Decode some images a few times for each line of stdin, and print the seconds it took."""
    from opendino.data import decode as decoder

    files = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in decoder.SUFFIXES]
    images, now = [path.read_bytes() for path in files[:: max(1, len(files) // 256)][:256]], getattr(time, clock)
    for _ in sys.stdin:
        began = now()
        for _ in range(int(steps)):
            for image in images:
                decoder.decode(image, 256**2)
        print(now() - began, flush=True)


if __name__ == "__main__":
    main()
