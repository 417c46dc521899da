"""The result of each benchmark: one JSON document, as the last line of stdout, and in a file if `--out` is given."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch


def keep(document: dict[str, Any], out: Path | None) -> None:
    """Print the document, and write it to `out`."""
    text = json.dumps(document)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    print(text)


def machine(device: torch.device | None = None) -> str:
    """The processor, or the GPU if `device` is one, the cores that may be used, and torch."""
    name = torch.cuda.get_device_name(device) if device and device.type == "cuda" else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def weights(run: Path | str) -> str:
    """SHA-256 of the network that a run leaves: equal where two runs are, bit by bit."""
    return hashlib.sha256(Path(run, "backbone.safetensors").read_bytes()).hexdigest()
