"""A small convolutional network for images of about 32 px: the demo and the tests train it in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from opendino.core.contracts import Backbone
from opendino.core.types import Features


class Conv4(Backbone):
    """The four-block network of few-shot learning (Vinyals et al. 2016), with strides instead of pooling.

    Each block is a 3×3 convolution, batch normalization and ReLU; widths are w, 2w, 4w, 8w at strides 1, 2, 2, 2.

    Args:
        width: w, channels of the first block; the features have D = 8w.
        in_chans: C, number of input channels.
    """

    cls_name = "global average"

    def __init__(self, *, width: int = 32, in_chans: int = 3) -> None:
        super().__init__()
        self.embed_dim, self.name, self.kwargs = 8 * width, "conv4", {"width": width, "in_chans": in_chans}
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
        """Batches `[B_i C H_i W_i]` → globally average-pooled features `[B_i D]`."""
        assert masks is None, "conv4 takes no masks"
        if tokens:
            return [self.features(batch) for batch in images]
        return [self.net(batch).mean((2, 3)) for batch in images]

    def stages(self) -> list[list[str]]:
        """Parameter names of the four blocks."""
        names = [name for name, _ in self.named_parameters()]
        return [[name for name in names if int(name.split(".")[1]) // 3 == block] for block in range(4)]

    def features(self, images: Tensor) -> Features:
        """The global average as `cls`, the positions of the last feature map as `patches`; no registers."""
        feature_map = self.net(images)  # [B D h w]
        patches = feature_map.flatten(2).transpose(1, 2)  # [B h·w D]
        return Features(patches.mean(1), patches[:, :0], patches, (feature_map.shape[2], feature_map.shape[3]))
