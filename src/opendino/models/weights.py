"""Weights in .safetensors files, and whether they fit a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from opendino.core import atomic_write
from opendino.core.errors import UserError


def write_weights(path: Path, network: nn.Module) -> None:
    """Write all weights of a network at once or not at all."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    atomic_write.write(path, safetensors.torch.save(state, metadata={"format": "pt"}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        UserError: It is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_shapes(path: Path) -> dict[str, Tensor]:
    """The shapes of a file's tensors, as tensors on the device `meta`: only the head of the file is read.

    Raises:
        UserError: It is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module; every key and shape must fit. Floating-point dtypes follow the module.

    Raises:
        UserError: They do not; says which, a few of each kind.
    """
    check_weights(module, state, source)
    module.load_state_dict(dict(state))


def load_foreign_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights that somebody else wrote: every key and shape must fit, and every number must be finite.

    Raises:
        UserError: Keys or shapes differ, whole numbers stand where fractions belong, or a number is NaN or infinite.
    """
    own = module.state_dict()
    odd = [key for key in own if key in state and state[key].is_floating_point() != own[key].is_floating_point()]
    if odd:
        kind = str(state[odd[0]].dtype).removeprefix("torch.")
        raise UserError(f"{source} holds {odd[0]} as {kind}", "Save its weights as floating-point numbers")
    load_weights(module, state, source)
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{source} holds numbers in {key} that are not finite (NaN or infinite)", "Take an earlier checkpoint"
            )


def check_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Compare keys and shapes with a module's; both may be on the device `meta`.

    Raises:
        UserError: They differ; says which, a few of each kind.
    """
    own = module.state_dict()
    both = [key for key in own if key in state]
    findings = {
        "lacks": [key for key in own if key not in state],
        "has besides": [key for key in state if key not in own],
        "has in another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key in both
            if state[key].shape != own[key].shape
        ],
    }
    if any(findings.values()):
        parts = "; ".join(f"{what} {_some(items)}" for what, items in findings.items() if items)
        raise UserError(f"{source} does not fit {type(module).__name__}: it {parts}", "Is it of another architecture?")


def _some(items: Sequence[str], limit: int = 4) -> str:
    shown = ", ".join(item[:120] for item in items[:limit])  # a stranger's key may be a megabyte long
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read: {error}", "The file is damaged; copy or export it again")
