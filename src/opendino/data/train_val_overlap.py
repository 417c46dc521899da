"""Images given both to train on and to test on: each would find itself, and the accuracy would be too high."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from opendino.core import log
from opendino.core.errors import UsageError
from opendino.data.open_source import absolute, list_paths


def only_in_val(train: tuple[str, Iterable[str]], val: tuple[str, Sequence[str]]) -> list[int]:
    """The images to test on that are not trained on; how many are left out is said once.

    Files are the same if their paths are, with links followed. Other images (in an archive, remote) are the same if
    DATA and key are. Copies of a file are not noticed: `opendino duplicates` finds them.

    Args:
        train: DATA and the keys of the images to train on.
        val: DATA and the keys of the images to test on.

    Returns:
        Positions in the keys of `val`, ascending.

    Raises:
        UsageError: All of them are trained on.
    """
    known = set(_identities(*train))
    kept = [place for place, name in enumerate(_identities(*val)) if name not in known]
    num, shared = len(val[1]), len(val[1]) - len(kept)
    if shared and not kept:
        raise UsageError(
            f"All {num:,} images of --val {val[0]} are in --train {train[0]} too, so each would find itself",
            "Give the same command without --val: images of --train are then held out for the test",
        )
    if shared:
        log.say_once(
            f"{shared:,} of {num:,} images of --val {val[0]} are in --train {train[0]} too: they are not tested on"
        )
    return kept


def only_in_val_at_the_end(train: tuple[str, Iterable[str]], val: tuple[str, Sequence[str]]) -> list[int]:
    """As `only_in_val`, for the end of a run, which stays: if all are trained on, a warning, and none."""
    try:
        return only_in_val(train, val)
    except UsageError as error:
        log.warn(str(error))
        return []


def _identities(data: str, keys: Iterable[str]) -> list[str]:
    paths = list_paths(data, keys)
    if paths and Path(paths[0]).is_absolute():
        return [os.path.realpath(path) for path in paths]
    place = absolute(data)
    return [f"{place}::{path}" for path in paths]
