"""The files of a linear head on a network's features: weights, bias and a description beside the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor

from opendino.core import atomic_write
from opendino.core.errors import UserError
from opendino.models.description import convert
from opendino.models.load import Model, save_backbone

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class HeadFiles:
    """How a kind of head is stored in a model folder.

    Attributes:
        weights: Name of the safetensors file with "weight" and "bias".
        description: Name of the JSON file.
        title: What errors call it.
        again: The command that makes one, for errors.
    """

    weights: str
    description: str
    title: str
    again: str

    def save(self, folder: Path, model: Model, weight: Tensor, bias: Tensor, described: Mapping[str, Any]) -> None:
        """Write a model folder with network and head: it stays valid if the original run continues.

        Args:
            folder: Created if absent.
            model: The model whose features the head uses.
            weight: `[C D]`, on any device.
            bias: `[C]`.
            described: JSON values of the description, without "format".
        """
        kept = model.description.get("extra", {})
        save_backbone(folder, {"teacher": model.backbone}, preprocessing=model.preprocessing, extra=kept)
        state = {"weight": weight.cpu().contiguous(), "bias": bias.cpu().contiguous()}
        atomic_write.write(folder / self.weights, safetensors.torch.save(state, metadata={"format": "pt"}))
        atomic_write.write(folder / self.description, json.dumps({"format": 1, **described}, indent=2) + "\n")

    def read(self, folder: Path, kind: type[T]) -> tuple[T, Tensor, Tensor]:
        """Read description, weight and bias; their shapes are not checked.

        Args:
            folder: A folder of `save`.
            kind: The type of the description.

        Raises:
            UserError: A file is missing or cannot be read.
        """
        try:
            told = json.loads((folder / self.description).read_text(encoding="utf-8"))
            state = safetensors.torch.load_file(folder / self.weights)
            return convert(told, kind, "", self.description), state["weight"], state["bias"]
        except (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError) as error:
            raise UserError(f"The {self.title} in '{folder}' cannot be read: {error}", self.again) from error
