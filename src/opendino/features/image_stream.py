"""Images looked at in threads, ahead of the network that waits for them; unreadable ones are set aside."""

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
"""(key, reason) of images that could not be read."""


def prefetch_images(
    source: Source,
    indices: Sequence[int],
    look: Callable[[int], T],
    batch: int,
    workers: int | None = None,
    within: int | None = None,
) -> Iterator[tuple[list[tuple[int, T]], Bad]]:
    """Batch by batch what `look` makes of images, the next batch under way meanwhile. Says every half minute how far.

    Args:
        source: Where the images come from.
        indices: Which of them.
        look: Place in `indices` → what is wanted of that image; may raise `BadImage`.
        batch: Images at a time.
        workers: Threads; as many as Python thinks fit where None.
        within: No batch reaches across a multiple of so many places.

    Yields:
        (place, what was made) of the readable ones, in order; and the others.
    """

    def careful(place: int) -> T | BadImage:
        try:
            return look(place)
        except BadImage as error:
            return error

    whole = range(len(indices))
    stretches = [whole[start : start + within] for start in whole[::within]] if within else [whole]
    parts = [stretch[start : start + batch] for stretch in stretches for start in range(0, len(stretch), batch)]
    began = spoke = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        coming = pool.map(careful, parts[0]) if parts else iter(())
        for part, following in zip(parts, [*parts[1:], range(0)], strict=bool(parts)):
            looked, coming = list(zip(part, coming, strict=True)), pool.map(careful, following)
            bad = [(source.key(indices[place]), str(found)) for place, found in looked if isinstance(found, BadImage)]
            yield [(place, found) for place, found in looked if not isinstance(found, BadImage)], bad
            if time.monotonic() - spoke > 30 and following:
                spoke = time.monotonic()
                log.say(f"{part.stop:,} of {len(indices):,} images seen, {part.stop / (spoke - began):,.1f}/s")


def skipped_message(bad: Sequence[tuple[str, str]]) -> str:
    """What to tell people of unreadable images, or nothing."""
    return f"{len(bad)} unreadable left out, e.g. {bad[0][0]}: {bad[0][1]}" if bad else ""
