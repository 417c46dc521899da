"""Faults injected into real training processes: kills, full disks, dying loaders, jumping clocks.

Run: python benchmarks/faults.py [--kills 200] [--times 10] [--only NAME ...] [--out FILE.json]. Linux;
faults that need root (small disks, read-only mounts) are left out without it. Progress goes to stderr, the table to
docs/reliability.md between its two marks; the last line of stdout is one JSON document. Exit code 1 if a run was lost.

All runs are the same tiny one (it takes a second), so that after any fault it can be compared with an undisturbed run:
the last checkpoint bit for bit, the metrics line by line, and the images it used one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded

import numpy as np
import torch
import torch._dynamo
import torch.utils.tensorboard  # slow to import, so once here and not in every process
from PIL import Image
from record import keep, machine
from safetensors.torch import load_file

import opendino.training  # noqa: F401
from opendino import config as configs
from opendino.cli import main as opendino_main
from opendino.config import Config
from opendino.data import decode
from opendino.engine import checkpoint
from opendino.engine.run_monitor import RunMonitor
from opendino.recipes import demo
from opendino.views.settings import changed

CACHE_FULL = "cache is full", "cache on disk grows no more"  # what the run says then
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
STEPS, BATCH, IMAGES = 40, 16, 48
random.seed(0)


@dataclass
class Row:
    """Result of a fault."""

    fault: str
    outcome: str
    tried: int = 0
    survived: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, problem: str | None) -> None:
        """Record one try, and the problem after it if any."""
        self.tried += 1
        self.survived += problem is None
        if problem is not None:
            self.notes.append(problem)
            print(f"  !! {self.fault}: {problem}", file=sys.stderr)


def tiny(data: str, run: Path, **changes: Any) -> Config:
    """A run of one second with all features of a long run."""
    recipe = demo.config(data)
    small = replace(recipe.method, out_dim=32, hidden_dim=16, bottleneck_dim=8, freeze_last_layer="2")
    base = replace(
        recipe, val=None, out=str(run), backbone="vit/8", drop_path=0.2, method=small, steps=STEPS,
        views=changed(recipe.views, {"local.number": 2}),
        batch=BATCH,
        workers=0, backbone_options={"embed_dim": 24, "depth": 2, "num_heads": 2}, precision="float32", cache="off",
        device="cpu", eval_every="10", checkpoint_every="3", eval_images=24, knn_k=3,
    )  # fmt: skip
    return replace(base, **changes)


# ---- processes


class Process:
    """A forked copy of this process that runs the command line; its output is kept."""

    def __init__(self, words: list[str], said: Path, before: Callable[[], None] | None = None, **env: str) -> None:
        self.said, self.code = said, None
        if (pid := os.fork()) == 0:
            code = 70
            try:
                os.setsid()
                sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(sink, 1), os.dup2(sink, 2)
                os.environ.update(env)
                torch.set_num_threads(1)
                if before is not None:
                    before()
                code = opendino_main(words)
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
        self.pid = pid

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 120.0) -> int | None:
        """Its exit code, None if it does not end within that time."""
        last = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < last:
            time.sleep(0.01)
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal if it is still running."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def children(self) -> list[int]:
        """Its loader processes."""
        with contextlib.suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []


def record_images(path: Path) -> Callable[[], None]:
    """Setup for a process: record the images of every step, with one write each."""

    def patch() -> None:
        step, file = RunMonitor.step, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def recorded(self: RunMonitor, done: int, tensors: Any, numbers: Any, indices: Any) -> None:
            os.write(file, json.dumps([done, torch.cat(indices).tolist()]).encode() + b"\n")
            step(self, done, tensors, numbers, indices)

        RunMonitor.step = recorded

    return patch


class TrackedRun:
    """A run that is started, killed and resumed in one folder."""

    def __init__(self, home: Path, name: str, **changes: Any) -> None:
        self.run, self.said, self.seen = home / name, home / f"{name}.said", home / f"{name}.seen"
        self.settings, self.seconds = home / f"{name}.yaml", 0.0
        self.data = changes.pop("data", f"toy:textures?n={IMAGES}&size=32")
        self.settings.write_text(configs.dump(tiny(self.data, self.run, **changes)), encoding="utf-8")

    def words(self) -> list[str]:
        """The command a user would run next."""
        if (self.run / "config.yaml").exists():
            return ["resume", str(self.run)]
        return ["train", self.data, "--config", str(self.settings)]

    def start(self, before: Callable[[], None] | None = None, **env: str) -> Process:
        """Start or resume it."""
        seen = record_images(Path(f"{self.seen}{env.get('RANK', '0')}"))
        return Process(self.words(), self.said, lambda: (seen(), before() if before else None), **env)

    def pair(self, before: Callable[[int], None] | None = None) -> list[Process]:
        """The same with two processes and torchrun's environment variables."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        rendezvous = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start(
                (lambda r=rank: before(r)) if before else None, RANK=str(rank), LOCAL_RANK=str(rank), **rendezvous
            )
            for rank in (0, 1)
        ]

    def text(self) -> str:
        """Its whole output."""
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    def line(self) -> str:
        """Its last line, an error if there was one."""
        return next((line for line in reversed(self.text().splitlines()) if line.startswith("opendino: ")), "")


