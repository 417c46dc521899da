"""Read and write .safetensors files, and check that weights fit a network."""

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
    """Write the state dict of a network to a .safetensors file, atomically."""
    state, stored = dict[str, Tensor](), set[int]()
    for key, value in network.state_dict().items():
        kept = value.detach().cpu().contiguous()
        if kept.untyped_storage().data_ptr() in stored:  # weights that are tied; safetensors refuses shared memory
            kept = kept.clone()
        stored.add(kept.untyped_storage().data_ptr())
        state[key] = kept
    atomic_write.write(path, safetensors.torch.save(state, metadata={"format": "pt"}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_shapes(path: Path) -> dict[str, Tensor]:
    """Read the shapes of a .safetensors file, as tensors on the device `meta`: only the header is read.

    Raises:
        UserError: The file is damaged.
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
        UserError: A key or shape does not fit; names a few of each kind.
    """
    check_weights(module, state, source)
    module.load_state_dict(dict(state))


def load_foreign_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights of a file: every key and shape must fit, and every value must be finite.

    Raises:
        UserError: Keys or shapes differ, a tensor is integer instead of floating point, or a value is NaN or infinite.
    """
    own = module.state_dict()
    wrong_kind = [key for key in own if key in state and state[key].is_floating_point() != own[key].is_floating_point()]
    if wrong_kind:
        kind = str(state[wrong_kind[0]].dtype).removeprefix("torch.")
        raise UserError(f"{source} holds {wrong_kind[0]} as {kind}", "Save its weights as floating-point numbers")
    load_weights(module, state, source)
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{source} holds numbers in {key} that are not finite (NaN or infinite)", "Use an earlier checkpoint"
            )


def check_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Compare keys and shapes with those of a module; both may be on the device `meta`.

    Raises:
        UserError: They differ; names a few of each kind.
    """
    own = module.state_dict()
    both = [key for key in own if key in state]
    differences = {
        "lacks": [key for key in own if key not in state],
        "also has": [key for key in state if key not in own],
        "has in another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key in both
            if state[key].shape != own[key].shape
        ],
    }
    if any(differences.values()):
        parts = "; ".join(f"{what} {_some(items)}" for what, items in differences.items() if items)
        raise UserError(f"{source} does not fit {type(module).__name__}: it {parts}", "Is it of another architecture?")


def _some(items: Sequence[str], limit: int = 4) -> str:
    shown = ", ".join(item[:120] for item in items[:limit])  # keys of an untrusted file may be very long
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read: {error}", "The file is damaged; copy or export it again")
