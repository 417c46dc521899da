"""A file or folder of weights from elsewhere, as tensors in plain containers; nothing in it is ever run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.interop import torch_file
from opendino.models.load import DESCRIPTION, NETWORKS

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""What Hugging Face and timm call the weights in a folder, the one to prefer first."""
_TRAINING = re.compile(r"(student|teacher|model_ema|gram_teacher|dino_loss|ibot_patch_loss|koleo_loss)\.")
_AGAIN = "Download or copy it again"


@dataclass(frozen=True)
class Checkpoint:
    """Weights from elsewhere.

    Attributes:
        path: As given: a file, or a folder with config.json and weights (Hugging Face, timm).
        tree: Tensors in plain containers: a flat state dict, or e.g. `{"student": {…}, "teacher": {…}, "epoch": 100}`.
            An `argparse.Namespace` comes as a dict.
        config: config.json beside the weights, None where there is none. What the user says of the architecture is
            added to it: `architecture`, a name of timm's; `num_heads`.
    """

    path: Path
    tree: dict[str, Any]
    config: dict[str, Any] | None = None

    @property
    def networks(self) -> dict[str, dict[str, Tensor]]:
        """State dicts by network, without `module.`: "teacher" and "student" of a file that has them, else its one.

        Empty where the file is of neither kind.
        """
        named = {which: self.tree[which] for which in NETWORKS if _is_state(self.tree.get(which))}
        if not named:
            wrapped = next((self.tree[key] for key in ("state_dict", "model") if key in self.tree), self.tree)
            named = _of_training(wrapped) or {"teacher": wrapped} if _is_state(wrapped) else {}
        return {which: without("module.", state) for which, state in named.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """The one state dict of a file that holds one; else empty."""
        networks = self.networks
        return {} if self.tree.keys() & set(NETWORKS) or "student" in networks else networks.get("teacher", {})


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint.

    Attributes:
        networks: "teacher" and "student", or one of them; the first is the one to use.
        preprocessing: In the form of `models.load.preprocessing`.
        about: One line for people: what it was recognized as.
        classifier: Of the network to use, from its features to classes, if it came with one.
    """

    networks: dict[str, Backbone]
    preprocessing: dict[str, Any]
    about: str
    classifier: nn.Linear | None = None


def without(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with a prefix taken off that all keys share; as it is where they do not."""
    if not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _of_training(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Student and teacher of DINOv2's `model_final.rank_0.pth`, whose keys begin with their names; else nothing.

    Raises:
        UserError: It holds one rank's share of FSDP's flat parameters, from which no network can be made.
    """
    if any(key.endswith("_flat_param") for key in state):
        raise UserError(
            "The file holds one process's share of the weights, flattened by FSDP",
            "Take teacher_checkpoint.pth, which training writes into eval/training_N",
        )
    known = [key for key in state if key.startswith(("student.backbone.", "teacher.backbone."))]
    if not known or any(not _TRAINING.match(key) for key in state):
        return {}
    networks: dict[str, dict[str, Tensor]] = {}
    for which in NETWORKS:
        part = {key: value for key, value in state.items() if key.startswith(f"{which}.")}
        bare = without(f"{which}.", part)
        if bare:
            networks[which] = {key.replace("_fsdp_wrapped_module.", ""): value for key, value in bare.items()}
    return networks


def _is_state(tree: Any) -> bool:
    """Is it a state dict: names and tensors?"""
    return (
        isinstance(tree, dict)
        and len(tree) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tree.items())
    )


def read(path: str | Path) -> Checkpoint:
    """Open a .safetensors file, a file of `torch.save`, or a folder of Hugging Face or timm, by content.

    Raises:
        UserError: No such file, damaged, no weights, or it holds anything but tensors and plain containers.
    """
    path = Path(path).expanduser()
    if not path.exists():
        hint = "Download it first" if "://" in str(path) or ":/" in str(path) else "Give a file or folder of weights"
        raise UserError(f"There is no '{path}'", hint)
    if not path.is_dir():
        config = path.with_name("config.json") if path.name in _WEIGHTS else None
        return Checkpoint(path, _file(path), _config(config) if config and config.is_file() else None)
    if (path / DESCRIPTION).is_file():
        raise UserError(f"'{path}' is a model of opendino already", "Use it as it is")
    weights = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        raise UserError(f"'{path}' is a folder without {' or '.join(_WEIGHTS)}", "Name the file of weights itself")
    if not (path / "config.json").is_file():
        raise UserError(f"'{path}' holds no config.json", f"Name the file itself: {weights}")
    return Checkpoint(path, _file(weights), _config(path / "config.json"))


def _file(path: Path) -> dict[str, Any]:
    """The content of one file, or of the parts that an index names."""
    try:
        if path.name.endswith(".index.json"):
            parts = sorted(set(_config(path).get("weight_map", {}).values()))
            if not parts or any(Path(part).name != part or not part.endswith(".safetensors") for part in parts):
                raise UserError(f"{path} names no .safetensors files beside it", _AGAIN)
            return {key: value for part in parts for key, value in _file(path.with_name(part)).items()}
        with open(path, "rb") as file:
            start = file.read(512)
        if start[8:9] == b"{":
            return safetensors.torch.load_file(path)
        torch_file.check(start)
        tree = torch_file.read(path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"'{path}' is no intact .safetensors file: {error}", _AGAIN) from error
    except torch_file.Refused as error:
        raise UserError(f"'{path}' {error}", error.hint or _AGAIN) from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"'{path}' holds a {type(tree).__name__}, no dict of weights", "Save the model's state_dict()")
    return tree


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error}", _AGAIN) from error
    if not isinstance(config, dict):
        raise UserError(f"'{path}' is no description of a model", _AGAIN)
    return config
