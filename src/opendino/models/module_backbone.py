"""Any `nn.Module` as a `Backbone`: a torchvision network, one of Hugging Face, or your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError, first_line
from opendino.core.types import Features

_PROBE_PX = (32, 64, 224)  # sides that the network is tried with, until one is accepted


class ModuleBackbone(Backbone):
    """A module that maps normalized images `[B C H W]` to features.

    The module may return features `[B D]`, tokens `[B N D]` or a feature map `[B D h w]`, also as the first of several
    outputs or as `last_hidden_state`. The image feature is the mean over tokens or positions.

    Args:
        module: The network, without its classifier.
        name: Its name, see `core.registry`.
        kwargs: The arguments it was built with, plain JSON values; `in_chans` is C, default 3.

    Raises:
        UserError: The module accepts no images of C channels and 32, 64 or 224 px, or returns something else.
    """

    def __init__(self, module: nn.Module, name: str, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.name, self.kwargs = module, name, kwargs
        self.in_chans = int(kwargs.get("in_chans", 3))
        self.embed_dim, self.cls_name = self._probe()

    def forward(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, tokens: bool = False
    ) -> list[Tensor] | list[Features]:
        """Batches float `[B_i C H_i W_i]` → `[B_i D]`, or all tokens; one forward pass per batch.

        Raises:
            UserError: The network has no tokens, and they were asked for.
        """
        assert masks is None, f"{self.name} takes no masks"
        found = [self.features(batch) for batch in images]
        if not tokens:
            return [features.cls for features in found]
        if any(features.grid == (0, 0) for features in found):
            raise UserError(
                f"The method needs tokens, and the network '{self.name}' gives one feature per image",
                "Return tokens [B, N, D] or a map [B, D, h, w], or choose another --backbone, e.g. vit_small/16",
            )
        return found

    def features(self, images: Tensor) -> Features:
        """Features of images `[B C H W]`; a network that returns only `[B D]` has no patches and the grid (0, 0).

        Raises:
            UserError: The module returned something other than features, tokens or a feature map.
        """
        return self._features(self.module(images))

    def _features(self, returned: Any) -> Features:
        output = _tensor(returned)
        if output is not None and output.ndim == 2:
            return Features(output, output[:, None][:, :0], output[:, None][:, :0], (0, 0))
        if output is not None and output.ndim == 4:
            patches = output.flatten(2).transpose(1, 2)  # [B h·w D]
            return Features(patches.mean(1), patches[:, :0], patches, (output.shape[2], output.shape[3]))
        if output is None or output.ndim != 3:
            found = type(returned).__name__ if output is None else f"a tensor {list(output.shape)}"
            raise UserError(
                f"'{self.name}' returns {found}",
                "It must return features [B, D], tokens [B, N, D] or a map [B, D, h, w]",
            )
        side = int(output.shape[1] ** 0.5)  # tokens before the last square number of them are CLS or registers
        extra = output.shape[1] - side * side
        return Features(output.mean(1), output[:, :extra], output[:, extra:], (side, side))

    def _probe(self) -> tuple[int, str]:
        """D, and what the image feature is called."""
        was_training = self.module.training
        self.module.eval()
        output, error = self._tried(self.in_chans)
        if not error:
            self.module.train(was_training)
            found = self._features(output)
            return found.cls.shape[1], "global average" if found.patches.shape[1] else "output"
        if self.in_chans == 3 and not self._tried(1)[1]:
            raise UserError(
                f"'{self.name}' takes images of 1 channel, and these have 3: gray images of 8 bits are read as RGB",
                "Give its first layer 3 input channels; the three of a gray image are equal",
            )
        raise UserError(
            f"'{self.name}' accepts no images of {self.in_chans} channels ({error:.200})", "Give a network for images"
        )

    def _tried(self, channels: int) -> tuple[Any, str]:
        """What the module returns for black images of one of some sizes, or the error for the smallest."""
        weight, errors = next(self.module.parameters(), torch.zeros(())), []
        for side in _PROBE_PX:
            image = torch.zeros(2, channels, side, side, device=weight.device, dtype=weight.dtype)
            try:
                with torch.no_grad():
                    return self.module(image), ""
            except (RuntimeError, ValueError, TypeError, AssertionError) as error:
                errors.append(f"{side} px: {first_line(error)}")
        return None, errors[0]


def from_factory(name: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> Backbone:
    """Build the network of a plug-in.

    Args:
        name: Its name.
        factory: Returns a `Backbone` or any `nn.Module`.
        kwargs: Arguments of the factory.

    Raises:
        UserError: The factory fails, or returns something else.
    """
    try:
        built = factory(**kwargs)
    except TypeError as error:
        raise UserError(f"'{name}' cannot be built with {kwargs or 'no options'}: {first_line(error)}") from error
    if isinstance(built, Backbone):
        built.name, built.kwargs, built.in_chans = name, kwargs, int(kwargs.get("in_chans", built.in_chans))
        return built
    if not isinstance(built, nn.Module):
        raise UserError(f"'{name}' built a {type(built).__name__}", "A backbone's function must return an nn.Module")
    return ModuleBackbone(built, name, kwargs)


def _tensor(output: Any) -> Tensor | None:
    if isinstance(output, dict) or hasattr(output, "last_hidden_state"):
        output = output["last_hidden_state"] if isinstance(output, dict) else output.last_hidden_state
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None
