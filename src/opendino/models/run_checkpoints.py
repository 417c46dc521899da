"""List the checkpoints of a run and load the network of one of them, without method and optimizer."""

from __future__ import annotations

from pathlib import Path

import safetensors

from opendino.core.errors import UserError
from opendino.models.load import Model, load
from opendino.models.separate_channels import network_of
from opendino.models.weights import load_foreign_weights


def folders(run: str | Path) -> list[Path]:
    """Checkpoint folders of a run (`checkpoints/step_00012000`), ascending by step; empty if there are none."""
    found = (path for path in (Path(run).expanduser() / "checkpoints").glob("step_*") if path.name[5:].isdecimal())
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Step number of a checkpoint folder: 12000 for `checkpoints/step_00012000`."""
    return int(checkpoint.name[5:])


def steps(run: str | Path) -> list[int]:
    """Steps of a run's checkpoints, ascending.

    Raises:
        UserError: The run has none.
    """
    found = [step_of(path) for path in folders(run)]
    if not found:
        raise UserError(f"'{run}' holds no checkpoints", "Give the folder of a run")
    return found


def load_step(run: str | Path, step: int, which: str | None = None) -> Model:
    """Load a network of a run as it was at a step, on the CPU, in eval mode.

    Args:
        run: The run's folder.
        step: One of `steps`.
        which: "teacher" or "student"; None is the default network of the run.

    Raises:
        UserError: The checkpoint cannot be read, or is of another network.
    """
    model = load(run, which)
    path = Path(run).expanduser() / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors"
    prefix = f"method.{which or model.description['networks'][0]}.backbone."
    try:
        with safetensors.safe_open(
            path, framework="pt"
        ) as file:  # reads the backbone alone, no heads, no optimizer state
            names = [key.removeprefix(prefix) for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            state = {name: file.get_tensor(prefix + name) for name in names if name != "mask_token"}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}", "Delete this checkpoint to evaluate the others") from error
    load_foreign_weights(network_of(model.backbone), state, str(path))
    return model
