"""The abstract base classes. Subclasses are final: a class that implements one is never subclassed again."""

from __future__ import annotations

import abc
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from opendino.core.errors import UserError
from opendino.core.ranges import Checked
from opendino.core.types import Clock, Facts, Features, PixelFormat, StepOutput, Views, ViewSpec


class Source(abc.ABC):
    """A finite, indexable set of images. Must be picklable: loader workers get a copy.

    Attributes:
        classes: Names of the classes, empty if the source has none.
        folder_classes: Whether `classes` are only the names of sub-folders, which may as well be dates or batches.
        shard_sizes: int64 `[shards]`, number of images in each group of consecutive images that is cheap to read
            together (a shard); their sum is the number of images. Empty for sources with random access.
        pixel_format: Format of the arrays that `read` returns, if it returns arrays.
    """

    classes: tuple[str, ...] = ()
    folder_classes: bool = False
    shard_sizes: np.ndarray = np.zeros(0, np.int64)
    pixel_format: PixelFormat = PixelFormat()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def key(self, index: int) -> str:
        """Stable unique name of an image: its path, or the name of the archive member."""

    @abc.abstractmethod
    def label(self, index: int) -> int:
        """Class of an image as an index into `classes`, -1 if unknown. Must be cheap: opens no file."""

    @abc.abstractmethod
    def read(self, index: int) -> bytes | np.ndarray:
        """The encoded file as bytes, or an array of `pixel_format`, `[H W C]`; by default uint8 RGB.

        Raises:
            BadImage: The file cannot be read (deleted, no permission, not a regular file).
        """

    def checksum(self, index: int) -> int:
        """Checksum (CRC-32, ≥ 0) of an image's content; equal for copies of one image.

        Raises:
            BadImage: The image cannot be read.
        """
        data = self.read(index)
        return zlib.crc32(data if isinstance(data, bytes) else np.ascontiguousarray(data).data)

    def prefetch(self, indices: np.ndarray) -> None:  # noqa: B027 - most sources read files directly
        """Hint that these images will be read soon; starts fetching them in the background and returns at once."""


class Backbone(nn.Module, abc.ABC):
    """A network that computes features of images.

    Attributes:
        embed_dim: D, the width of `Features.cls`.
        name: Architecture; `models.build.backbone(name, **kwargs)` builds the network again.
        kwargs: Keyword arguments for that call, plain JSON values.
        mask_token: float `[1 1 D]`, what `forward` replaces masked patches by; None until `learn_mask_token`.
            Only training needs it: it is in no exported model.
        in_chans: C, number of channels of the images.
        cls_name: What `Features.cls` is called in reports: "CLS" for a token, "global average" for a pooled output.
    """

    in_chans: int = 3
    cls_name: str = "CLS"
    embed_dim: int
    name: str
    kwargs: dict[str, object]
    mask_token: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("mask_token", None)

    @abc.abstractmethod
    def forward(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, tokens: bool = False
    ) -> list[Tensor] | list[Features]:
        """Features of several batches of different image sizes.

        Args:
            images: One float tensor `[B_i C H_i W_i]` per batch, normalized.
            masks: One bool tensor `[B_i N_i]` per batch, True for patches to replace by the mask token, or None for a
                batch without masks. Only after `learn_mask_token`.
            tokens: Whether to return all tokens. Without them some networks compute less.

        Returns:
            One item per batch: its `Features.cls`, `[B_i D]`, or with `tokens` its `Features`.
        """

    @abc.abstractmethod
    def features(self, images: Tensor) -> Features:
        """CLS, register and patch tokens of one batch `[B C H W]`."""

    @property
    def num_layers(self) -> int:
        """Number of layers that `intermediate` gives; 1 if only the output is known."""
        return 1

    def intermediate(self, images: Tensor, n: int) -> list[Features]:
        """Tokens of the last `n` layers, first to last, each after the final norm, for images `[B C H W]`.

        Raises:
            UserError: The network has fewer than `n` layers.
        """
        if n > self.num_layers:
            has = f"{self.num_layers} blocks" if self.num_layers > 1 else "one output that can be used"
            raise UserError(
                f"The last {n} blocks were asked for and {self.name} has {has}", f"Use at most {self.num_layers}"
            )
        return [self.features(images)]

    def learn_mask_token(self) -> None:
        """Add the mask token, which starts at 0; a method whose views have masks calls it when it is built.

        Raises:
            UserError: The network cannot replace patches.
        """
        raise UserError(
            f"The method masks patches, and the network '{self.name}' has none that can be masked",
            "Choose a vision transformer: --backbone vit_tiny/16, vit_small/16 or vit_base/16 (any patch size), or a "
            "ViT of timm",
        )

    def stages(self) -> list[list[str]]:
        """Parameter names per stage, from input to output, for layer-wise learning rates; one stage if not known."""
        return [[name for name, _ in self.named_parameters()]]

    def transformer_blocks(self) -> list[nn.Module]:
        """The transformer blocks in order, the units of activation checkpointing; empty if there are none."""
        return []

    def attention(self, images: Tensor) -> Tensor:
        """Self-attention of the last block, `[B heads tokens tokens]`; rows sum to 1, tokens in the network's order.

        Raises:
            NotImplementedError: The backbone has no self-attention.
        """
        raise NotImplementedError(f"{self.name} has no self-attention")


