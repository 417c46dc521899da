"""Checksums of a sample of a source's images, to notice that a checkpoint or cache belongs to other images."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from opendino.core import distributed, log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.subset import evenly_spaced

_NAMES, _CONTENTS, _UNREADABLE = 1000, 32, -1


def sample(source: Source) -> dict[str, Any]:
    """The fingerprint that a checkpoint stores. A copy of the images in another place has the same one.

    Returns:
        {"images": [number of images, checksum of 1000 keys and labels], "contents": [checksums of 32 images]}; the
        sampled images are spaced evenly.
    """
    return {"images": names(source), "contents": _contents(source)}


def names(source: Source) -> list[int]:
    """The number of images, and a checksum of 1000 keys and labels."""
    named = "\n".join(f"{source.key(i)} {source.label(i)}" for i in evenly_spaced(len(source), _NAMES))
    return [len(source), zlib.crc32(named.encode("utf-8", "surrogateescape"))]


def check_same_on_all_ranks(source: Source) -> None:
    """Check that all processes of a run have found the same images (collective).

    Raises:
        UserError: They have not: each scans the folder for itself, and it is changing.
    """
    if distributed.is_distributed():
        found = distributed.all_gather_object([names(source)])
        if any(each != found[0] for each in found):
            raise UserError(
                "The processes of the run have found different images: the folder is changing",
                "Start again when no images arrive, or give a list of paths",
            )


def key_digests(source: Source) -> np.ndarray:
    """64-bit digests of all keys, uint64 `[N]` in the order of the source, to tell which images of a folder are new."""
    digests = (int.from_bytes(_digest(source.key(index)), "little") for index in range(len(source)))
    return np.fromiter(digests, np.uint64, len(source))


def check(
    source: Source,
    then: dict[str, Any],
    when: str,
    hint: str = "Put them back, or start a new run",
    counted: Callable[[], str] = str,
) -> None:
    """Check that a source still holds the same images; warn if a few of them were replaced.

    Args:
        source: The images now.
        then: `sample(source)` from before.
        when: When that was, for the message: "step 3".
        hint: What to do if the images have changed.
        counted: Called if the names differ: says which, for the message.

    Raises:
        UserError: The names differ, or more than half of the sampled images have other content.
    """
    now = sample(source)
    changed = f"The images have changed since {when}"
    if then["images"] != now["images"]:
        raise UserError(f"{changed} ({then['images'][0]:,} then, {len(source):,} now{counted()})", hint)
    pairs = zip(then.get("contents", now["contents"]), now["contents"], strict=True)
    num_other = sum(one != two and _UNREADABLE not in (one, two) for one, two in pairs)
    found = f"{changed}: {num_other} of {len(now['contents'])} looked at have other content under the same name"
    if 2 * num_other > len(now["contents"]):
        raise UserError(found, hint)
    if num_other:
        log.warn(f"{found}; training continues with the changed images")


def whole(source: Source) -> str:
    """A SHA-256 digest, 32 hex characters, of all keys and of the content of 32 images."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.key(index)}\0".encode("utf-8", "surrogatepass"))
    digest.update(str(_contents(source)).encode())
    return digest.hexdigest()[:32]


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _contents(source: Source) -> list[int]:
    """Checksums of 32 evenly spaced images; -1 for unreadable ones."""

    def checksum(index: int) -> int:
        try:
            return source.checksum(index)
        except BadImage:
            return _UNREADABLE

    return [checksum(index) for index in evenly_spaced(len(source), _CONTENTS)]
