"""A network of one channel for images of several: each channel goes through it, and the features are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from opendino.core.contracts import Backbone
from opendino.core.types import Features


class SeparateChannels(Backbone):
    """Applies a network to every channel; D is the number of channels times that of the network.

    Args:
        inner: A network of one channel, D features each.
        channels: C, number of channels of the images.
    """

    def __init__(self, inner: Backbone, channels: int) -> None:
        super().__init__()
        assert inner.in_chans == 1, inner.in_chans
        self.inner, self.in_chans, self.embed_dim = inner, channels, channels * inner.embed_dim
        self.name, self.kwargs, self.cls_name = inner.name, inner.kwargs, inner.cls_name

    def forward(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, tokens: bool = False
    ) -> list[Tensor] | list[Features]:
        """Batches float `[B_i C H_i W_i]` → `[B_i C·D]`."""
        assert masks is None, "training masks the network of one channel"
        if tokens:
            return [self.features(batch) for batch in images]
        found = cast(list[Tensor], self.inner([_one_channel(batch) for batch in images]))
        return [each.unflatten(0, batch.shape[:2]).flatten(1) for each, batch in zip(found, images, strict=True)]

    def features(self, images: Tensor) -> Features:
        """All tokens of a batch `[B C H W]`, those of one position joined over the channels."""
        return _joined(self.inner.features(_one_channel(images)), images)

    @property
    def num_layers(self) -> int:
        """That of the inner network."""
        return self.inner.num_layers

    def intermediate(self, images: Tensor, n: int) -> list[Features]:
        """Tokens of the last `n` layers, joined as by `features`."""
        return [_joined(each, images) for each in self.inner.intermediate(_one_channel(images), n)]

    def attention(self, images: Tensor) -> Tensor:
        """Self-attention of the last block, mean over the channels, `[B heads T T]`."""
        return self.inner.attention(_one_channel(images)).unflatten(0, images.shape[:2]).mean(1)


def network_of(backbone: Backbone) -> Backbone:
    """The network with the weights: that of one channel for `SeparateChannels`, else the backbone itself."""
    return backbone.inner if isinstance(backbone, SeparateChannels) else backbone


def _one_channel(images: Tensor) -> Tensor:
    """`[B C H W]` → `[B·C 1 H W]`."""
    return images.flatten(0, 1)[:, None]


def _joined(found: Features, images: Tensor) -> Features:
    """Tokens of the B·C images of one channel → those of the B images `[B C H W]`, channels side by side."""

    def tokens(each: Tensor) -> Tensor:  # [B·C, N, D] → [B, N, C·D]
        return each.unflatten(0, images.shape[:2]).transpose(1, 2).flatten(2)

    cls = found.cls.unflatten(0, images.shape[:2]).flatten(1)
    return Features(cls, tokens(found.registers), tokens(found.patches), found.grid)
