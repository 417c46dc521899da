"""A first look at a source: how large its images are and whether they can be read at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.cache import Images
from opendino.data.decode import MAX_PIXELS
from opendino.data.workers import each


@dataclass(frozen=True)
class Survey:
    """What a sample of a source looks like.

    Attributes:
        short_side_px: Median shorter side.
        area_px: Mean area.
    """

    short_side_px: int
    area_px: float


def survey(source: Source, max_bad_frac: float, num: int = 32, workers: int = 0) -> Survey:
    """Decode `num` images spread evenly over a source, in `workers` processes.

    Raises:
        UserError: Fewer than two images, or more than `max_bad_frac` of the sample unreadable.
    """
    if len(source) < 2:
        raise UserError(
            f"The set has {len(source)} image; self-distillation needs at least 2 to tell apart",
            "Give a folder with more images, a few hundred to learn something",
        )

    images = Images(source, MAX_PIXELS)

    def look(index: int) -> tuple[int, int] | tuple[str, str]:
        try:
            return images.read(index).shape[:2]
        except BadImage as error:
            return source.key(index), str(error)

    indices = np.unique(np.linspace(0, len(source) - 1, num).round().astype(int)).tolist()
    found = list(each(look, indices, images.hands, min(workers, 4)))  # the largest picture takes a gigabyte
    bad = tuple((key, reason) for key, reason in found if isinstance(key, str) and isinstance(reason, str))
    sizes = np.array([size for size in found if isinstance(size[0], int)])
    if len(bad) > max_bad_frac * len(indices) or len(bad) == len(indices):
        raise UserError(
            f"{len(bad)} of {len(indices)} images looked at cannot be read, e.g. {bad[0][0]}: {bad[0][1]}",
            "Remove or convert them, or raise --max-bad-frac",
        )
    return Survey(int(np.median(sizes.min(1))), float(sizes.prod(1).mean()))
