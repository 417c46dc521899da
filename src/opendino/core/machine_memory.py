"""Memory of the machine, or of the container, that one process of a run may count on."""

from __future__ import annotations

import os
from pathlib import Path

from opendino.core import distributed

_CONTAINER = Path("/sys/fs/cgroup")  # memory.max is "max" where there is no limit


def total_bytes() -> float:
    """This process's share of all memory, in bytes."""
    machine = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    return min(machine, _limit()) / distributed.local_world_size()


def free_bytes() -> float:
    """This process's share of what programs could still take, in bytes; files that are cached count as free."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(float(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES") / 2
    return min(free, max(0.0, _limit() - _used())) / distributed.local_world_size()


def _limit() -> float:
    """The container's limit; infinite without."""
    path = _CONTAINER / "memory.max"
    found = path.read_text().strip() if path.is_file() else "max"
    return float(found) if found.isdecimal() else float("inf")


def _used() -> float:
    """What the programs of the container hold, without files that the kernel has cached for them."""
    path = _CONTAINER / "memory.current"
    if not path.is_file():
        return 0.0
    told = (line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
    cached = next((float(value) for name, value in told if name == "inactive_file"), 0.0)
    return float(path.read_text()) - cached
