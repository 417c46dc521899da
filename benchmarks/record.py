"""The result of each benchmark: one JSON document, as the last line of stdout, and in a file if `--out` is given.

Also what it names: the machine, the energy that a run took, the weights that it left.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")
RAPL = Path("/sys/class/powercap")


def keep(document: dict[str, Any], out: Path | None) -> None:
    """Print the document, and write it to `out`."""
    text = json.dumps(document)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    print(text)


def machine(device: torch.device | None = None) -> str:
    """The processor, or the GPU if `device` is one, the cores that may be used, and torch."""
    name = torch.cuda.get_device_name(device) if device and device.type == "cuda" else processor()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def processor() -> str:
    """The architecture, and the model if Linux tells it, e.g. "x86_64 (Intel(R) Xeon(R) Processor)"."""
    told = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    models = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    return f"{platform.machine()} ({models[0]})" if models else platform.machine()


def joules() -> float | None:
    """Energy that all processors have taken so far, of all programs; None where Linux does not tell it to this user."""
    try:
        return sum(int(path.read_text()) for path in RAPL.glob("intel-rapl:?/energy_uj")) / 1e6 or None
    except OSError:  # only root may read it, unless it was opened
        return None


def weights(run: Path | str) -> str:
    """SHA-256 of the network that a run leaves: equal where two runs are, bit by bit."""
    return hashlib.sha256(Path(run, "backbone.safetensors").read_bytes()).hexdigest()
