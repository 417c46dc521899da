"""Faults injected into real training processes: kills, full disks, dying loaders, jumping clocks.

Run from the root of the repository: python -m tests.faults [--kills 200] [--times 10] [--only NAME ...] [--method NAME]
[--out FILE].
Linux; faults that need root (small disks, read-only mounts) are left out without it. Progress goes to stderr, the
table to docs/reliability.md between its two marks; the last line of stdout is one JSON document. Exit code 1 if a run
was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.record import keep, machine
from tests.faults import disks, inputs, kills, runs
from tests.faults.runs import Row, TrackedRun, UndisturbedRuns

from opendino.data.readers import photograph

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
FAULTS: dict[str, Callable[[Path, dict[str, TrackedRun], int], Iterator[Row]]] = {
    "killed": kills.killed,
    "killed-pair": kills.killed_pair,
    "killed-torchrun": kills.killed_torchrun,
    "loaders": kills.loaders_killed,
    "stop": kills.signaled,
    "disk": disks.disk_full,
    "cache": disks.cache_full,
    "cut": inputs.cut,
    "clocks": inputs.clocks,
    "two": inputs.two_at_once,
    "read-only": disks.read_only,
    "files": inputs.files_change,
    "nan": inputs.not_finite,
    "decoders": inputs.decoders,
}
"""Name → fault. Each takes the working folder, the undisturbed runs and the number of tries."""
NEED_ROOT = {"disk", "cache", "read-only"}


def write_page(found: list[Row], command: str, where: str) -> None:
    """Write the table of docs/reliability.md with the results so far."""
    lines = [f"`{command}` on {where}:", "", "| fault | tried | survived | outcome |", "|---|---|---|---|"]
    lines += [f"| {row.fault} | {row.tried:,} | {row.survived:,} | {row.outcome} |" for row in found]
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")
    end, after = rest.partition("<!-- end -->")[1:]
    PAGE.write_text("\n".join([before + mark + lines[0], *lines[1:], end + after]), encoding="utf-8")


def main() -> int:
    """Inject all faults, write the page, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="of a single process (default 200)")
    parser.add_argument("--pair-kills", type=int, help="of two processes (default as --kills)")
    parser.add_argument("--times", type=int, default=10, help="how often every other fault (default 10)")
    parser.add_argument("--steps", type=int, default=40, help="length of each run (default 40)")
    parser.add_argument("--method", default="dino", help="of each run (default dino); with --only, for example killed")
    parser.add_argument("--only", nargs="*", choices=[*FAULTS], help="these faults alone; the page is left as it is")
    parser.add_argument(
        "--no-report", action="store_true", help="runs write no report.html, which takes half their time"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()
    random.seed(0)
    runs.STEPS, runs.METHOD, runs.REPORT = args.steps, args.method, not args.no_report
    if (args.method != "dino" or args.no_report) and not args.only:
        parser.error("--method and --no-report need --only: the page is about dino, with reports")
    torch.set_num_threads(1)
    photograph._formats()  # imports a dozen modules, once and not in every process
    began, found = time.monotonic(), []
    where = f"{machine()}, {time.strftime('%Y-%m-%d')}"
    pairs = f" --pair-kills {args.pair_kills}" if args.pair_kills else ""
    steps = f" --steps {args.steps}" if args.steps != 40 else ""
    command = f"python -m tests.faults --kills {args.kills}{pairs} --times {args.times}{steps}"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        reference = UndisturbedRuns(home)
        for name in args.only or FAULTS:
            if name in NEED_ROOT and os.geteuid() != 0:
                print(f"{name}: needs root, left out", file=sys.stderr)
                continue
            times = {"killed": args.kills, "killed-pair": args.pair_kills or args.kills}
            for row in FAULTS[name](home, reference, times.get(name, args.times)):
                found.append(row)
                print(f"{row.fault}: {row.survived} of {row.tried}", file=sys.stderr)
                if not args.only:
                    write_page(found, command, where)
    document = {
        "what": "faults done to real processes, and how many were survived",
        "machine": where,
        "seconds": time.monotonic() - began,
        "tried": sum(row.tried for row in found),
        "survived": sum(row.survived for row in found),
        "faults": [vars(row) for row in found],
    }
    keep(document, args.out)
    return int(document["tried"] != document["survived"])


if __name__ == "__main__":
    sys.exit(main())
