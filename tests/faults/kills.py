"""Kills and signals at random moments: runs, ranks, loader processes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.runs import Row, TrackedRun, differs

ROOT = Path(__file__).parents[2]


def killed(home: Path, reference: dict[str, TrackedRun], kills: int) -> Iterator[Row]:
    """Of a single process, at random moments."""
    row = Row("kill −9 of a run, at random moments", "resumed until done: tensors bit-equal, every step and image once")
    kinds = {
        "alone": ("toy", {}),
        "workers": ("toy", {"workers": 2, "cache": "disk"}),
        "photos": ("photos", {"workers": 1, "cache": "ram", "data": reference["photos"].data}),
    }
    runs, length = 0, reference["toy"].seconds
    while row.tried < kills:
        kind, (like, changes) = list(kinds.items())[runs % len(kinds)]
        tracked, deaths, began = TrackedRun(home, f"killed-{kind}-{runs}", **changes), 0, time.monotonic()
        while True:
            process = tracked.start()
            moment = random.uniform(0.0, 1.2 * length)
            if process.wait(moment) is None and row.tried + deaths < kills and deaths < 12:
                process.kill()
                process.wait()
                deaths += process.code == -signal.SIGKILL
            elif process.wait() is not None:
                break
        if not deaths:  # the machine is faster now than before
            length = time.monotonic() - began
        problem = differs(tracked, reference[like], orphans=True)
        row.count_kills(deaths, problem)
        runs += 1
        print(f"  {kind} run {runs}: {deaths} kills, {problem or 'equal'} ({row.tried})", file=sys.stderr)
        shutil.rmtree(tracked.run, ignore_errors=True)
    row.outcome += f" ({runs} runs)"
    yield row


def killed_pair(home: Path, reference: dict[str, TrackedRun], kills: int) -> Iterator[Row]:
    """Kill one of two processes that train together, or both; as with torchrun, all are restarted."""
    row = Row(
        "kill −9 of one of two ranks (or both), at random moments",
        "all restarted until done: tensors bit-equal to two undisturbed ranks, every step and image once",
    )
    runs, length = 0, reference["pair"].seconds
    while row.tried < kills:
        tracked, deaths, began = TrackedRun(home, f"pair-{runs}"), 0, time.monotonic()
        while True:
            ranks = tracked.pair()
            last = time.monotonic() + random.uniform(0.0, 1.2 * length)
            while time.monotonic() < last and any(each.poll() is None for each in ranks):
                time.sleep(0.01)
            if any(each.poll() is None for each in ranks) and row.tried + deaths < kills and deaths < 12:
                for victim in random.choice(([ranks[0]], [ranks[1]], ranks)):
                    victim.kill()
                time.sleep(0.3)
                deaths += any(each.poll() == -signal.SIGKILL for each in ranks)
                for each in ranks:  # torchrun ends the remaining one
                    each.kill()
                    each.wait()
                continue
            codes = [each.wait() for each in ranks]
            for each in ranks:  # hung, if it is still running
                each.kill()
            if -signal.SIGKILL not in codes:
                break
        if not deaths:
            length = time.monotonic() - began
        problem = differs(tracked, reference["pair"], ranks=2)
        row.count_kills(deaths, problem)
        runs += 1
        print(f"  pair run {runs}: {deaths} kills, {problem or 'equal'} ({row.tried})", file=sys.stderr)
        shutil.rmtree(tracked.run, ignore_errors=True)
    row.outcome += f" ({runs} runs)"
    yield row


def killed_torchrun(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """Kill a rank under torchrun itself, which restarts both."""
    row = Row("kill −9 of a rank under torchrun --max-restarts", "torchrun restarts both; equal at the end")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/scale.md
    for number in range(times):
        tracked = TrackedRun(home, f"torchrun-{number}")
        tracked.run.mkdir()
        shutil.copy(reference["pair"].run / "config.yaml", tracked.run)  # settings and no checkpoint: resume starts it
        program = tracked.run.with_suffix(".py")
        program.write_text(
            f"import os, pathlib, sys\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            f"from tests.faults import runs\n"
            f"runs.record_images(pathlib.Path({str(tracked.seen)!r} + os.environ['RANK']))()\n"
            f"sys.exit(runs.main(['resume', {str(tracked.run)!r}]))\n"
        )
        with open(tracked.output, "w") as output:
            agent = subprocess.Popen([*torchrun, str(program)], stdout=output, stderr=output, env=environment)
        while agent.poll() is None and not (tracked.run / "latest").exists():
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 1.0))
        killed = False
        with contextlib.suppress(OSError):  # it ended sooner
            children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            ranks = [int(pid) for pid in children if program.name in Path(f"/proc/{pid}/cmdline").read_text()]
            if ranks:
                os.kill(random.choice(ranks), signal.SIGKILL)
                killed = True
        agent.wait()
        if killed:
            row.count(differs(tracked, reference["pair"], ranks=2))
    yield row


def loaders_killed(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """SIGKILL to loader processes while the run continues."""
    row = Row("kill −9 of a loader process", "the stream restarts where it was; equal at the end, the run never stops")
    while row.tried < times:
        tracked, deaths, written = TrackedRun(home, f"loaders-{row.tried}", workers=2), 0, 0
        metrics = tracked.run / "metrics.jsonl"
        process = tracked.start()
        while process.wait(random.uniform(0.1, 0.6)) is None:
            # Three deaths without a step between them end a run, so wait for a step.
            stepped = (tracked.run / "latest").exists() and metrics.stat().st_size > written
            if stepped and (children := process.children()) and deaths < 4:
                written = metrics.stat().st_size
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(children), signal.SIGKILL)
                    deaths += 1
        problem = (
            differs(tracked, reference["toy"])
            if process.code == 0
            else f"exit {process.code}: {tracked.last_line() or tracked.text()[-1500:]}"
        )
        row.count_kills(deaths, problem)
        if not deaths:
            continue
    yield row


def signaled(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """SIGTERM as a scheduler sends it before SIGKILL, SIGINT as a user sends it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        row, longest = Row(f"{number.name} with a deadline of 10 s", ""), 0.0
        while row.tried < times:
            tracked, asked = TrackedRun(home, f"{number.name}-{row.tried}", workers=row.tried % 2), 0
            while True:
                before = tracked.text().count(" from step ")
                process = tracked.start()
                # Before it prints where it starts it has nothing to save, and ends like any program.
                while process.poll() is None and tracked.text().count(" from step ") == before:
                    time.sleep(0.01)
                if process.wait(random.uniform(0.0, 1.5)) is None and asked < 3:
                    began = time.monotonic()
                    os.killpg(process.pid, number)  # as a terminal or a scheduler does: loader processes get it too
                    code, asked = process.wait(10), asked + 1
                    longest = max(longest, time.monotonic() - began)
                    if code not in (0, 130):
                        row.count(f"exit {code} {tracked.last_line()}")
                        break
                    if code == 0:
                        break
                elif process.wait() is not None:
                    break
            problem = differs(tracked, reference["toy"])
            for _ in range(max(asked, 1 if problem else 0)):
                row.count(problem)
        row.outcome = f"state saved, exit 130, after {longest:.1f} s at most; equal when resumed"
        yield row
