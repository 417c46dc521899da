"""Which images a source holds, in a few numbers, with which whatever is kept of it is compared before it is used."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError

_NAMES, _CONTENTS, _UNREADABLE = 1000, 32, -1


def sample(source: Source) -> dict[str, Any]:
    """What a checkpoint remembers of the images: {"images": their number and a checksum of a thousand keys and labels,
    "contents": checksums of 32 images}. A copy of the images elsewhere has the same.
    """
    named = "\n".join(f"{source.key(i)} {source.label(i)}" for i in _spread(len(source), _NAMES))
    checksum = zlib.crc32(named.encode("utf-8", "surrogateescape"))
    return {"images": [len(source), checksum], "contents": _contents(source)}


def check(source: Source, then: dict[str, Any], when: str) -> None:
    """Whether a source holds the images of which `then` is a `sample`; says so if a few were replaced.

    Raises:
        UserError: It does not: other names, or other content under more than half of the names.
    """
    now = sample(source)
    changed, put_back = f"The images have changed since {when}", "Put them back, or start a new run"
    if then["images"] != now["images"]:
        raise UserError(f"{changed} ({then['images'][0]:,} then, {len(source):,} now)", put_back)
    pairs = zip(then.get("contents", now["contents"]), now["contents"], strict=True)
    num_other = sum(one != two and _UNREADABLE not in (one, two) for one, two in pairs)
    found = f"{changed}: {num_other} of {len(now['contents'])} looked at have other content under the same name"
    if 2 * num_other > len(now["contents"]):
        raise UserError(found, put_back)
    if num_other:
        log.warn(f"{found}; training continues with the images as they are now")


def whole(source: Source) -> str:
    """A digest of the keys of all images and of the content of 32."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.key(index)}\0".encode("utf-8", "surrogatepass"))
    digest.update(str(_contents(source)).encode())
    return digest.hexdigest()[:32]


def _contents(source: Source) -> list[int]:
    """Checksums of some images, evenly spaced."""

    def checksum(index: int) -> int:
        try:
            return source.checksum(index)
        except BadImage:
            return _UNREADABLE

    return [checksum(index) for index in _spread(len(source), _CONTENTS)]


def _spread(count: int, num: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, num).round().astype(int)).tolist() if count else []
