"""Converts the input of a student to that of its frozen teacher, which has another normalization or range of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opendino.core.errors import UserError
from opendino.data.readers.multi_page_files import describe
from opendino.models.image_reading import ImageReading


class InputConversion(NamedTuple):
    """Normalized values x of the student become x · scale + shift, clipped to [low, high], for the teacher.

    Attributes:
        scale, shift: float32 `[C 1 1]`.
        low, high: float32 `[C 1 1]`, normalized black and white of the teacher: it has seen no values beyond.
    """

    scale: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Convert `[B C H W]`, in the dtype of the images."""
        scale, shift, low, high = (values.to(images.dtype) for values in self)
        return (images * scale + shift).clamp(low, high)


def input_conversion(
    student: Mapping[str, Any], num_channels: int, teacher: Mapping[str, Any], teacher_channels: int
) -> InputConversion:
    """How to feed a trained teacher with images that are read and normalized for its student.

    A teacher of photographs gets black and white where the student does. A teacher that was trained with a range of
    values, such as 0 to 3000, gets them where its range has them.

    Args:
        student: Preprocessing of the student, see `models.load.Model`.
        num_channels: C, number of channels that its network takes; 1 if each channel is an image of its own.
        teacher: Preprocessing of the teacher.
        teacher_channels: Number of channels that the teacher's network takes.

    Raises:
        UserError: The teacher takes another number of channels, or channels of other names, or the ranges of values
            cannot be compared.
    """
    own, other = ImageReading.of(student), ImageReading.of(teacher)
    if num_channels != teacher_channels:
        separate = ", one at a time" if own.channel_mode == "separate" else ""
        raise UserError(
            f"The images have {describe(own.channel_names)}{separate}, but the teacher takes "
            f"{describe(other.channel_names)}",
            "Choose as many with --channels, or another teacher",
        )
    if num_channels > 1 and _are_named(own) and _are_named(other) and own.names != other.names:
        raise UserError(
            f"The images have {describe(own.names)}, but the teacher takes {describe(other.names)}",
            f"Use --channels {' '.join(other.names)}, or another teacher",
        )
    low, high, other_low, other_high = (torch.tensor([value]) for value in (0.0, 1.0, 0.0, 1.0))
    if own.intensity != other.intensity and not _is_photograph(other):
        ranges = [_range(reading, num_channels) for reading in (own, other)]
        if not all(ranges):
            raise UserError(
                f"The images have the intensity {_shown(own)}, and those of the teacher had {_shown(other)}: values of "
                "one cannot be found in the other",
                f"Add --intensity {_shown(other)}, or choose another teacher",
            )
        (low, high), (other_low, other_high) = (torch.tensor(pairs, dtype=torch.float64).T for pairs in ranges)
    gain, offset = (high - low) / (other_high - other_low), (low - other_low) / (other_high - other_low)
    mean, std, other_mean, other_std = (
        torch.tensor(values[key][:num_channels], dtype=torch.float64)
        for values in (student, teacher)
        for key in ("mean", "std")
    )
    scale, shift = std * gain / other_std, (mean * gain + offset - other_mean) / other_std
    found = (scale, shift, -other_mean / other_std, (1 - other_mean) / other_std)
    return InputConversion(*(values.float()[:, None, None] for values in found))


def _are_named(reading: ImageReading) -> bool:
    return bool(reading.names) and not any(name.isdecimal() for name in reading.names)


def _is_photograph(reading: ImageReading) -> bool:
    return not reading.names and reading.intensity == "full"


def _range(reading: ImageReading, num_channels: int) -> tuple[tuple[float, float], ...]:
    """Values of the files that become black and white, of each channel or once for all; empty if they are not known."""
    if _is_photograph(reading):
        return ((0.0, 255.0),)
    words = reading.intensity
    pairs = () if isinstance(words, str) else tuple(zip(words[::2], words[1::2], strict=True))
    if num_channels == 1:  # which channel of its set an image is, is not known
        pairs = tuple(dict.fromkeys(pairs))
    return pairs if len(pairs) in (1, num_channels) else ()


def _shown(reading: ImageReading) -> str:
    words = reading.intensity
    return words if isinstance(words, str) else " ".join(f"{word:g}" for word in words[:20])
