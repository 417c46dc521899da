"""The one loop from images to features: threads read ahead, the network runs on batches, bad images are collected."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.core.progress import track
from opendino.core.ranges import cores
from opendino.data.decode import decode

T = TypeVar("T")
U = TypeVar("U")
Bad = list[tuple[str, str]]
"""(key, reason) of unreadable images."""


@dataclass(frozen=True)
class Encoded(Generic[T, U]):
    """A batch of consecutive images and what the network computed from them.

    Attributes:
        positions: Positions of the readable images in `indices`, ascending.
        images: These images, prepared.
        output: The result of the network for them; None if no image of the batch is readable.
        bad: (key, reason) of the unreadable images.
    """

    positions: list[int]
    images: list[T]
    output: U | None
    bad: Bad


def encode_images(
    source: Source,
    indices: Sequence[int],
    prepare: Callable[[int, np.ndarray], T],
    network: Callable[[list[T]], U],
    batch: int,
    workers: int | None = None,
    within: int | None = None,
) -> Generator[Encoded[T, U], None, None]:
    """Read, decode and prepare images in threads, and run a network on them batch by batch.

    While the network runs, the next batch is prepared. A batch has fewer images where some are unreadable.

    Args:
        source: The images.
        indices: Indices of the images to use, in output order.
        prepare: (position in `indices`, `[H W C]`) → the image as `network` takes it. Runs in threads; may raise
            `BadImage`.
        network: Function of one or more prepared images; see `Model.run` for device and precision.
        batch: Images per batch.
        workers: Number of threads; None for four more than there are cores.
        within: Batches do not cross multiples of this many positions; None: no limit.

    Yields:
        One `Encoded` per batch, in order.
    """

    def load(position: int) -> T:
        return prepare(position, decode(source.read(indices[position]), pixel_format=source.pixel_format))

    section = within or max(1, len(indices))
    loaded = read_ahead(load, len(indices), workers, batch)
    for start in range(0, len(indices), section):
        stop = min(start + section, len(indices))
        for first in range(start, stop, batch):
            positions, images, bad = [], [], []
            for position, found in itertools.islice(loaded, min(batch, stop - first)):
                if isinstance(found, BadImage):
                    bad.append((source.key(indices[position]), str(found)))
                else:
                    positions.append(position)
                    images.append(found)
            yield Encoded(positions, images, network(images) if images else None, bad)


def read_ahead(
    load: Callable[[int], T], num: int, workers: int | None = None, ahead: int = 64
) -> Generator[tuple[int, T | BadImage], None, None]:
    """Call `load` for 0 … num - 1 in threads, and show the progress.

    Args:
        load: May raise `BadImage`, which becomes the result.
        num: Number of calls.
        workers: Number of threads; None for four more than there are cores.
        ahead: Number of calls that run or wait ahead of the last result, if there are not more threads.

    Yields:
        (number, result), in order.
    """

    def load_or_error(number: int) -> T | BadImage:
        try:
            return load(number)
        except BadImage as error:
            return error

    workers = workers or min(32, cores() + 4)
    pool, pending = ThreadPoolExecutor(workers), deque[Future[T | BadImage]]()
    try:
        for number in track(range(num), "images"):
            while len(pending) <= max(ahead, workers) and number + len(pending) < num:
                pending.append(pool.submit(load_or_error, number + len(pending)))
            yield number, pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def check_finite(*features: Tensor) -> None:
    """Check the output of a network.

    Raises:
        UserError: A value is NaN or infinite.
    """
    # In chunks: the mask of a whole table would take a quarter of its memory.
    if not all(part.isfinite().all() for tensor in features for part in tensor.split(2**16)):
        raise UserError(
            "The features of the network are NaN or infinite", "Its weights are broken: use an earlier checkpoint"
        )


def none_readable(num: int, bad: Sequence[tuple[str, str]]) -> UserError:
    """The error for `num` images of which none is readable; `bad` has (key, reason) of one or more."""
    example = f", e.g. {bad[0][0]}: {bad[0][1]}" if bad else ""
    return UserError(
        f"None of the {num} images can be read{example}",
        "Give images of the kind that the model was trained on, and check that they are intact",
    )


def skipped_message(bad: Sequence[tuple[str, str]]) -> str:
    """Message about unreadable images; empty if there are none."""
    return f"{len(bad)} unusable left out, e.g. {bad[0][0]}: {bad[0][1]}" if bad else ""
