"""Do the names of files say that each holds one channel of an image?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

_NAME = re.compile(r"(.*)([_\- ])([^_\- /]*[A-Za-z][^_\- /]*)(\.[A-Za-z]+)", re.DOTALL)
_MAX_CHANNELS, _MIN_IMAGES, _MIN_COMPLETE = 12, 3, 0.9


def pattern(names: Sequence[str]) -> tuple[str, list[str], int] | None:
    """The pattern that the names suggest, e.g. of `a_DAPI.tif, a_GFP.tif, b_DAPI.tif, b_GFP.tif, …`.

    The channel is the part after the last "_", "-" or space, and has a letter: numbers count frames as often.

    Args:
        names: Paths of files.

    Returns:
        Pattern for --channel-files, names of the channels, and number of images; None if fewer than nine in ten images
        have a file for each of 2 to 12 channels, if there are fewer than 3 images, or if the names differ in form.
    """
    channels, forms = defaultdict[str, set[str]](set), set[tuple[str, str]]()
    for name in names:
        match = _NAME.fullmatch(name)
        if not match:
            return None
        image, separator, channel, ending = match.groups()
        channels[image].add(channel)
        forms.add((separator, ending))
    every = set[str]().union(*channels.values())
    complete = sum(found == every for found in channels.values())
    if len(forms) != 1 or not 2 <= len(every) <= _MAX_CHANNELS:
        return None
    if len(channels) < _MIN_IMAGES or complete < _MIN_COMPLETE * len(channels):
        return None
    separator, ending = forms.pop()
    return f"{{id}}{separator}{{channel}}{ending}", sorted(every), len(channels)
