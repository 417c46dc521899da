"""Random numbers of a batch as a pure function of names: a counter-based generator, vectorized over the batch.

A number is a hash of (seed, epoch, image, group, view, augmentation, position). Nothing has a state: a batch does not
depend on earlier ones, and an augmentation that is added, removed or moved changes no number of any other.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of SplitMix64


class Numbers:
    """The random numbers of one augmentation for V views of B images; each call returns the next ones of every view.

    Attributes:
        shape: (V, B).
        image_px: int64 `[B 2]`, (height, width) of each image.
        view_px: (height, width) of the views.
        channels: Number of channels of the images.
    """

    def __init__(
        self, streams: NDArray[np.uint64], image_px: NDArray[np.int64], view_px: tuple[int, int], channels: int
    ) -> None:
        self.shape, self.image_px, self.view_px, self.channels = streams.shape, image_px, view_px, channels
        self._streams, self._used = streams, 0

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        """The next numbers, uniform in [0, 1) with 53 bits: `[V B *shape]`."""
        count = math.prod(shape)
        counters = np.arange(self._used + 1, self._used + 1 + count, dtype=np.uint64) * np.uint64(_GOLDEN)
        self._used += count
        bits = _mix(self._streams[..., None] + counters)  # [V B count]
        return (np.right_shift(bits, 11, out=bits) * 2.0**-53).reshape(*self.shape, *shape)

    def between(self, low: float, high: float) -> NDArray[np.float64]:
        """Uniform in [low, high): `[V B]`."""
        return low + self.uniform() * (high - low)

    def happens(self, p: float) -> NDArray[np.bool_]:
        """True with probability p: `[V B]`."""
        return self.uniform() < p


def image_streams(seed: int, epochs: Iterable[int], images: Iterable[int]) -> NDArray[np.uint64]:
    """Hash of (seed, epoch, image), `[B]`; each number is from 0 to 2^64 - 1."""
    start = _absorb(np.zeros(1, np.uint64), np.array([seed], np.uint64))
    return _absorb(_absorb(start, np.array(list(epochs), np.uint64)), np.array(list(images), np.uint64))


def view_streams(images: NDArray[np.uint64], group: str, views: range) -> NDArray[np.uint64]:
    """Hash of (image stream, group, view), `[V B]`."""
    return _absorb(_absorb(images, _name(group)), np.array(views, np.uint64)[:, None])


def augmentation_streams(views: NDArray[np.uint64], augmentation: str) -> NDArray[np.uint64]:
    """Hash of (view stream, augmentation), `[V B]`: the streams of `Numbers`."""
    return _absorb(views, _name(augmentation))


@functools.cache
def _name(name: str) -> NDArray[np.uint64]:
    """The same 64 bits for a name in every process, `[1]`; Python's own hash of a string is not."""
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u8").astype(np.uint64)


def _absorb(state: NDArray[np.uint64], word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _mix((state ^ word) + np.uint64(_GOLDEN))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea & Flood 2014), in place: a bijection that mixes every bit into all."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x
