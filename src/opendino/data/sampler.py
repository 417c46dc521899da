"""The order in which an epoch visits its images: a function of (seed, epoch) alone.

For sources with random access it is a permutation. For sources with shards, which are cheap to read as a whole, it is a
shuffle that reads from a limited number of shards at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final, overload

import numpy as np
from numpy.random import Generator, Philox

WINDOW = 32
"""Number of shards that are open at a time; their images are mixed with each other."""

_CACHED_PARTS = 3  # parts of an epoch in memory: a batch may lie in two, and a third is prefetched


def permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    """A random permutation of `num` images, int64 `[num]`: a function of (seed, epoch) alone."""
    return Generator(Philox(key=[seed, epoch])).permutation(num)


@final
class Windowed(Sequence[int]):
    """A permutation of the images of shards that reads from at most `window` shards at any position.

    The shards are shuffled, and the images of each are split at random into `window` pieces of equal size. Part t of
    the epoch consists of one piece of each of the shards t, t - 1, … t - window + 1 (modulo the number of shards), and
    is shuffled. So one shard is opened and one is finished from part to part; all parts are mixed equally well, the
    first and the last ones too; and the images of a shard are spread over `window` parts. A set of at most `window`
    shards is shuffled completely.

    Only a few parts are in memory at a time, so a set of a hundred million images needs little of it.

    Args:
        sizes: int64 `[shards]`, number of images in each.
        seed, epoch: The order is a function of these two.
        members: int64 `[sizes.sum()]`, sorted: the indices of the visited images; None if all are visited.
        window: Number of shards open at a time.
    """

    def __init__(
        self, sizes: np.ndarray, seed: int, epoch: int, members: np.ndarray | None = None, window: int = WINDOW
    ) -> None:
        self._key, self._members, self._window = [seed, epoch], members, min(window, len(sizes))
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._shards = permutation(len(sizes), seed, epoch)
        self._sizes = sizes[self._shards]  # [shards], in shuffled order, as all arrays below
        # Sizes are not multiples of `window`. A random shift for each shard decides which of its pieces are larger by
        # one, so that the parts of an epoch have nearly the same size when the shards are small.
        self._shifts = self._generator(0, 1).integers(0, self._window, len(sizes))
        counts = np.zeros(len(sizes), np.int64)  # [parts], images in each; there are as many parts as shards
        for piece in range(self._window):
            counts += np.roll(self._cut(piece + 1) - self._cut(piece), piece)
        self._bounds = np.concatenate([[0], np.cumsum(counts)])
        self._parts: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @overload
    def __getitem__(self, position: int) -> int: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[int]: ...
    def __getitem__(self, position: int | slice) -> int | Sequence[int]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is not in 0 .. {len(self) - 1}")
        part = self.part_of(position)
        return int(self.part(part)[position - self._bounds[part]])

    def part_of(self, position: int) -> int:
        """The number of the part that a position of the epoch lies in."""
        return int(np.searchsorted(self._bounds, position, "right")) - 1

    def part(self, number: int) -> np.ndarray:
        """The images of a part in the order of their visits, int64 `[images]`; `number` is taken modulo the parts."""
        number %= len(self._sizes)
        if number not in self._parts:
            pieces = [self._piece((number - piece) % len(self._sizes), piece) for piece in range(self._window)]
            found = self._generator(number, 3).permutation(np.concatenate(pieces))
            self._parts[number] = found if self._members is None else self._members[found]
            while len(self._parts) > _CACHED_PARTS:
                del self._parts[next(iter(self._parts))]
        return self._parts[number]

    def _piece(self, position: int, piece: int) -> np.ndarray:
        """The images in one piece of the shard at a position of the shuffled shards."""
        shard, size = int(self._shards[position]), int(self._sizes[position])
        low, high = (int(self._cut(cut)[position]) for cut in (piece, piece + 1))
        return self._starts[shard] + self._generator(shard, 2).permutation(size)[low:high]

    def _cut(self, piece: int) -> np.ndarray:
        """Where piece number `piece` of every shard begins, int64 `[shards]`, in a random order of its images."""
        return (piece * self._sizes + self._shifts) // self._window

    def _generator(self, number: int, purpose: int) -> Generator:
        # A counter-based generator: part or shard `number` has random numbers that do not depend on any other.
        return Generator(Philox(key=self._key, counter=[0, number, 0, purpose]))


def epoch_order(
    num: int, shard_sizes: np.ndarray, seed: int, epoch: int, members: np.ndarray | None = None
) -> np.ndarray | Windowed:
    """The order in which an epoch visits its images, each once.

    Args:
        num: Number of images in the source.
        shard_sizes: `Source.shard_sizes`; empty for random access.
        seed, epoch: The order is a function of these two.
        members: Sorted indices of the images to visit; None for all.

    Returns:
        A sequence of image indices: int64 `[num or len(members)]`, or a `Windowed` order if there are shards.
    """
    if len(shard_sizes) == 0:
        order = permutation(num if members is None else len(members), seed, epoch)
        return order if members is None else members[order]
    sizes = np.asarray(shard_sizes, np.int64)
    assert sizes.sum() == num
    if members is not None:
        sizes = np.diff(np.searchsorted(members, np.concatenate([[0], np.cumsum(sizes)])))
    return Windowed(sizes, seed, epoch, members)
