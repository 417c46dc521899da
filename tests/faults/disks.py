"""Full and read-only disks. They are mounted, which needs root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.runs import IMAGES, Process, Row, TrackedRun, differs

from opendino.engine import checkpoint


@contextlib.contextmanager
def disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a small disk."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def disk_full(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """Too small from the start, at every size; or filled by another program at a random moment."""
    checkpoint_kb = sum(f.stat().st_size for f in checkpoint.newest(reference["toy"].run).iterdir()) // 1024
    outcome = "one line, exit 1, the last checkpoint reads; with space freed it continues, equal"
    row = Row("disk too small for the run: checkpoint, network, log or metrics fail to be written", outcome)
    for n in range(times):
        with disk(home / f"small-{n}", int(checkpoint_kb * (0.02 + 4.0 * n / times))) as place:
            tracked = TrackedRun(home, f"small-disk-{n}", place)
            process = tracked.start()
            problem = stopped(process, tracked)
            row.count(problem or differs(with_space_freed(process, tracked, place), reference["toy"]))
    yield row
    row = Row("disk filled by others at a random moment", outcome)
    for n in range(times):
        with disk(home / f"filled-{n}", 64 * 1024) as place:
            tracked = TrackedRun(home, f"filled-disk-{n}", place)
            process = tracked.start()
            while process.poll() is None and not (tracked.run / "latest").exists():
                time.sleep(0.005)
            process.wait(random.uniform(0, 0.6))
            fill(place)
            problem = stopped(process, tracked)
            row.count(problem or differs(with_space_freed(process, tracked, place), reference["toy"]))
    yield row


def fill(place: Path) -> None:
    """Use all space of a disk; twice, because a run may free some meanwhile."""
    for name in ("balloon", "balloon2"):
        with contextlib.suppress(OSError), open(place / name, "wb", 0) as balloon:
            while True:
                balloon.write(bytes(4096))


def stopped(process: Process, tracked: TrackedRun) -> str | None:
    """The problem with how a run ends on a full disk: in one line that says so, and its newest checkpoint reads."""
    code = process.wait()
    if code not in (0, 1):
        return f"exit {code} {tracked.last_line()}"
    if code == 1 and ("disk is full" not in tracked.last_line().lower() or "Traceback" in tracked.text()):
        return f"said {tracked.last_line() or tracked.text()[-300:]}"
    if code == 1 and (tracked.run / "latest").exists() and checkpoint.newest(tracked.run) is None:
        return "no checkpoint reads"
    return None


def with_space_freed(process: Process, tracked: TrackedRun, place: Path) -> TrackedRun:
    """Free space, and continue the run if it was stopped."""
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    for balloon in place.glob("balloon*"):
        balloon.unlink()
    if process.code:
        tracked.start().wait()
    return tracked


def cache_full(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """A cache on a disk that cannot hold it."""
    row = Row("disk too small for cache=disk", "the cache stops growing, says so, and the run continues, equal")
    for n in range(times):
        with disk(home / f"cache-{n}", 64 * 1024) as place:
            left = os.statvfs(place)
            left = left.f_bavail * left.f_frsize - left.f_blocks * left.f_frsize // 20
            # A run refuses to start if less than a quarter of its images fits.
            (place / "balloon").write_bytes(bytes(left - random.randrange(IMAGES * 1024, IMAGES * 2048)))
            tracked = TrackedRun(home, f"full-cache-{n}", place, cache="disk", workers=n % 3)
            tracked.start().wait()
            problem = differs(tracked, reference["toy"])
            row.count(problem or (None if "cache is full" in tracked.text() else "it was not full"))
    yield row


def drop_privileges() -> None:
    """Drop root's capabilities, so that permissions apply."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def read_only(home: Path, reference: dict[str, TrackedRun], times: int) -> Iterator[Row]:
    """A read-only mount, and a folder of another user."""
    row = Row("read-only place for the run", "one line, exit 1, nothing left there")
    for n in range(times):
        with disk(home / f"read-only-{n}", 4096) as place:
            if n % 2:
                place.chmod(0o755)
                os.chown(place, 65534, 65534)
            else:
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            tracked = TrackedRun(home, f"locked-{n}")
            command = ["train", tracked.data, "--config", str(tracked.settings), "--out", str(place / "a/run")]
            code = Process(command, tracked.output, drop_privileges if n % 2 else None).wait()
            line = tracked.last_line()
            good = code == 1 and ("Cannot write" in line or "Not allowed" in line) and "Traceback" not in tracked.text()
            row.count(None if good and not list(place.iterdir()) else f"exit {code}, {line or tracked.text()[-300:]}")
    yield row
