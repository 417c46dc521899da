"""Images come in order, batch by batch, and the unreadable ones are told apart."""

from __future__ import annotations

import pytest

from opendino.core.errors import BadImage
from opendino.data.sources.toy import ToySource
from opendino.features.image_stream import prefetch_images, skipped_message


def look(place: int) -> int:
    if place == 2:
        raise BadImage("torn")
    return 10 * place


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_every_place_comes_once_in_order(batch: int) -> None:
    source, indices = ToySource(n=20), [3, 5, 8, 9, 11]
    found = list(prefetch_images(source, indices, look, batch))
    assert [pair for readable, _ in found for pair in readable] == [(0, 0), (1, 10), (3, 30), (4, 40)]
    bad = [pair for _, unread in found for pair in unread]
    assert bad == [(source.key(8), "torn")]
    assert all(len(readable) + len(unread) <= batch for readable, unread in found)
    assert skipped_message(bad) == f"1 unreadable left out, e.g. {source.key(8)}: torn"
    assert skipped_message([]) == ""


def test_nothing_asked_is_nothing() -> None:
    assert list(prefetch_images(ToySource(n=3), [], look, 4)) == []
