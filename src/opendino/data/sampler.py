"""The order in which an epoch visits its images, a function of (seed, epoch) alone.

Where any image is as near as any other, a permutation. Where images lie in blocks that are cheap to read together
(shards), a shuffle that keeps only some blocks open at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final, overload

import numpy as np
from numpy.random import Generator, Philox

WINDOW = 32
"""Blocks that are open at a time, and hence mixed with each other."""

_REMEMBERED = 3  # parts of an epoch in memory: a batch may lie in two, and a third is prepared


def permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, int64 `[num]`: a function of (seed, epoch) alone."""
    return Generator(Philox(key=[seed, epoch])).permutation(num)


@final
class Windowed(Sequence[int]):
    """A permutation of images in blocks that reads from at most `window` neighboring blocks at any place.

    The blocks are shuffled. Each is cut at random into `window` equal pieces. Part t of the epoch is made of one piece
    of each of the blocks t, t - 1, … t - window + 1, counted round a circle, and is shuffled. So one block is opened
    and one is done with from part to part, in a steady stream; no part is mixed less than another, the first and the
    last ones included; and images of a block are spread over `window` parts. A set of no more blocks than `window` is
    mixed throughout.

    Only the parts in use are in memory, so that it costs nothing to have a hundred million images.

    Args:
        sizes: int64 `[blocks]`, images in each.
        seed, epoch: Decide everything.
        members: Sorted, where not all images are visited: image number of each of the `sizes.sum()` that are.
        window: Blocks open at a time.
    """

    def __init__(
        self, sizes: np.ndarray, seed: int, epoch: int, members: np.ndarray | None = None, window: int = WINDOW
    ) -> None:
        self._key, self._members, self._window = [seed, epoch], members, min(window, len(sizes))
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._blocks = permutation(len(sizes), seed, epoch)
        self._sizes = sizes[self._blocks]  # by place, as all that follows
        # A shift of each block's own decides which of its pieces are larger by one: small blocks differ in when.
        self._shifts = self._chance(0, 1).integers(0, self._window, len(sizes))
        counts = np.zeros(len(sizes), np.int64)
        for piece in range(self._window):
            counts += np.roll(self._cut(piece + 1) - self._cut(piece), piece)
        self._bounds = np.concatenate([[0], np.cumsum(counts)])
        self._parts: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} of {len(self)}")
        part = self.part_of(place)
        return int(self.part(part)[place - self._bounds[part]])

    def part_of(self, place: int) -> int:
        """The number of the part that a place lies in."""
        return int(np.searchsorted(self._bounds, place, "right")) - 1

    def part(self, number: int) -> np.ndarray:
        """The images of a part in their order, int64; parts are counted round a circle."""
        number %= len(self._sizes)
        if number not in self._parts:
            pieces = [self._piece((number - piece) % len(self._sizes), piece) for piece in range(self._window)]
            found = self._chance(number, 3).permutation(np.concatenate(pieces))
            self._parts[number] = found if self._members is None else self._members[found]
            while len(self._parts) > _REMEMBERED:
                del self._parts[next(iter(self._parts))]
        return self._parts[number]

    def _piece(self, place: int, piece: int) -> np.ndarray:
        block, size = int(self._blocks[place]), int(self._sizes[place])
        low, high = (int(self._cut(cut)[place]) for cut in (piece, piece + 1))
        return self._starts[block] + self._chance(block, 2).permutation(size)[low:high]

    def _cut(self, piece: int) -> np.ndarray:
        """Where a piece of every block begins in the block's own order."""
        return (piece * self._sizes + self._shifts) // self._window

    def _chance(self, number: int, purpose: int) -> Generator:
        return Generator(Philox(key=self._key, counter=[0, number, 0, purpose]))


def epoch_order(
    num: int, blocks: np.ndarray, seed: int, epoch: int, members: np.ndarray | None = None
) -> np.ndarray | Windowed:
    """Every image once, in the order of an epoch.

    Args:
        num: Images in the source.
        blocks: `Source.blocks`.
        seed, epoch: Decide the order.
        members: Sorted, where only these are visited.
    """
    if len(blocks) == 0:
        order = permutation(num if members is None else len(members), seed, epoch)
        return order if members is None else members[order]
    sizes = np.asarray(blocks, np.int64)
    assert sizes.sum() == num
    if members is not None:
        sizes = np.diff(np.searchsorted(members, np.concatenate([[0], np.cumsum(sizes)])))
    return Windowed(sizes, seed, epoch, members)
