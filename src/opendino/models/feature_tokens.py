"""Which tokens of a network form the feature of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError


@dataclass(frozen=True)
class Tokens:
    """Concatenated feature: CLS tokens of the last blocks, first to last, then optionally the mean patch token.

    Attributes:
        blocks: Number of last blocks; more than 1 works only with vision transformers.
        mean_patch: Append the mean of the last block's patch tokens.
    """

    blocks: Annotated[int, Meta(ge=1)] = 1
    mean_patch: bool = False

    def __call__(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Images `[B C H W]` → concatenated features `[B D']`, D' = (blocks + mean_patch) · D."""
        if self.blocks == 1 and not self.mean_patch:
            return backbone([images])[0]
        last = backbone.intermediate(images, self.blocks)
        return torch.cat([each.cls for each in last] + [last[-1].patches.mean(1)] * self.mean_patch, dim=1)

    def check(self, backbone: Backbone) -> None:
        """Check that a backbone has these tokens.

        Raises:
            UserError: It has fewer blocks, or its blocks are not accessible.
        """
        depth = backbone.num_layers
        if self.blocks > depth:
            has = f"{depth} blocks" if depth > 1 else "one output that can be used"
            raise UserError(
                f"The last {self.blocks} blocks were asked for and {backbone.name} has {has}", f"Use at most {depth}"
            )

    def of(self, backbone: Backbone) -> str:
        """What they are called in reports, e.g. "CLS of the last 4 blocks" or "global average"."""
        cls = backbone.cls_name + (f" of the last {self.blocks} blocks" if self.blocks > 1 else "")
        return f"{cls} + mean patch" if self.mean_patch else cls


def protocol_for(backbone: Backbone) -> Literal["vits", "vitb", "resnet"]:
    """The protocol of linear classification that DINO used for this kind of backbone."""
    if backbone.num_layers == 1:
        return "resnet"
    return "vitb" if backbone.embed_dim >= 768 else "vits"


def tokens_of(protocol: str, backbone: Backbone) -> list[Tokens]:
    """The kinds of features that a protocol compares: one each of vits, vitb and resnet, several of "grid"."""
    several = Tokens(min(4, backbone.num_layers))
    kinds = {"vits": [several], "vitb": [Tokens(1, mean_patch=True)], "resnet": [Tokens()]}
    return kinds.get(protocol) or list(dict.fromkeys([Tokens(), Tokens(1, mean_patch=True), several]))
