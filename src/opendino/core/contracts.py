"""The seams. Everything behind one of these is final: implemented in one place, never subclassed again."""

from __future__ import annotations

import abc
import zlib
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from opendino.core.types import Clock, Features, StepOutput, Views


class Source(abc.ABC):
    """A finite, indexable set of images. Must be picklable: loader workers get a copy.

    Attributes:
        classes: Names of the classes, empty where the source names none.
        shard_sizes: int64 `[shards]`, number of images in each group of consecutive images that is cheap to read
            together (a shard); their sum is the number of images. Empty for sources with random access.
    """

    classes: tuple[str, ...] = ()
    shard_sizes: np.ndarray = np.zeros(0, np.int64)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def key(self, index: int) -> str:
        """A stable name, unique in the source: a path, or a member's name in its archive."""

    @abc.abstractmethod
    def label(self, index: int) -> int:
        """Index into `classes`, -1 where unknown. Cheap: opens no file."""

    @abc.abstractmethod
    def read(self, index: int) -> bytes | np.ndarray:
        """The encoded file, or an RGB uint8 array `[H W 3]` for images that were never encoded.

        Raises:
            BadImage: The bytes cannot be read (vanished, no permission, not a regular file).
        """

    def checksum(self, index: int) -> int:
        """A number from 0 up that differs where the content of the image does, and is the same for a copy of it.

        Raises:
            BadImage: It cannot be read.
        """
        data = self.read(index)
        return zlib.crc32(data if isinstance(data, bytes) else np.ascontiguousarray(data).data)

    def prefetch(self, indices: np.ndarray) -> None:  # noqa: B027 - most have nothing to prepare
        """A hint that these images will be asked for shortly; returns at once."""


class Backbone(nn.Module, abc.ABC):
    """A network from images to features.

    Attributes:
        embed_dim: D, the width of `Features.cls`.
        name: What rebuilds it: `models.build.backbone(name, **kwargs)`.
        kwargs: The keyword arguments that go with `name`, plain JSON values.
    """

    embed_dim: int
    name: str
    kwargs: dict[str, object]

    @abc.abstractmethod
    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Image features of several batches, each of its own size, in one pass over the weights.

        Args:
            images: Each float `[B_i C H_i W_i]`, normalized.

        Returns:
            Each `[B_i D]`: `Features.cls` of that batch.
        """

    @abc.abstractmethod
    def features(self, images: Tensor) -> Features:
        """All tokens of one batch `[B C H W]`."""

    def stages(self) -> list[list[str]]:
        """Names of its parameters from the input up, for learning rates that differ by depth; all in one if unknown."""
        return [[name for name, _ in self.named_parameters()]]

    def transformer_blocks(self) -> list[nn.Module]:
        """First to last, called one after the other: the units in which memory is saved. Empty where it has none."""
        return []

    def attention(self, images: Tensor) -> Tensor:
        """Self-attention of the last block, `[B heads tokens tokens]`, rows summing to 1; tokens as in the network.

        Raises:
            NotImplementedError: The backbone has no self-attention.
        """
        raise NotImplementedError(f"{self.name} has no self-attention")


class Method(nn.Module, abc.ABC):
    """A student that learns by gradients and a teacher that does not.

    A method's file has three public names: `Config` (a frozen dataclass with `resolved(facts) -> (Config, reasons)`,
    which turns every "auto" into a number and says why), `views(config) -> ViewSpec`, and
    `build(config, make_backbone) -> Method`.

    Attributes:
        student: Has "backbone" and what the method puts on it ("head", "predictor", "classifier"); gets gradients.
        teacher: Has "backbone"; `requires_grad` False throughout. Where it follows the student, it is equal to it at
            step 0, key by key.
        product: The networks that a run leaves behind, the one to use first: ("teacher", "student") where the teacher
            follows the student, ("student",) where it is a frozen one from elsewhere.
        classes: What "classifier" tells apart, where that was brought along by a frozen teacher; else it is what the
            data names.
    """

    student: nn.ModuleDict
    teacher: nn.ModuleDict
    product: ClassVar[tuple[Literal["teacher", "student"], ...]] = ("teacher", "student")
    classes: tuple[str, ...] = ()

    def networks(self) -> dict[str, nn.ModuleDict]:
        """The networks that change while a run trains, by name, the one to use first."""
        both = {"teacher": self.teacher, "student": self.student}
        return {name: both[name] for name in self.product}

    @abc.abstractmethod
    def forward(self, views: Views, clock: Clock) -> StepOutput:
        """Loss and metrics of one batch. Changes no weight and no state that outlives the step.

        But for batch norm's running statistics, which the engine puts back where the step was void.
        """

    def before_step(self, clock: Clock) -> None:
        """After the gradients of an optimizer step are complete, before they are clipped and used."""

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        """After the optimizer's step, once per step however many batches it accumulated.

        Args:
            clock: The clock of the step just done.
            ok: Scalar bool on the device. Where False the step was void (a non-finite loss on some rank) and
                nothing may change. A tensor, so that no host waits for it.
        """
