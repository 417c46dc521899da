"""What training steps ask of a GPU, found on a machine without one.

Run from the root of the repository: python -m tests.cuda [--only WORD ...] [--out FILE] [--renew]. `--renew` writes the
launches of each step to tests/cuda/launches.json, the budget that test_cuda.py compares with.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.cuda import fake_device

BUDGET = Path(__file__).with_name("launches.json")


def main() -> None:
    """Run all steps and compile the parts; print and write what is found."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="WORD", help="steps with these words in their name")
    parser.add_argument("--out", type=Path, help="file for everything found, as JSON")
    parser.add_argument("--renew", action="store_true", help=f"write the budget of launches, {BUDGET.name}")
    args = parser.parse_args()
    fake_device.enable()
    from tests.cuda import steps

    found: dict[str, Any] = {"steps": {}, "launches": {}}
    jobs = {case.name: (lambda case=case: steps.step(case)) for case in steps.cases()}
    for name, run in (jobs | {steps.PAPER: steps.paper_step, "every augmentation, crops": steps.all_crops}).items():
        if not args.only or all(word in name.split() for word in args.only):
            began, watch = time.process_time(), run()
            found["launches"][name] = watch.launches.total()
            found["steps"][name] = {
                "copies": watch.copies, "faults": watch.faults, "most": watch.launches.most_common(12),
            }  # fmt: skip
            show(f"{name}: {watch.launches.total()} launches, faults {watch.faults}", began)
    if not args.only:
        from tests.cuda import kernels

        began = time.process_time()
        found |= {"mistakes": steps.mistakes(), **kernels.compiled()}
        found["launches"] |= {f"compiled {name}": number for name, number in found.pop("parts").items()}
        show(f"{len(found['kernels'])} kernels compiled, failed {found['failed']}", began)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.renew:
        before = json.loads(BUDGET.read_text()) if args.only else {}
        BUDGET.write_text(json.dumps(before | found["launches"], indent=1) + "\n")


def show(line: str, began: float) -> None:
    """Print a line with the seconds of processor time that it took."""
    print(f"{line}, {time.process_time() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