def rows(run: Path) -> list[str]:
    """The lines of metrics.jsonl except those about speed."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if '"images_per_second"' not in line]


def differs(tracked: TrackedRun, reference: TrackedRun, ranks: int = 1, orphans: bool = False) -> str | None:
    """The difference between a run and the undisturbed one, None if they are equal.

    Ranks and loader processes (orphans) whose peer was killed may print a traceback; a run must not.
    """
    ours, theirs = (each.run / "checkpoints" / f"step_{STEPS:08d}" for each in (tracked, reference))
    if not ours.is_dir():
        return f"not finished: {tracked.line()}"
    one, other = (load_file(path / "tensors.safetensors") for path in (ours, theirs))
    if one.keys() != other.keys() or not all(torch.equal(value, other[key]) for key, value in one.items()):
        return "the final tensors differ"
    if rows(tracked.run) != rows(reference.run):
        return "metrics.jsonl differs"
    states = [json.loads((path / "state.json").read_text()) for path in (ours, theirs)]
    if states[0] != states[1]:
        return "state.json differs"
    if ranks == 1 and not orphans and "Traceback" in tracked.text():
        return "it printed a traceback"
    return lost(tracked, ranks, len(states[0]["bad"]))


def lost(tracked: TrackedRun, ranks: int, unreadable: int) -> str | None:
    """None if every epoch used every image once (except replacements of unreadable ones), else the problem."""
    steps: dict[int, list[int]] = defaultdict(list)
    for rank in range(ranks):
        own: dict[int, list[int]] = {}
        for line in Path(f"{tracked.seen}{rank}").read_text().splitlines():
            step, indices = json.loads(line)
            if own.setdefault(step, indices) != indices:
                return f"step {step} was done with other images the second time"
        for step, indices in own.items():
            steps[step] += indices
    if sorted(steps) != list(range(1, STEPS + 1)):
        return "a step is missing"
    per_epoch = IMAGES // BATCH
    for epoch in range(STEPS // per_epoch):
        seen = [i for step in range(epoch * per_epoch, (epoch + 1) * per_epoch) for i in steps[step + 1]]
        if len(set(seen)) != IMAGES - unreadable or len(seen) != IMAGES:
            return f"epoch {epoch} saw {len(set(seen))} images of {IMAGES - unreadable}"
    return None


# ---- the faults; each takes the working folder, the undisturbed runs, and the number of tries


Fault = Callable[[Path, dict[str, TrackedRun], int], Iterator[Row]]


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
        for _ in range(max(deaths, 1 if problem else 0)):
            row.count(problem)
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
        for _ in range(max(deaths, 1 if problem else 0)):
            row.count(problem)
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
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"import os, faults, pathlib\n"
            f"faults.record_images(pathlib.Path({str(tracked.seen)!r} + os.environ['RANK']))()\n"
            f"sys.exit(faults.opendino_main(['resume', {str(tracked.run)!r}]))\n"
        )
        with open(tracked.said, "w") as said:
            agent = subprocess.Popen([*torchrun, str(program)], stdout=said, stderr=said, env=environment)
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
        tracked, deaths = TrackedRun(home, f"loaders-{row.tried}", workers=2), 0
        process = tracked.start()
        while process.wait(random.uniform(0.1, 0.6)) is None:
            if (tracked.run / "latest").exists() and (children := process.children()) and deaths < 4:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(children), signal.SIGKILL)
                    deaths += 1
        problem = (
            differs(tracked, reference["toy"])
            if process.code == 0
            else f"exit {process.code}: {tracked.line() or tracked.text()[-1500:]}"
        )
        for _ in range(max(deaths, 1 if problem else 0)):
            row.count(problem)
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
                        row.count(f"exit {code} {tracked.line()}")
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


@contextlib.contextmanager
def disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a small disk."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def enlarge(place: Path) -> None:
    """Free space on it."""
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)


def disk_full(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """Too small from the start, at every size; or filled by another program at a random moment."""
    checkpoint_kb = sum(f.stat().st_size for f in checkpoint.newest(reference["toy"].run).iterdir()) // 1024
    for what, outcome in (
        ("too small for the run: checkpoint, network, log or metrics fail to be written", "one line"),
        ("filled by others at a random moment", "one line"),
    ):
        row = Row(f"disk {what}", f"{outcome}, exit 1, the last checkpoint reads; with space freed it continues, equal")
        for n in range(times):
            small = int(checkpoint_kb * (0.02 + 4.0 * n / times)) if "small" in what else 64 * 1024
            with disk(home / f"disk{n}{len(what)}", small) as place:
                tracked = TrackedRun(place, "run")
                tracked.said, tracked.seen = home / f"full{n}{len(what)}.said", home / f"full{n}{len(what)}.seen"
                tracked.settings = Path(shutil.move(tracked.settings, home / f"full{n}{len(what)}.yaml"))
                process = tracked.start()
                if "others" in what:
                    while process.poll() is None and not (tracked.run / "latest").exists():
                        time.sleep(0.005)
                    process.wait(random.uniform(0, 0.6))
                    with contextlib.suppress(OSError), open(place / "balloon", "wb", 0) as balloon:
                        while True:
                            balloon.write(bytes(4096))
                    with contextlib.suppress(OSError), open(place / "balloon2", "wb", 0) as balloon:
                        balloon.write(bytes(4096))
                code = process.wait()
                problem = None
                if code == 1:
                    good = checkpoint.newest(tracked.run)
                    if "disk is full" not in tracked.line().lower() or "Traceback" in tracked.text():
                        problem = f"said {tracked.line() or tracked.text()[-300:]}"
                    elif tracked.run.exists() and (tracked.run / "latest").exists() and good is None:
                        problem = "no checkpoint reads"
                elif code != 0:
                    problem = f"exit {code} {tracked.line()}"
                enlarge(place)
                for balloon in place.glob("balloon*"):
                    balloon.unlink()
                if problem is None and code == 1:
                    code = tracked.start().wait()
                row.count(problem or differs(tracked, reference["toy"]))
        yield row


def cache_full(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """A cache on a disk that cannot hold it."""
    row = Row("disk too small for cache=disk", "the cache stops growing, says so, and the run continues, equal")
    for n in range(times):
        with disk(home / f"cache{n}", 64 * 1024) as place:
            left = os.statvfs(place)
            left = left.f_bavail * left.f_frsize - left.f_blocks * left.f_frsize // 20
            with open(place / "balloon", "wb") as balloon:
                # A run refuses to start if less than a quarter of its images fits.
                balloon.write(bytes(left - random.randrange(IMAGES * 1024, IMAGES * 2048)))
            tracked = TrackedRun(place, "run", cache="disk", workers=n % 3)
            tracked.said, tracked.seen = home / f"cache{n}.said", home / f"cache{n}.seen"
            tracked.settings = Path(shutil.move(tracked.settings, home / f"cache{n}.yaml"))
            tracked.start().wait()
            problem = differs(tracked, reference["toy"])
            if problem is None and not any(words in tracked.text().lower() for words in CACHE_FULL):
                problem = "it was not full"
            row.count(problem)
    yield row


def cut(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """A truncated checkpoint, at many places; and whole runs resumed after it."""
    source = reference["toy"].run
    row = Row("newest checkpoint cut at a byte", "recognized, the one before it is used")
    run = Path(shutil.copytree(source, home / "cut"))
    newest = checkpoint.newest(run)
    for name in ("tensors.safetensors", "state.json"):
        whole = (newest / name).read_bytes()
        head = 8 + int.from_bytes(whole[:8], "little") if name.startswith("tensors") else len(whole)
        places = {
            *range(0, min(head, len(whole)), 7),
            *range(0, len(whole), max(1, len(whole) // 2000)),
            len(whole) - 1,
        }
        for place in sorted(places):
            with open(newest / name, "r+b") as file:
                file.truncate(place)
            found = checkpoint.newest(run)
            row.count(None if found is not None and found != newest else f"{name} cut at {place}: took {found}")
            (newest / name).write_bytes(whole)
    yield row
    row = Row("the same, and the run resumed", "equal at the end")
    for n in range(min(times, 5)):
        tracked = TrackedRun(home, f"cut-{n}")
        tracked.start().wait()
        last = checkpoint.newest(tracked.run)
        victim = last / random.choice(("tensors.safetensors", "state.json"))
        with open(victim, "r+b") as file:
            file.truncate(random.randrange(victim.stat().st_size))
        tracked.start().wait()
        row.count(differs(tracked, reference["toy"]))
    yield row


def clocks(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """The wall clock jumps by years at every reading."""

    def jumping() -> None:
        true, chance = time.time, random.Random(os.getpid())
        time.time = lambda: true() + chance.uniform(-3e8, 3e8)

    row = Row("wall clock jumping by up to ±10 years at every reading", "equal; durations use the monotonic clock")
    for n in range(times):
        tracked = TrackedRun(home, f"clock-{n}", workers=n % 2)
        tracked.start(jumping).wait()
        row.count(differs(tracked, reference["toy"]))
    yield row


def two_at_once(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """Two processes start or resume a run in one folder at the same instant."""
    for what in ("a folder that is not there", "an empty folder", "resume of one run"):
        row = Row(f"two started at once: {what}", "one trains, equal; the other is refused in one line")
        for n in range(times):
            tracked = TrackedRun(home, f"race-{what.replace(' ', '')}-{n}")
            if "empty" in what:
                tracked.run.mkdir()
            if "resume" in what:
                tracked.run.mkdir()
                shutil.copy(reference["toy"].run / "config.yaml", tracked.run)
            both = [tracked.start(), tracked.start()]
            codes = sorted(each.wait() for each in both)
            problem = None if codes == [0, 1] else f"exit codes {codes}: {tracked.line()}"
            row.count(problem or differs(tracked, reference["toy"]))
        yield row


def powerless() -> None:
    """Drop root's capabilities, so that permissions apply."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def read_only(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """A read-only mount, and a folder of another user."""
    row = Row("read-only place for the run", "one line, exit 1, nothing left there")
    for n in range(times):
        with disk(home / f"ro{n}", 4096) as place:
            if n % 2:
                place.chmod(0o755)
                os.chown(place, 65534, 65534)
            else:
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            tracked = TrackedRun(home, f"locked-{n}")
            words = ["train", tracked.data, "--config", str(tracked.settings), "--out", str(place / "a/run")]
            process = Process(words, tracked.said, powerless if n % 2 else None)
            code, line = process.wait(), tracked.line()
            good = code == 1 and ("Cannot write" in line or "Not allowed" in line) and "Traceback" not in tracked.text()
            row.count(None if good and not list(place.iterdir()) else f"exit {code}, {line or tracked.text()[-300:]}")
    yield row


