"""A small convolutional network for images of about 32 px: the demo and the tests train it in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from opendino.core.contracts import Backbone
from opendino.core.types import Features

_LEAST = 1e-4  # added below the root, whose slope at 0 is infinite


class Conv4(Backbone):
    """The four-block network of few-shot learning (Vinyals et al. 2016), with strides instead of pooling.

    Each block is a 3×3 convolution, batch normalization and ReLU; widths are w, 2w, 4w, 8w at strides 1, 2, 2, 2.
    The features are the square roots of the averages of the channels of the last two blocks, as in Arandjelović and
    Zisserman (2012): averages of activations are like histograms, in which a few large values hide all others.

    Args:
        width: w, channels of the first block; the features have D = 12w.
        in_chans: C, number of input channels.
    """

    cls_name = "global average"

    def __init__(self, *, width: int = 32, in_chans: int = 3) -> None:
        super().__init__()
        self.embed_dim, self.name, self.kwargs = 12 * width, "conv4", {"width": width, "in_chans": in_chans}
        self.in_chans = in_chans
        channels = (in_chans, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for block in range(4):
            stride = 1 if block == 0 else 2
            convolution = nn.Conv2d(channels[block], channels[block + 1], 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels[block + 1]), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*layers)

    def forward(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, tokens: bool = False
    ) -> list[Tensor] | list[Features]:
        """Batches `[B_i C H_i W_i]` → their features `[B_i D]`."""
        assert masks is None, "conv4 takes no masks"
        if tokens:
            return [self.features(batch) for batch in images]
        return [_average(self._maps(batch)) for batch in images]

    def stages(self) -> list[list[str]]:
        """Parameter names of the four blocks."""
        names = [name for name, _ in self.named_parameters()]
        return [[name for name in names if int(name.split(".")[1]) // 3 == block] for block in range(4)]

    def features(self, images: Tensor) -> Features:
        """The features as `cls`; as `patches` those of each position of the last map; no registers."""
        third, fourth = maps = self._maps(images)
        cells = torch.cat([avg_pool2d(third, 2, ceil_mode=True), fourth], 1)  # [B D h w]
        cells = cells.to(torch.promote_types(cells.dtype, torch.float32))
        patches = _root(cells).flatten(2).transpose(1, 2)  # [B h·w D]
        return Features(_average(maps), patches[:, :0], patches, (cells.shape[2], cells.shape[3]))

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Activations of the third and the fourth block, `[B 4w 2h 2w]` and `[B 8w h w]`."""
        third = self.net[:9](images)
        return third, self.net[9:](third)


def _average(maps: Sequence[Tensor]) -> Tensor:
    """Roots of the averages over all positions, `[B D_i H_i W_i]` → `[B ΣD_i]`, float32 at least."""
    wide = torch.promote_types(maps[0].dtype, torch.float32)
    return _root(torch.cat([each.mean((2, 3), dtype=wide) for each in maps], 1))


def _root(activations: Tensor) -> Tensor:
    """Square roots, finite also in their slopes; the activations are not negative."""
    return (activations + _LEAST).sqrt()
