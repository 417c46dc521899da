"""Do the names of files say that each holds one channel of an image?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from opendino.core.contracts import Source

_CHANNEL = r"[^_\- /]*[A-Za-z][^_\- /]*"
_UNIQUE_ID = r"\[?[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\]?"  # of each file, by the microscope's program
_NAMES = [
    re.compile(
        rf"(?P<id>.*)(?P<before>{before})(?P<channel>{channel})(?P<after>{after})(?P<ending>\.[A-Za-z]+)", re.DOTALL
    )
    for before, channel, after in (
        (r"[_\- ]w", r"\d", _UNIQUE_ID),
        (r"[_\- ]", _CHANNEL, rf"[_ ]{_UNIQUE_ID}"),
        (r"[_\- ]", _CHANNEL, ""),
    )
]
_NAMES_READ = 3_000
_MAX_CHANNELS, _MIN_IMAGES, _MIN_COMPLETE = 12, 3, 0.9


def pattern_of(source: Source) -> tuple[str, list[str], int] | None:
    """See `pattern`, of the first images of a source."""
    return pattern([source.key(index) for index in range(min(len(source), _NAMES_READ))])


def pattern(names: Sequence[str]) -> tuple[str, list[str], int] | None:
    """The pattern that the names suggest, e.g. of `a_DAPI.tif, a_GFP.tif, b_DAPI.tif, b_GFP.tif, …`.

    The channel is the part after the last "_", "-" or space, and has a letter: numbers count frames as often. A unique
    id of the file may follow it, as in `a_w1_9E84F49F-1B25-4E7E-8040-D1BB2D7E73EA.tif` or without the second "_".

    Args:
        names: Paths of files.

    Returns:
        Pattern for --channel-files, names of the channels, and number of images; None if fewer than nine in ten images
        have a file for each of 2 to 12 channels, if there are fewer than 3 images, or if the names differ in form.
    """
    channels, forms = defaultdict[str, set[str]](set), set[str]()
    for name in names:
        match = next(filter(None, (each.fullmatch(name) for each in _NAMES)), None)
        if not match:
            return None
        channels[match["id"]].add(match["channel"])
        after = re.sub(_UNIQUE_ID, "*", match["after"])
        forms.add(f"{{id}}{match['before']}{{channel}}{after}{match['ending']}")
    every = set[str]().union(*channels.values())
    complete = sum(found == every for found in channels.values())
    if len(forms) != 1 or not 2 <= len(every) <= _MAX_CHANNELS:
        return None
    if len(channels) < _MIN_IMAGES or complete < _MIN_COMPLETE * len(channels):
        return None
    return forms.pop(), sorted(every), len(channels)
