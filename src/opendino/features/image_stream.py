"""Read and process images in threads, one batch ahead of the network; unreadable images are collected."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage

T = TypeVar("T")
Bad = list[tuple[str, str]]
"""(key, reason) of unreadable images."""


def prefetch_images(
    source: Source,
    indices: Sequence[int],
    load: Callable[[int], T],
    batch: int,
    workers: int | None = None,
    within: int | None = None,
) -> Iterator[tuple[list[tuple[int, T]], Bad]]:
    """Apply `load` to images batch by batch in threads, prefetching the next batch. Logs progress every 30 s.

    Args:
        source: The images.
        indices: Positions of the images to use.
        load: Position in `indices` → result for that image; may raise `BadImage`.
        batch: Images per batch.
        workers: Number of threads; None for Python's default.
        within: Batches do not cross multiples of this many positions.

    Yields:
        [(position, result)] of the readable images of a batch, in order, and (key, reason) of the unreadable ones.
    """

    def load_or_error(position: int) -> T | BadImage:
        try:
            return load(position)
        except BadImage as error:
            return error

    positions = range(len(indices))
    sections = [positions[start : start + within] for start in positions[::within]] if within else [positions]
    batches = [section[start : start + batch] for section in sections for start in range(0, len(section), batch)]
    began = last_log = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        pending = pool.map(load_or_error, batches[0]) if batches else iter(())
        for current, following in zip(batches, [*batches[1:], range(0)], strict=bool(batches)):
            # Submit the next batch before this one is yielded, so that threads work while the network runs.
            results, pending = list(zip(current, pending, strict=True)), pool.map(load_or_error, following)
            bad = [(source.key(indices[i]), str(found)) for i, found in results if isinstance(found, BadImage)]
            yield [(i, found) for i, found in results if not isinstance(found, BadImage)], bad
            if time.monotonic() - last_log > 30 and following:
                last_log = time.monotonic()
                rate = current.stop / (last_log - began)
                log.say(f"{current.stop:,} of {len(indices):,} images processed, {rate:,.1f}/s")


def skipped_message(bad: Sequence[tuple[str, str]]) -> str:
    """Message about unreadable images; empty if there are none."""
    return f"{len(bad)} unreadable left out, e.g. {bad[0][0]}: {bad[0][1]}" if bad else ""