@dataclass(frozen=True)
class MethodConfig(Checked):
    """Base of the settings of a method.

    A method whose settings may say "auto" also has a `ResolvedConfig(Config)` with narrower types: a run uses that.

    Attributes:
        cures: Kind of collapse → what to change in a run of this method, one line that names its flags; the kinds are
            `engine.collapse_detection.KINDS`. For a kind that is missing, the learning rate is the cure.
        labeled_only: Whether the method trains on labeled images alone; a run leaves the others out.
    """

    cures: ClassVar[Mapping[str, str]] = {}
    labeled_only: ClassVar[bool] = False

    def resolved(self, facts: Facts) -> tuple[MethodConfig, list[str]]:
        """Replace every "auto" by a value; also returns the reasons, one line each."""
        return self, []


class Method(nn.Module, abc.ABC):
    """A training method: a student trained by gradients and, for most methods, a teacher without gradients.

    A method's file has four public names: `Config` (a `MethodConfig`), `VIEWS` (group name → default settings of
    its views, for the flags `--views.GROUP.*`), `views(config, settings) -> ViewSpec`, and
    `build(config, make_backbone) -> Method`.

    Attributes:
        student: Modules "backbone" and the method's own ("head", "predictor", "classifier"); trained by gradients.
        teacher: Module "backbone" and others; `requires_grad` is False. If it is an average of the student, it has the
            same weights at step 0, key by key. Empty for a method without a teacher.
        product: The networks that a run exports, the recommended one first: ("teacher", "student") if the teacher is an
            average of the student, ("student",) if the teacher is a frozen pretrained model or there is none.
        classes: Class names of "classifier" if a frozen teacher defines them; else empty, and the data defines them.
    """

    student: nn.ModuleDict
    teacher: nn.ModuleDict
    product: ClassVar[tuple[Literal["teacher", "student"], ...]] = ("teacher", "student")
    classes: tuple[str, ...] = ()

    def networks(self) -> dict[str, nn.ModuleDict]:
        """The networks that change during training, by name, the recommended one first."""
        both = {"teacher": self.teacher, "student": self.student}
        return {name: both[name] for name in self.product}

    def set_preprocessing(self, preprocessing: Mapping[str, Any]) -> None:
        """Hook after `build`: how images are read and normalized, as it is stored with the model (`models.load.Model`).

        Raises:
            UserError: The method cannot train on such images.
        """

    def head_bytes(self, spec: ViewSpec) -> float:
        """Bytes per image that the heads need in a step, for the estimate of memory; 0 if they see a few rows each."""
        return 0.0

    @abc.abstractmethod
    def forward(self, views: Views, clock: Clock) -> StepOutput:
        """Loss and metrics of one batch. Changes no weights and no state that persists after the step.

        The exception is batch norm's running statistics; the engine restores them after a skipped step.
        """

    def before_step(self, clock: Clock) -> None:
        """Hook before gradient clipping and the optimizer step, when all gradients of the step are complete."""

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        """Hook after the optimizer step; called once per step, also with gradient accumulation.

        Args:
            clock: The clock of the step that has just run.
            ok: Scalar bool on the device. False for a skipped step (a non-finite loss on some rank): nothing may
                change. A tensor, so that the host does not wait for the device.
        """


class Callback:
    """Hooks for your own logging (W&B, MLflow): override what you need. Called on rank 0, on the main thread."""

    def on_step(self, step: int, metrics: dict[str, Any]) -> None:
        """After each step, about once a second for all steps since: `step` steps are done; metrics as metrics.jsonl."""

    def on_evaluate(self, step: int, metrics: dict[str, Any]) -> None:
        """After each online evaluation: its metrics, see `online_eval.OnlineEval`."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """After a checkpoint and the exported model were written to the run's folder."""
