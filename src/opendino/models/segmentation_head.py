"""Save and load a linear segmentation head on patch features: a model folder with `segmentation.safetensors`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from torch import Tensor

from opendino.core.errors import UserError
from opendino.core.ranges import Count
from opendino.models.linear_head import HeadFiles
from opendino.models.load import Model, load

DESCRIPTION = "segmentation.json"
OF_RUN = "head"
"""Folder in a run that fine-tuned a model from masks: the better network and its head."""
_AGAIN = "Train it again: opendino eval segmentation MODEL --train DIR --out FOLDER"
_FILES = HeadFiles("segmentation.safetensors", DESCRIPTION, "segmentation head", _AGAIN)


class _Description(msgspec.Struct, forbid_unknown_fields=True):
    classes: Annotated[list[Annotated[int, Meta(ge=0, le=254)]], Meta(min_length=2, max_length=255)]
    blocks: Count
    names: list[str] = []
    format: Literal[1] = 1
    extra: dict[str, Any] = {}


@dataclass(frozen=True)
class SegmentationHead:
    """A linear classifier of patch features: scores = weight · features + bias.

    Attributes:
        weight: float32 `[K D]`.
        bias: float32 `[K]`.
        classes: The numbers of the K classes in masks, 0 to 254, ascending.
        blocks: Number of last blocks of the network whose patch features are joined.
        measured: How good it is known to be, one line; empty if it was not measured.
        names: What the K classes are called; empty if nobody said.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[int, ...]
    blocks: int
    measured: str = ""
    names: tuple[str, ...] = ()

    def __call__(self, features: Tensor) -> Tensor:
        """Features `[N D]` → scores float32 `[N K]`."""
        return features @ self.weight.T + self.bias


def save(folder: Path, model: Model, head: SegmentationHead, extra: dict[str, Any]) -> None:
    """Write a model folder with network and head: it stays valid if the original run continues.

    Args:
        folder: Created if absent.
        model: The model whose features the head uses.
        head: The head, on any device.
        extra: JSON values to store with it, e.g. its mIoU.
    """
    described = {"classes": head.classes, "blocks": head.blocks, "extra": extra | {"measured": head.measured}}
    described |= {"names": head.names} if head.names else {}
    _FILES.save(folder, model, head.weight, head.bias, described)


def load_head(folder: str | Path) -> tuple[Model, SegmentationHead]:
    """Load model and head on the CPU, from a folder of `save`.

    Raises:
        UserError: The folder holds no head, or its files do not match.
    """
    home = Path(folder).expanduser()
    model = load(home)
    described, weight, bias = _FILES.read(home, _Description)
    num, width = len(described.classes), described.blocks * model.backbone.embed_dim
    if described.blocks > model.backbone.num_layers or weight.shape != (num, width) or bias.shape != (num,):
        raise UserError(
            f"The segmentation head in '{folder}' has weights {list(weight.shape)} and biases {list(bias.shape)} for "
            f"{num} classes and {width} features of the last {described.blocks} blocks",
            _AGAIN,
        )
    if len(described.names) not in (0, num):
        raise UserError(
            f"The segmentation head in '{folder}' has {len(described.names)} names for {num} classes", _AGAIN
        )
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise UserError(f"The segmentation head in '{folder}' holds weights that are NaN or infinite", _AGAIN)
    measured = str(described.extra.get("measured", ""))
    classes, names = tuple(described.classes), tuple(described.names)
    return model, SegmentationHead(weight.float(), bias.float(), classes, described.blocks, measured, names)


def fingerprint(model: Model, head: SegmentationHead) -> str:
    """First 32 hexadecimal digits of the SHA-256 of network, preprocessing and head."""
    digest = hashlib.sha256(f"{model.fingerprint} {head.classes} {head.blocks}".encode())
    for part in (head.weight, head.bias):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
