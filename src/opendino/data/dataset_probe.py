"""A first look at a source: how large its images are and whether they can be read at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.cache import DecodedImages
from opendino.data.decode import MAX_PIXELS
from opendino.data.workers import each


@dataclass(frozen=True)
class DatasetProbe:
    """What a sample of a source looks like.

    Attributes:
        short_side_px: Median shorter side.
        area_px: Mean area.
    """

    short_side_px: int
    area_px: float


def probe_dataset(source: Source, max_bad_frac: float, num: int = 32, workers: int = 0) -> DatasetProbe:
    """Decode about `num` images spread evenly over a source, or over four of its blocks where it has some.

    `workers` processes do it.

    Raises:
        UserError: Fewer than two images, or more than `max_bad_frac` of the sample unreadable.
    """
    if len(source) < 2:
        raise UserError(
            f"The set has {len(source)} image; self-distillation needs at least 2 to tell apart",
            "Give a folder with more images, a few hundred to learn something",
        )

    images = DecodedImages(source, MAX_PIXELS)

    def look(index: int) -> tuple[int, int] | tuple[str, str]:
        try:
            return images.read(index).shape[:2]
        except BadImage as error:
            return source.key(index), str(error)

    indices = _spread(source, num)
    found = list(each(look, indices, images.in_flight, min(workers, 4)))  # the largest picture takes a gigabyte
    bad = tuple((key, reason) for key, reason in found if isinstance(key, str) and isinstance(reason, str))
    sizes = np.array([size for size in found if isinstance(size[0], int)])
    if len(bad) > max_bad_frac * len(indices) or len(bad) == len(indices):
        raise UserError(
            f"{len(bad)} of {len(indices)} images looked at cannot be read, e.g. {bad[0][0]}: {bad[0][1]}",
            "Remove or convert them, or raise --max-bad-frac",
        )
    return DatasetProbe(int(np.median(sizes.min(1))), float(sizes.prod(1).mean()))


def _spread(source: Source, num: int) -> list[int]:
    def evenly(count: int, num: int) -> np.ndarray:
        return np.unique(np.linspace(0, count - 1, num).round().astype(int))

    if len(source.blocks) == 0:
        return evenly(len(source), num).tolist()
    chosen = evenly(len(source.blocks), 4)
    starts = np.cumsum(source.blocks) - source.blocks
    places = [starts[block] + evenly(int(source.blocks[block]), num // len(chosen)) for block in chosen]
    return np.concatenate(places).tolist()
