"""Tiny training runs in real processes, and the comparison of a disturbed run with an undisturbed one.

All runs are the same tiny one (it takes a second). After any fault its last checkpoint is compared bit for bit, its
metrics line by line, and the images it used one by one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded

import torch
import torch._dynamo
import torch.utils.tensorboard  # slow to import, so once here and not in every process
from tests.factories import difference, dino_run, noise_folder
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import opendino.training  # noqa: F401
from opendino import config as configs
from opendino.cli import main
from opendino.engine.run_monitor import RunMonitor

BATCH, IMAGES = 16, 48
STEPS = 40  # of each run; --steps changes it
METHOD = "dino"  # of each run; --method changes it
REPORT = True  # whether each run writes one; --no-report changes it
WIDTHS = {"out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8, "projection_dim": 8, "num_directions": 16}
_MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)  # a dead loader process is seen sooner than in 5 s
FLAWED = 7, 23, 39  # of the photos, these are no images


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

    def count_kills(self, kills: int, problem: str | None) -> None:
        """Record the kills of one run, which all survived or all failed; a failure without a kill counts once."""
        for _ in range(max(kills, 1 if problem else 0)):
            self.count(problem)


class Process:
    """A forked copy of this process that runs the command line; its output is kept."""

    def __init__(self, command: list[str], output: Path, before: Callable[[], None] | None = None, **env: str) -> None:
        self.output, self.code = output, None
        if (pid := os.fork()) == 0:
            code = 70
            try:
                os.setsid()
                sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(sink, 1), os.dup2(sink, 2)
                os.environ.update(env)
                torch.set_num_threads(1)
                if before is not None:
                    before()
                code = main(command)
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

    def __init__(self, home: Path, name: str, place: Path | None = None, **changes: Any) -> None:
        """Write its settings to `home`; the run's folder goes into `place`, by default `home` too."""
        self.run, self.output, self.seen = (place or home) / name, home / f"{name}.out", home / f"{name}.seen"
        self.settings, self.seconds = home / f"{name}.yaml", 0.0
        self.data = changes.pop("data", f"toy:textures?n={IMAGES}&size=32")
        if METHOD != "dino":
            kind = type(configs.method_config(METHOD))
            known = {each.name for each in fields(kind)}
            changes["method"] = kind(**{name: width for name, width in WIDTHS.items() if name in known})
        config = dino_run(
            self.run, self.data, val=None, steps=STEPS, batch=BATCH, cache=changes.pop("cache", "off"), device="cpu",
            eval_every="10", checkpoint_every="3", eval_images=24, report=REPORT, **changes,
        )  # fmt: skip
        self.settings.write_text(configs.dump(config), encoding="utf-8")

    def next_command(self) -> list[str]:
        """The command a user would run next."""
        if (self.run / "config.yaml").exists():
            return ["resume", str(self.run)]
        return ["train", self.data, "--config", str(self.settings)]

    def start(self, before: Callable[[], None] | None = None, **env: str) -> Process:
        """Start or resume it."""
        seen = record_images(Path(f"{self.seen}{env.get('RANK', '0')}"))
        return Process(self.next_command(), self.output, lambda: (seen(), before() if before else None), **env)

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
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def last_line(self) -> str:
        """Its last line, an error if there was one."""
        return next((line for line in reversed(self.text().splitlines()) if line.startswith("opendino: ")), "")


def differs(tracked: TrackedRun, reference: TrackedRun, ranks: int = 1, orphans: bool = False) -> str | None:
    """The difference between a run and the undisturbed one, None if they are equal.

    Ranks and loader processes (orphans) whose peer was killed may print a traceback; a run must not.
    """
    if not (tracked.run / "checkpoints" / f"step_{STEPS:08d}").is_dir():
        return f"not finished: {tracked.last_line()}"
    if problem := difference(tracked.run, reference.run, STEPS):
        return problem
    if ranks == 1 and not orphans and "Traceback" in tracked.text():
        return "it printed a traceback"
    state = json.loads((tracked.run / "checkpoints" / f"step_{STEPS:08d}" / "state.json").read_text())
    return lost_images(tracked, ranks, len(state["bad"]))


def lost_images(tracked: TrackedRun, ranks: int, unreadable: int) -> str | None:
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


def photos(folder: Path, flawed: tuple[int, ...] = FLAWED) -> Path:
    """As many files as the toy set has images; the flawed ones are no images."""
    noise_folder(folder, IMAGES)
    for number in flawed:
        (folder / f"{number}.png").write_bytes(b"no image" * number)
    return folder


def unreadable(run: Path) -> dict[str, str]:
    """File name → reason, from the run's bad_files.csv."""
    table = run / "bad_files.csv"
    lines = table.read_text().splitlines()[1:] if table.exists() else []
    return dict(line.split(",", 1) for line in lines)


class UndisturbedRuns(dict[str, TrackedRun]):
    """What disturbed runs are compared with, by name: "toy", "photos", "pair"; each is made when it is first needed."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home = home

    def __missing__(self, name: str) -> TrackedRun:
        changes = {"data": str(photos(self._home / "photos"))} if name == "photos" else {}
        tracked, began = TrackedRun(self._home, f"undisturbed-{name}", **changes), time.monotonic()
        codes = [each.wait() for each in (tracked.pair() if name == "pair" else [tracked.start()])]
        tracked.seconds = time.monotonic() - began
        assert not any(codes), tracked.text()[-2000:]
        problem = differs(tracked, tracked, ranks=2 if name == "pair" else 1)
        assert problem is None, (name, problem)
        self[name] = tracked
        return tracked