def photos(folder: Path, bad: bool = True) -> Path:
    """As many files as the toy set has images; three of them are not images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        if bad and number % 16 == 7:
            (folder / f"{number:02d}.png").write_bytes(b"no image" * number)
        else:
            Image.fromarray(rng.integers(0, 255, (40, 44, 3), np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def files_change(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """Images are removed, added and cut short while a run reads them."""
    row = Row(
        "images removed, added and cut short while training",
        "the run finishes; each missing one is listed, with a reason",
    )
    for n in range(times):
        folder = photos(home / f"changing-{n}", bad=False)
        tracked = TrackedRun(home, f"changed-{n}", data=str(folder), workers=n % 2)
        process = tracked.start()
        while process.poll() is None and not (tracked.run / "latest").exists():
            time.sleep(0.005)
        gone = [folder / f"{i:02d}.png" for i in random.sample(range(IMAGES), 6)]
        for number, path in enumerate(gone):
            path.unlink() if number % 2 else path.write_bytes(path.read_bytes()[: 50 * number])
            shutil.copy(folder / "new.png", folder / f"new{number}.png") if (folder / "new.png").exists() else None
        code = process.wait()
        table = tracked.run / "bad_files.csv"
        listed = {line.partition(",")[0] for line in table.read_text().splitlines()[1:]} if table.exists() else set()
        ended = code == 0 and "Traceback" not in tracked.text()
        complete = listed == {path.name for path in gone}
        row.count(None if ended and complete else f"exit {code}, {len(listed)} of {len(gone)} listed, {tracked.line()}")
    yield row


def not_finite(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """A NaN among the pixels of one of two ranks."""

    def poison(rank: int, at: int) -> None:
        if rank == 1:
            module, calls = sys.modules["opendino.training"], []
            crops = module.crops

            def poisoned(*args: Any) -> Any:
                made = crops(*args)
                calls.append(1)
                if len(calls) == at:
                    made["local"][0, 0, 0, 0, 0] = float("nan")
                return made

            module.crops = poisoned

    row = Row("NaN on one of two ranks", "no rank steps, none hangs, the images are named; the run finishes")
    for n in range(times):
        tracked, at = TrackedRun(home, f"nan-{n}"), random.randrange(2, STEPS)
        ranks = tracked.pair(lambda rank, at=at: poison(rank, at))
        codes = [each.wait() for each in ranks]
        void = [row["step"] for row in map(json.loads, rows(tracked.run)) if row.get("ok") == 0]
        good = codes == [0, 0] and void == [at] and f"step {at} was skipped" in tracked.text()
        row.count(None if good else f"exit codes {codes}, skipped steps {void} for {at}")
    yield row


def decoders(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """Decoders that hang, and that crash."""

    def broken() -> None:
        from opendino.data import cache

        decode.MAX_SECONDS = 2.0
        true = cache.decode

        def treacherous(data: Any, area: int | None) -> Any:
            if data == hangs:
                time.sleep(1000)
            if data == crashes:
                os.kill(os.getpid(), signal.SIGSEGV)
                time.sleep(10)
            return true(data, area)

        cache.decode = treacherous

    folder = photos(home / "hostile")
    hangs, crashes = ((folder / name).read_bytes() for name in ("03.png", "30.png"))
    row = Row("a decoder that hangs, and one that crashes, in a loader process", "both images listed, the run finishes")
    for n in range(times):
        tracked = TrackedRun(home, f"decoders-{n}", data=str(folder), workers=1 + n % 2)
        code = tracked.start(broken).wait()
        table = tracked.run / "bad_files.csv"
        listed = dict(line.split(",", 1) for line in table.read_text().splitlines()[1:]) if table.exists() else {}
        good = code == 0 and "within" in listed.get("03.png", "") and "crashed" in listed.get("30.png", "")
        row.count(None if good and len(listed) == 5 else f"exit {code}, {listed}, {tracked.line()}")
    yield row


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "killed-pair": killed_pair,
    "killed-torchrun": killed_torchrun,
    "loaders": loaders_killed,
    "stop": signaled,
    "disk": disk_full,
    "cache": cache_full,
    "cut": cut,
    "clocks": clocks,
    "two": two_at_once,
    "read-only": read_only,
    "files": files_change,
    "nan": not_finite,
    "decoders": decoders,
}
NEED_ROOT = {"disk", "cache", "read-only"}


def reference_runs(home: Path) -> dict[str, TrackedRun]:
    """The undisturbed runs."""
    runs = {
        "toy": TrackedRun(home, "reference-toy"),
        "photos": TrackedRun(home, "reference-photos", data=str(photos(home / "photos"))),
    }
    runs["pair"] = TrackedRun(home, "reference-pair")
    for name, tracked in runs.items():
        began = time.monotonic()
        codes = [each.wait() for each in (tracked.pair() if name == "pair" else [tracked.start()])]
        tracked.seconds = time.monotonic() - began
        assert not any(codes), tracked.text()[-2000:]
        problem = differs(tracked, tracked, ranks=2 if name == "pair" else 1)
        assert problem is None, (name, problem)
    return runs


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
    parser.add_argument("--only", nargs="*", choices=[*FAULTS], help="these faults alone; the page is left as it is")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    decode._formats()  # imports a dozen modules, once and not in every process
    began, found = time.monotonic(), []
    where = f"{machine()}, {time.strftime('%Y-%m-%d')}"
    pairs = f" --pair-kills {args.pair_kills}" if args.pair_kills else ""
    command = f"python benchmarks/faults.py --kills {args.kills}{pairs} --times {args.times}"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        reference = reference_runs(home)
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
