"""Names of files that hold one channel each are recognized; others are not."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from uuid import uuid4

import pytest

from opendino.data.channel_file_names import pattern
from opendino.data.image_files import ChannelFiles, image_files
from opendino.data.open_source import open_source
from opendino.data.readers.multi_page_files import Reading


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
    ("form", "channels", "expected"),
    [
        ("{id}_{channel}_UNIQUE.tif", "w1 w2", "{id}_{channel}_*.tif"),
        ("{id}-{channel} [UNIQUE].tif", "w1 w2 w3", "{id}-{channel} *.tif"),
        ("{id}_w{channel}UNIQUE.tif", "1 2 4", "{id}_w{channel}*.tif"),
    ],
)
def test_a_unique_id_after_the_channel_is_any_text(tmp_path: Path, form: str, channels: str, expected: str) -> None:
    files = [name.replace("UNIQUE", str(uuid4()).upper()) for name in names(form, channels)]
    assert pattern(files) == (expected, channels.split(), 4)
    (tmp_path / "plate").mkdir()
    for name in files:
        (tmp_path / name).touch()
    found = image_files(open_source(str(tmp_path)), Reading(), expected)
    assert isinstance(found, ChannelFiles) and found.channels == tuple(channels.split())
    assert [found.key(n) for n in range(len(found))] == [f"plate/A{n:02d}_s1" for n in range(4)]


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
