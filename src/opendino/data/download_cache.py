"""Keep downloaded files in a cache folder of limited size, shared by all processes of a machine.

Whole shards are downloaded, not single images: an epoch reads a shard completely within a short time, one long
transfer uses the full bandwidth where ten thousand short ones would wait for latency, and stores that bill per request
bill one.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from opendino.core import atomic_write, log
from opendino.core.errors import UsageError
from opendino.data import mmap_table
from opendino.data.download import Unreachable, current_validator, one_line
from opendino.data.source_files import printable

FORGOTTEN_S = 600.0
"""Seconds after which a failed download is tried again."""
ASK_AGAIN_S = 24 * 3600.0
"""Seconds after which a run that starts asks the server whether a downloaded file has changed."""
LIMIT_GB = 50.0
"""Default of OPENDINO_CACHE_GB, the size limit of the cache folder in gigabytes."""


def cached_file(name: str, make: Callable[[Path], str | None]) -> Path:
    """Return a file from the cache folder; if it is missing, one process on the machine creates it.

    A note beside each file has its name, size and validator. A file that does not match its note is discarded, with a
    warning. The least recently used files are deleted when the folder exceeds OPENDINO_CACHE_GB (50), or half of the
    space that the disk would have without it. A file that could not be created is not tried again for ten minutes, by
    any process.

    Args:
        name: Identifies the file, for example its address.
        make: Called with the path to write; returns the validator of the content, or raises `Unreachable`.

    Returns:
        Path of the cached file. Another process may delete it before it is opened.

    Raises:
        Unreachable: The file could not be created.
    """
    path = _cached_path(name)
    folder, note = path.parent, _note_path(path)
    if _is_cached(path, name):
        return path
    with mmap_table.locked(path):
        if _is_cached(path, name):
            return path
        if path.exists():
            log.warn(f"The cached copy of {name} is damaged or of another file; it is discarded")
        failed, partial = path.with_suffix(".failed"), path.with_suffix(".partial")
        with contextlib.suppress(OSError):
            if time.time() - failed.stat().st_mtime < FORGOTTEN_S:
                raise Unreachable(failed.read_text("utf-8"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            validator = make(partial) or ""
            note.unlink(missing_ok=True)
            # Once it has its name, another process may evict it at any moment.
            about = {"name": printable(name), "bytes": partial.stat().st_size, "validator": validator}
            partial.replace(path)
            atomic_write.write(note, json.dumps(about))
            _evict(folder, path)
        except (Unreachable, OSError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
                failed.write_text(one_line(error), "utf-8")
            log.warn(f"{name} is left out for {FORGOTTEN_S / 60:.0f} minutes: {one_line(error)}")
            raise Unreachable(one_line(error)) from error
    return path


def stamp(name: str) -> list[int]:
    """A checksum of the validator of a cached file; empty if the file is not cached or has no validator."""
    validator = _read_note(name).get("validator", "")
    return [zlib.crc32(validator.encode())] if validator else []


def forget_changed(urls: Sequence[str]) -> None:
    """Ask the servers about cached files that were checked more than a day ago; delete those that have changed."""
    offline = threading.Event()

    def ask(url: str) -> None:
        about, note = _read_note(url), _note_path(_cached_path(url))
        if offline.is_set() or not about.get("validator") or time.time() - note.stat().st_mtime < ASK_AGAIN_S:
            return
        try:
            now = current_validator(url, about["validator"])
        except (http.client.HTTPException, OSError, ValueError):
            offline.set()  # no connection: use the cached files, and do not wait for more timeouts
            return
        if now != about["validator"]:
            log.say(f"{url} has changed on the server; the cached copy is discarded")
            _cached_path(url).unlink(missing_ok=True)
            about |= {"bytes": -1, "validator": now}
        atomic_write.write(note, json.dumps(about))  # also resets the time of the last check

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, urls))


def _cached_path(name: str) -> Path:
    return (
        mmap_table.cache_folder() / "shards" / hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    )


def _note_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.note")


def _read_note(name: str) -> dict[str, Any]:
    """The note beside a cached file; {} if it is missing or belongs to another file."""
    try:
        about = json.loads(_note_path(_cached_path(name)).read_bytes())
        return about if about["name"] == printable(name) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_cached(path: Path, name: str) -> bool:
    """Whether the file exists and matches its note; if so, mark it as recently used (by its mtime)."""
    try:
        if path.stat().st_size != _read_note(name).get("bytes"):
            return False
        os.utime(path)
    except OSError:
        return False
    return True


def _evict(folder: Path, newest: Path) -> None:
    """Delete the least recently used files until the folder is within its limit; `newest` stays."""
    cached = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may be deleting files too
            if not path.suffix and not path.name.startswith("."):
                status = path.stat()
                cached.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in cached)
    limit = min(limit_bytes(), (total + shutil.disk_usage(folder).free) / 2)
    for _, size, path in sorted(cached):
        if total <= limit:
            break
        if path != newest:
            path.unlink(missing_ok=True)  # processes that have it open can still read it
            total -= size


def limit_bytes() -> int:
    """Size limit of the cache folder in bytes.

    Raises:
        UsageError: OPENDINO_CACHE_GB is not a number.
    """
    text = os.environ.get("OPENDINO_CACHE_GB", "")
    try:
        return int(float(text or LIMIT_GB) * 1e9)
    except (ValueError, OverflowError):
        raise UsageError(f"OPENDINO_CACHE_GB is '{text}'", "Set it to a number of gigabytes, e.g. 50") from None
