"""Names of files that hold one channel each are recognized; others are not."""

from __future__ import annotations

from itertools import product

import pytest

from opendino.data.channel_file_names import pattern


def names(form: str, channels: str, images: int = 4) -> list[str]:
    return [
        form.format(id=f"plate/A{n:02d}_s1", channel=channel) for n, channel in product(range(images), channels.split())
    ]


@pytest.mark.parametrize(
    ("form", "channels"),
    [("{id}_{channel}.tif", "DAPI GFP"), ("{id}-{channel}.png", "w1 w2 w3"), ("{id} {channel}.TIFF", "BF DNA SSC")],
)
def test_one_file_per_channel_is_seen(form: str, channels: str) -> None:
    found = pattern(names(form, channels))
    assert found == (form, channels.split(), 4)
    most = names(form, channels, 20)[1:]  # one image lacks a file
    assert pattern(most) == (form, channels.split(), 20)


@pytest.mark.parametrize(
    "others",
    [
        [f"2026-11-01_{n:04d}.jpg" for n in range(40)],
        [f"cat_{n}.jpg" for n in range(40)],
        [f"{kind}/IMG_{n}.jpg" for kind in "ab" for n in range(9)],
        [f"image_{letter}.png" for letter in "abcdef"],
        names("{id}_{channel}.tif", "DAPI"),
        names("{id}_{channel}.tif", "DAPI GFP", images=2),
        [*names("{id}_{channel}.tif", "DAPI GFP"), "overview.tif"],
        [f"n{n}_{word}.jpg" for n, word in enumerate(("red", "blue", "green", "red", "old", "new"))],
        [],
    ],
)
def test_other_names_are_not(others: list[str]) -> None:
    assert pattern(others) is None
