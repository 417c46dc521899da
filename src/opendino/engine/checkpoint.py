"""The whole state of a run as plain tensors and JSON, written so that a crash at any byte loses nothing.

A checkpoint is a folder `step_00012000/` with `tensors.safetensors` and `state.json`. It is written under a temporary
name, forced to disk, and renamed; only then does `latest` name it. Nothing is ever pickled. There is no state of a
random generator to keep: every choice is a function of the seed and of where the run stands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from opendino.core import atomic_write, distributed
from opendino.core.contracts import Method
from opendino.engine import optim
from opendino.models.run_checkpoints import folders
from opendino.models.weights import load_weights


def snapshot(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies on the host of all that trains: networks, heads, what else is registered (DINO's center), and moments.

    Whole tensors on any number of ranks, so that any other number can go on from them. Every rank must take part; all
    but rank 0 get nothing.
    """
    tensors = {f"method.{key}": value for key, value in method.state_dict().items()}
    for index, held in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(held, {}).items():
            if isinstance(value, Tensor):
                moment = value.shape == held.shape
                tensors[f"optimizer.{index}.{key}"] = (
                    distributed.from_local_shard(optim.whole(held), value) if moment else value
                )
    copies = {}
    for key, value in tensors.items():
        gathered = distributed.full_tensor(value)
        if distributed.rank() == 0:
            copies[key] = torch.empty(gathered.shape, dtype=gathered.dtype).copy_(gathered)
    return copies


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint and drop all but the newest `keep`.

    Args:
        folder: The run's folder.
        tensors: From `snapshot`.
        state: JSON values: `step` (int) and whatever the run needs to go on.
        keep: Checkpoints kept, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: It cannot be written; the ones before it are as they were.
    """
    home = folder / "checkpoints"
    home.mkdir(exist_ok=True)
    name = f"step_{state['step']:08d}"
    partial, final = home / f".{name}.partial", home / name
    for left in home.glob(".*.partial"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir()
        _write(tensors, partial / "tensors.safetensors")
        atomic_write.write(partial / "state.json", json.dumps(state, indent=1))
        for path in (partial / "tensors.safetensors", partial, home):
            atomic_write.sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except BaseException:  # on a full disk every byte counts
        shutil.rmtree(partial, ignore_errors=True)
        raise
    atomic_write.sync(home)
    atomic_write.write(folder / "latest", f"checkpoints/{name}\n")
    for old in folders(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if code := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
        raise


def forget_after(path: Path) -> None:
    """Remove the checkpoints newer than this one."""
    known = folders(path.parents[1])
    for newer in known[known.index(path) + 1 :]:
        shutil.rmtree(newer, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that reads, None where there is none. A damaged one is passed over."""
    for path in reversed(folders(folder)):
        try:
            json.loads((path / "state.json").read_text(encoding="utf-8"))
            with safe_open(
                path / "tensors.safetensors", "pt"
            ):  # its header, and whether the file is as long as it says
                pass
        except (FileNotFoundError, ValueError, SafetensorError):  # any other fault is the disk's, not the file's
            continue
        return path
    return None


def state(path: Path) -> dict[str, Any]:
    """The JSON values that a checkpoint was saved with."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def load(path: Path, method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's tensors back into place, each rank what it holds; returns its `state`.

    Raises:
        UserError: It is of another network.
    """
    tensors = load_file(path / "tensors.safetensors")
    weights = {key.removeprefix("method."): value for key, value in tensors.items() if key.startswith("method.")}
    own = method.state_dict()
    weights = {key: distributed.shard_like(own[key], value) if key in own else value for key, value in weights.items()}
    load_weights(method, weights, str(path))
    parameters = _parameters(optimizer)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            held = parameters[int(index)]
            parameter = optim.whole(held)
            if value.shape == parameter.shape:
                # Fused optimizers want a moment to lie in memory as its parameter does.
                mine = distributed.local_tensor(distributed.shard_like(parameter, value))
                value = torch.empty_like(held, dtype=value.dtype).copy_(mine)
            moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state(path)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order of their numbers in a checkpoint."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
