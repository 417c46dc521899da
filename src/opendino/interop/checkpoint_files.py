"""Read weight files of other libraries as tensors in plain containers, without executing code from the file."""

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
"""File names of weights in folders of Hugging Face and timm, in order of preference."""
_TRAINING_KEY = re.compile(r"(student|teacher|model_ema|gram_teacher|dino_loss|ibot_patch_loss|koleo_loss)\.")
_DOWNLOAD_AGAIN = "Download or copy it again"


@dataclass(frozen=True)
class Checkpoint:
    """Content of a weight file or folder.

    Attributes:
        path: The file, or the folder with config.json and weights (Hugging Face, timm).
        tree: Tensors in plain containers: a flat state dict, or e.g. `{"student": {…}, "teacher": {…}, "epoch": 100}`.
            An `argparse.Namespace` becomes a dict.
        config: Content of the config.json next to the weights, None if there is none. Flags of the user are added:
            `architecture`, a model name of timm; `num_heads`.
    """

    path: Path
    tree: dict[str, Any]
    config: dict[str, Any] | None = None

    @property
    def networks(self) -> dict[str, dict[str, Tensor]]:
        """State dicts by network, without the prefix `module.`: "teacher" and "student", or one network as "teacher".

        Empty if the file holds no state dict.
        """
        named = {which: self.tree[which] for which in NETWORKS if _is_state(self.tree.get(which))}
        if not named:
            wrapped = next((self.tree[key] for key in ("state_dict", "model") if key in self.tree), self.tree)
            named = _training_networks(wrapped) or {"teacher": wrapped} if _is_state(wrapped) else {}
        return {which: without("module.", state) for which, state in named.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """The state dict of a file with a single network; else empty."""
        networks = self.networks
        return {} if self.tree.keys() & set(NETWORKS) or "student" in networks else networks.get("teacher", {})


@dataclass(frozen=True)
class Imported:
    """An imported checkpoint.

    Attributes:
        networks: "teacher" and "student", or one of them; the first is the default.
        preprocessing: With the keys of `models.load.preprocessing`.
        about: One line that says what the checkpoint was recognized as.
        classifier: Linear layer from features of the default network to classes, if the checkpoint has one.
    """

    networks: dict[str, Backbone]
    preprocessing: dict[str, Any]
    about: str
    classifier: nn.Linear | None = None


def without(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove a prefix from all keys; returns the state dict unchanged if any key does not have it."""
    if not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _training_networks(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Student and teacher of DINOv2's `model_final.rank_0.pth`, whose keys start with their names; else empty.

    Raises:
        UserError: The file holds one rank's shard of FSDP flat parameters, which is not a complete network.
    """
    if any(key.endswith("_flat_param") for key in state):
        raise UserError(
            "The file holds one rank's shard of the weights (FSDP flat parameters)",
            "Use teacher_checkpoint.pth in eval/training_N of the training folder",
        )
    known = [key for key in state if key.startswith(("student.backbone.", "teacher.backbone."))]
    if not known or any(not _TRAINING_KEY.match(key) for key in state):
        return {}
    networks: dict[str, dict[str, Tensor]] = {}
    for which in NETWORKS:
        part = {key: value for key, value in state.items() if key.startswith(f"{which}.")}
        bare = without(f"{which}.", part)
        if bare:
            networks[which] = {key.replace("_fsdp_wrapped_module.", ""): value for key, value in bare.items()}
    return networks


def _is_state(tree: Any) -> bool:
    """Whether it is a state dict: a non-empty dict of names and tensors."""
    return (
        isinstance(tree, dict)
        and len(tree) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tree.items())
    )


def read(path: str | Path) -> Checkpoint:
    """Read a .safetensors file, a file of `torch.save`, or a folder of Hugging Face or timm; detected by content.

    Raises:
        UserError: The file is missing, damaged or holds no weights, or it holds more than tensors and plain containers.
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
        raise UserError(f"'{path}' is a folder without {' or '.join(_WEIGHTS)}", "Give the weights file itself")
    if not (path / "config.json").is_file():
        raise UserError(f"'{path}' holds no config.json", f"Give the weights file itself: {weights}")
    return Checkpoint(path, _file(weights), _config(path / "config.json"))


def _file(path: Path) -> dict[str, Any]:
    """Content of one file, or of all shards named by an index file."""
    try:
        if path.name.endswith(".index.json"):
            parts = sorted(set(_config(path).get("weight_map", {}).values()))
            if not parts or any(Path(part).name != part or not part.endswith(".safetensors") for part in parts):
                raise UserError(f"{path} lists no .safetensors files in its folder", _DOWNLOAD_AGAIN)
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
        raise UserError(f"'{path}' is a damaged .safetensors file: {error}", _DOWNLOAD_AGAIN) from error
    except torch_file.Refused as error:
        raise UserError(f"'{path}' {error}", error.hint or _DOWNLOAD_AGAIN) from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(
            f"'{path}' holds a {type(tree).__name__}, not a dict of weights", "Save the model's state_dict()"
        )
    return tree


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error}", _DOWNLOAD_AGAIN) from error
    if not isinstance(config, dict):
        raise UserError(f"'{path}' is not a model description", _DOWNLOAD_AGAIN)
    return config
