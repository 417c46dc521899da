"""Damaged checkpoints and images, hanging decoders, NaN, jumping clocks, two runs in one folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.factories import noise_image, untimed_lines
from tests.faults import runs
from tests.faults.runs import IMAGES, Row, TrackedRun, differs, photos, unreadable

from opendino import run_parts
from opendino.data import cache
from opendino.data.readers import limits
from opendino.engine import checkpoint


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
            problem = None if codes == [0, 1] else f"exit codes {codes}: {tracked.last_line()}"
            row.count(problem or differs(tracked, reference["toy"]))
        yield row


def files_change(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """Images are removed, added and cut short while a run reads them."""
    row = Row(
        "images removed, added and cut short while training",
        "the run finishes; each missing one is listed, with a reason",
    )
    for n in range(times):
        folder = photos(home / f"changing-{n}", flawed=())
        tracked = TrackedRun(home, f"changed-{n}", data=str(folder), workers=n % 2)
        process = tracked.start()
        while process.poll() is None and not (tracked.run / "latest").exists():
            time.sleep(0.005)
        gone = [folder / f"{i}.png" for i in random.sample(range(IMAGES), 6)]
        for number, path in enumerate(gone):
            path.unlink() if number % 2 else path.write_bytes(path.read_bytes()[: 50 * number])
            noise_image(seed=IMAGES + number).save(folder / f"new{number}.png")
        code, listed = process.wait(), unreadable(tracked.run)
        good = code == 0 and "Traceback" not in tracked.text() and listed.keys() == {path.name for path in gone}
        row.count(None if good else f"exit {code}, {len(listed)} of {len(gone)} listed, {tracked.last_line()}")
    yield row


def not_finite(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """A NaN among the pixels of one of two ranks."""

    def poison(rank: int, step: int) -> None:
        if rank == 1:
            true, calls = run_parts.multi_crop, []

            def poisoned(*args: Any) -> Any:
                crops = true(*args)
                calls.append(1)
                if len(calls) == step:
                    crops["local"][0, 0, 0, 0, 0] = float("nan")
                return crops

            run_parts.multi_crop = poisoned

    row = Row("NaN on one of two ranks", "no rank steps, none hangs, the images are named; the run finishes")
    for n in range(times):
        tracked, step = TrackedRun(home, f"nan-{n}"), random.randrange(2, runs.STEPS)
        ranks = tracked.pair(lambda rank, step=step: poison(rank, step))
        codes = [each.wait() for each in ranks]
        skipped = [row["step"] for row in map(json.loads, untimed_lines(tracked.run)) if row.get("ok") == 0]
        good = codes == [0, 0] and skipped == [step] and f"step {step} was skipped" in tracked.text()
        row.count(None if good else f"exit codes {codes}, skipped steps {skipped} for {step}")
    yield row


def decoders(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """Decoders that hang, and that crash."""
    folder = photos(home / "hostile")
    hangs, crashes = ((folder / name).read_bytes() for name in ("3.png", "30.png"))

    def broken() -> None:
        limits.MAX_SECONDS = 2.0
        true = cache.decode

        def hostile(data: Any, *args: Any, **options: Any) -> Any:
            if data == hangs:
                time.sleep(1000)
            if data == crashes:
                os.kill(os.getpid(), signal.SIGSEGV)
                time.sleep(10)
            return true(data, *args, **options)

        cache.decode = hostile

    row = Row("a decoder that hangs, and one that crashes, in a loader process", "both images listed, the run finishes")
    for n in range(times):
        tracked = TrackedRun(home, f"decoders-{n}", data=str(folder), workers=1 + n % 2)
        code, listed = tracked.start(broken).wait(), unreadable(tracked.run)
        good = code == 0 and "within" in listed.get("3.png", "") and "crashed" in listed.get("30.png", "")
        row.count(None if good and len(listed) == 5 else f"exit {code}, {listed}, {tracked.last_line()}")
    yield row
