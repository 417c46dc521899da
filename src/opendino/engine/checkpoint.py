"""Checkpoints: the complete state of a run as safetensors and JSON, written so that a crash at any byte loses nothing.

A checkpoint is a folder `step_00012000/` with `tensors.safetensors` and `state.json`. It is written under a temporary
name, synced to disk (fsync) and renamed; only then is its name written to the file `latest`. Nothing is pickled. No
random generator state is saved: every random choice is a function of the seed and the step.
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
from opendino.core.errors import UserError
from opendino.engine import optimizers
from opendino.models.run_checkpoints import folders
from opendino.models.weights import load_weights


def snapshot(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy the training state to host memory: the method's parameters and buffers, and the optimizer's moments.

    Sharded tensors are gathered, so that a run can continue on any number of ranks. Collective: every rank must call
    it.

    Args:
        method: With full (not sharded) weights, see `parallel.prepare_distributed`.
        optimizer: Its state keys become `optimizer.<parameter index>.<name>`.

    Returns:
        CPU tensors named `method.*` and `optimizer.*` on rank 0, an empty dict on the other ranks.
    """
    tensors = {f"method.{key}": value for key, value in method.state_dict().items()}
    for index, local_param in enumerate(_optimizer_parameters(optimizer)):
        for key, value in optimizer.state.get(local_param, {}).items():
            if isinstance(value, Tensor):
                moment = value.shape == local_param.shape  # else a scalar such as AdamW's "step"
                tensors[f"optimizer.{index}.{key}"] = (
                    distributed.from_local_shard(optimizers.full_parameter(local_param), value) if moment else value
                )
    copies = {}
    for key, value in tensors.items():
        gathered = distributed.full_tensor(value)
        if distributed.rank() == 0:
            copies[key] = torch.empty(gathered.shape, dtype=gathered.dtype).copy_(gathered)
    return copies


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint and delete all but the newest `keep`.

    Args:
        folder: The run's folder.
        tensors: From `snapshot`.
        state: JSON values: `step` (int) and everything else that the run needs to continue.
        keep: Number of checkpoints to keep, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: It cannot be written; earlier checkpoints are untouched.
    """
    root = folder / "checkpoints"
    root.mkdir(exist_ok=True)
    name = f"step_{state['step']:08d}"
    partial, final = root / f".{name}.partial", root / name
    for leftover in root.glob(".*.partial"):  # from a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir()
        _write(tensors, partial / "tensors.safetensors")
        atomic_write.write(partial / "state.json", json.dumps(state, indent=1))
        # fsync the data before the rename: otherwise a power cut could leave the new name on an empty file.
        for path in (partial / "tensors.safetensors", partial, root):
            atomic_write.sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except BaseException:  # on a full disk, free the space at once
        shutil.rmtree(partial, ignore_errors=True)
        raise
    atomic_write.sync(root)
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


def delete_newer(path: Path) -> None:
    """Delete the checkpoints that are newer than `path`."""
    known = folders(path.parents[1])
    for newer in known[known.index(path) + 1 :]:
        shutil.rmtree(newer, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """Path of the newest readable checkpoint, None if there is none. Damaged checkpoints are skipped."""
    for path in reversed(folders(folder)):
        try:
            json.loads((path / "state.json").read_text(encoding="utf-8"))
            # Opening checks the header, and that the file has the length the header says.
            with safe_open(path / "tensors.safetensors", "pt"):
                pass
        except (FileNotFoundError, ValueError, SafetensorError):  # other errors are the disk's and are raised
            continue
        return path
    return None


def state(path: Path) -> dict[str, Any]:
    """Read the `state` that a checkpoint was saved with."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def load(path: Path, method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into a method and its optimizer; with FSDP each rank takes its own shards.

    Args:
        path: Folder of the checkpoint.
        method: Changed in place.
        optimizer: Changed in place. Its learning rates and weight decays stay.

    Returns:
        The checkpoint's `state`.

    Raises:
        UserError: The checkpoint is of another network.
    """
    tensors = load_file(path / "tensors.safetensors")
    weights = {key.removeprefix("method."): value for key, value in tensors.items() if key.startswith("method.")}
    current = method.state_dict()
    weights = {
        key: distributed.shard_like(current[key], value) if key in current else value for key, value in weights.items()
    }
    load_weights(method, weights, str(path))
    parameters = _optimizer_parameters(optimizer)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            local_param = parameters[int(index)]
            parameter = optimizers.full_parameter(local_param)
            if value.shape == parameter.shape:
                # Fused optimizers require moments with the memory layout (strides) of their parameter.
                local_value = distributed.local_tensor(distributed.shard_like(parameter, value))
                value = torch.empty_like(local_param, dtype=value.dtype).copy_(local_value)
            moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state(path)


def load_networks(run: Path, method: Method) -> None:
    """Load all networks of a run's newest checkpoint into a method, to start another run from them.

    Raises:
        UserError: There is no checkpoint, or it is of another method or network.
    """
    path = newest(run)
    if path is None:
        raise UserError(f"'{run}' has no checkpoint", "Start from its backbone alone: opendino train DATA --init MODEL")
    tensors = load_file(path / "tensors.safetensors")
    weights = {key.removeprefix("method."): value for key, value in tensors.items() if key.startswith("method.")}
    load_weights(method, weights, str(path))


def _optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters, in the order in which checkpoints number them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
