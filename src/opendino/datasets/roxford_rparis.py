"""Ground truth of revisited Oxford and Paris (Radenovic et al. 2018): `gnd_roxford5k.pkl`, or the same as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opendino.core import safe_pickle
from opendino.core.errors import UserError
from opendino.data.source_files import printable

_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Query:
    """A query image with a landmark, and the database images that show this landmark.

    Attributes:
        name: Name of the image, without its suffix.
        box: Left, top, right, bottom of the landmark in pixels; None for the whole image.
        easy, hard, junk: Positions in `GroundTruth.images`. Junk images show too little of the landmark: they count
            neither as correct nor as wrong.
    """

    name: str
    box: tuple[float, float, float, float] | None
    easy: tuple[int, ...]
    hard: tuple[int, ...]
    junk: tuple[int, ...]


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth of a retrieval dataset.

    Attributes:
        images: Names of the database images, without suffixes.
        queries: The queries.
    """

    images: tuple[str, ...]
    queries: tuple[Query, ...]


def read(path: Path) -> GroundTruth:
    """Read the official pickle, with a parser that runs no code, or the same content as JSON.

    Both hold {"imlist": [name, …], "qimlist": [name, …], "gnd": [{"bbx": [left, top, right, bottom], "easy": [position,
    …], "hard": […], "junk": […]}, …]}, with one entry of gnd for each query.

    Raises:
        UserError: The file does not exist, or its content is different.
    """
    shown = printable(str(path))
    hint = 'Give gnd_roxford5k.pkl, gnd_rparis6k.pkl, or a .json with the same "imlist", "qimlist" and "gnd"'
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(
                f"{shown} has {path.stat().st_size >> 20} MB, too large for a ground truth (at most "
                f"{_MAX_BYTES >> 20} MB)",
                hint,
            )
        content = path.read_bytes()
        return _ground_truth(json.loads(content) if path.suffix.lower() == ".json" else safe_pickle.loads(content))
    except OSError as error:
        raise UserError(f"Cannot read {shown}: {error.strerror}", hint) from error
    except (ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown} is not a valid ground truth: {error}", hint) from error


def _ground_truth(tree: Any) -> GroundTruth:
    if not isinstance(tree, Mapping) or not {"imlist", "qimlist", "gnd"} <= tree.keys():
        raise ValueError("it lacks imlist, qimlist or gnd")
    images, names, entries = (_checked_list(tree[key], key) for key in ("imlist", "qimlist", "gnd"))
    if not images or not names:
        raise ValueError("imlist or qimlist is empty")
    if len(names) != len(entries):
        raise ValueError(f"{len(names)} names in qimlist, {len(entries)} entries in gnd")
    if not all(isinstance(name, str) for name in (*images, *names)):
        raise ValueError("imlist and qimlist must hold names")
    if len(set(images)) < len(images):
        raise ValueError("a name is in imlist twice")
    queries = [_query(name, entry, len(images)) for name, entry in zip(names, entries, strict=True)]
    return GroundTruth(tuple(images), tuple(queries))


def _query(name: str, entry: Any, num_images: int) -> Query:
    if not isinstance(entry, Mapping):
        raise ValueError(f"the entry of {name} in gnd is not a mapping")
    kinds = [_positions(entry.get(kind, ()), f"{kind} of {name}", num_images) for kind in ("easy", "hard", "junk")]
    box = entry.get("bbx")
    if box is not None:
        box = _checked_list(box, f"bbx of {name}")
        if len(box) != 4 or not all(_is_number(side) for side in box) or box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(f"bbx of {name} is not a box: left, top, right, bottom")
        box = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    return Query(name, box, *kinds)


def _positions(value: Any, what: str, num_images: int) -> tuple[int, ...]:
    positions = _checked_list(value, what)
    if not all(_is_number(each) and each == int(each) and 0 <= each < num_images for each in positions):
        raise ValueError(f"{what} must hold positions in imlist, 0 to {num_images - 1}")
    return tuple(dict.fromkeys(int(each) for each in positions))


def _checked_list(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{what} is not a list")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
