"""Decode a sample of a source before training: how large its images are, and whether they are readable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.cache import DecodedImages
from opendino.data.decode import MAX_PIXELS
from opendino.data.subset import evenly_spaced
from opendino.data.workers import each

_FEW = 100


@dataclass(frozen=True)
class DatasetProbe:
    """Sizes of the sampled images.

    Attributes:
        short_side_px: Median of the shorter side, in pixels.
        area_px: Mean area, in pixels.
    """

    short_side_px: int
    area_px: float


def probe_dataset(source: Source, max_bad_frac: float, num: int = 32, workers: int = 0) -> DatasetProbe:
    """Decode about `num` images spaced evenly over a source; if it has shards, over four of them.

    Fewer than 100 images are a warning.

    Args:
        source: The images.
        max_bad_frac: Allowed share of unreadable images in the sample, 0 .. 1.
        num: Number of images to decode.
        workers: Number of worker processes, at most 4; 0 to decode in this process.

    Raises:
        UserError: The source has fewer than two images, or more than `max_bad_frac` of the sample is unreadable.
    """
    if len(source) < 2:
        raise UserError(
            f"The set has {len(source)} image; self-distillation needs at least 2",
            "Give a folder with more images; useful features need a few hundred",
        )

    images = DecodedImages(source, MAX_PIXELS)

    def read_size(index: int) -> tuple[int, int] | tuple[str, str]:
        try:
            return images.read(index).shape[:2]
        except BadImage as error:
            return source.key(index), str(error)

    indices = sample_indices(source, num)
    found = list(each(read_size, indices, images.in_flight, min(workers, 4)))  # the largest image takes a gigabyte
    bad = tuple((key, reason) for key, reason in found if isinstance(key, str) and isinstance(reason, str))
    sizes = np.array([size for size in found if isinstance(size[0], int)])
    if len(bad) > max_bad_frac * len(indices) or len(bad) == len(indices):
        raise UserError(
            f"{len(bad)} of {len(indices)} images looked at cannot be read, e.g. {bad[0][0]}: {bad[0][1]}",
            "Remove or convert them, or raise --max-bad-frac",
        )
    if len(source) < _FEW:
        log.warn(
            f"{len(source)} images are too few to learn from. What helps: more images (a few hundred at least), "
            "tiles of large ones (opendino pack DATA --tiles 256 --out TILES), trained weights (--init MODEL)"
        )
    return DatasetProbe(int(np.median(sizes.min(1))), float(sizes.prod(1).mean()))


def sample_indices(source: Source, num: int) -> list[int]:
    """About `num` indices spaced evenly over a source; if it has shards, over four of them."""
    if len(source.shard_sizes) == 0:
        return evenly_spaced(len(source), num)
    # Few shards, because each one that is touched may have to be downloaded.
    shards = evenly_spaced(len(source.shard_sizes), 4)
    starts = np.cumsum(source.shard_sizes) - source.shard_sizes
    each = num // len(shards)
    return [
        int(starts[shard]) + index for shard in shards for index in evenly_spaced(int(source.shard_sizes[shard]), each)
    ]
