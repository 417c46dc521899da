"""Download files from web servers with retries and resume, and keep them in a cache folder of limited size.

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
import random
import shutil
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO

from opendino.core import atomic_write, log
from opendino.core.errors import UsageError
from opendino.data import mmap_table
from opendino.data.source_files import printable

ATTEMPTS = 6
"""Attempts in a row without progress after which a download fails."""
FIRST_WAIT_S = 1.0
"""Seconds before the second attempt, ± 50 % at random; doubled before each further attempt."""
TIMEOUT_S = 30.0
"""Seconds: a transfer fails if no byte arrives, or if it is slower than `LEAST_RATE`, for this time."""
LEAST_RATE = 16 * 1024
"""Bytes per second."""
FORGOTTEN_S = 600.0
"""Seconds after which a failed download is tried again."""
ASK_AGAIN_S = 24 * 3600.0
"""Seconds after which a run that starts asks the server whether a downloaded file has changed."""
LIMIT_GB = 50.0
"""Default of OPENDINO_CACHE_GB, the size limit of the cache folder in gigabytes."""

_CHUNK_BYTES = 2**20
_RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)


class Unreachable(Exception):
    """A file that cannot be downloaded; `str(error)` is the reason, in one line."""


def is_remote(name: str) -> bool:
    """Whether a name is an http or https address."""
    return name.lower().startswith(("http://", "https://"))


def download(url: str, path: Path) -> str:
    """Download a file. An interrupted transfer is resumed where it stopped, if the server supports range requests.

    Returns:
        The validator of the content: its ETag, or else its Last-Modified date; "" if the server sends neither.

    Raises:
        Unreachable: The file is missing or forbidden, or `ATTEMPTS` attempts in a row made no progress.
    """
    failures, most, reason, state = 0, 0, "", _Transfer()  # `most`: bytes of the longest attempt so far
    with open(path, "wb") as file:
        while failures < ATTEMPTS:
            if failures:
                _wait(failures, state)
            try:
                _attempt(url, file, state)
                return state.validator
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {error.reason}"
                state.retry_after = error.headers.get("Retry-After", "") if error.headers else ""
                error.close()
                if error.code == 416:  # the file on the server is now shorter than what we have: start again
                    file.truncate(0)
                elif error.code not in _RETRY_STATUS:
                    raise Unreachable(reason) from error
            except (ValueError, http.client.InvalidURL) as error:
                raise Unreachable(f"not a valid address: {_one_line(error)}") from error
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = _one_line(error)
            gained = file.seek(0, os.SEEK_END) - most
            # An attempt that gained a MiB or more resets the count: a slow connection may break many times.
            failures = 1 if gained >= _CHUNK_BYTES else failures + 1
            most += max(0, gained)
    raise Unreachable(f"{reason}, {ATTEMPTS} attempts")


def download_optional(url: str) -> bytes | None:
    """Content of a small optional file; None if it is missing or cannot be downloaded."""
    path = mmap_table.cache_folder() / f".small-{os.getpid()}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download(url, path)
        return path.read_bytes()
    except (Unreachable, OSError):
        return None
    finally:
        path.unlink(missing_ok=True)


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
            partial.replace(path)
            about = {"name": printable(name), "bytes": path.stat().st_size, "validator": validator}
            atomic_write.write(note, json.dumps(about))
            _evict(folder, path)
        except (Unreachable, OSError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
                failed.write_text(_one_line(error), "utf-8")
            log.warn(f"{name} is left out for {FORGOTTEN_S / 60:.0f} minutes: {_one_line(error)}")
            raise Unreachable(_one_line(error)) from error
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
            now = _validator_now(url, about["validator"])
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
            offline.set()  # no connection: use the cached files, and do not wait for more timeouts
            return
        if now != about["validator"]:
            log.say(f"{url} has changed on the server; the cached copy is discarded")
            _cached_path(url).unlink(missing_ok=True)
            about |= {"bytes": -1, "validator": now}
        atomic_write.write(note, json.dumps(about))  # also resets the time of the last check

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, urls))


def _validator_now(url: str, validator: str) -> str:
    """The validator of the content on the server now; unchanged if the server no longer has the file."""
    condition = "If-None-Match" if validator.startswith('"') else "If-Modified-Since"
    request = urllib.request.Request(url, headers={"User-Agent": "opendino", condition: validator})
    try:
        with _opener().open(request, timeout=TIMEOUT_S) as answer:
            return _validator(answer.headers)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (304, 404, 410):
            return validator
        raise


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


class _Transfer:
    """State of a download, from the responses so far."""

    validator = ""  # identifies the content, so that a resumed transfer never mixes two versions of a file
    retry_after = ""


def _attempt(url: str, file: BinaryIO, state: _Transfer) -> None:
    """One attempt to download the missing bytes; returns when the file is complete."""
    have = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"User-Agent": "opendino", "Accept-Encoding": "identity"})
    if have and state.validator:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", state.validator)
    with _opener().open(request, timeout=TIMEOUT_S) as answer:
        # 206 continues where we stopped. Any other answer is the whole file: start again.
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
            file.truncate(file.seek(0))
        state.validator = _validator(answer.headers)
        length = answer.headers.get("Content-Length", "")
        whole = have + int(length) if length.isdigit() else None
        since, seen = time.monotonic(), have
        while piece := answer.read1(_CHUNK_BYTES):
            file.write(piece)
            have += len(piece)
            if time.monotonic() - since > TIMEOUT_S:
                if have - seen < LEAST_RATE * TIMEOUT_S:
                    raise TimeoutError(f"slower than {LEAST_RATE // 1024} KiB/s")
                since, seen = time.monotonic(), have
    if whole is not None and have < whole:
        raise ConnectionError(f"cut off after {have} of {whole} bytes")


def _validator(headers: Message) -> str:
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")  # weak ETags are not exact


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https only, so that a server cannot redirect to a local file or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _wait(failures: int, state: _Transfer) -> None:
    requested = float(state.retry_after) if state.retry_after.isdigit() else 0.0
    state.retry_after = ""
    jitter = random.SystemRandom().uniform(0.5, 1.5)  # a thousand workers must not all retry at the same time
    time.sleep(max(min(requested, 60.0), FIRST_WAIT_S * 2 ** (failures - 1) * jitter))


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
    limit = min(_limit_bytes(), (total + shutil.disk_usage(folder).free) / 2)
    for _, size, path in sorted(cached):
        if total <= limit:
            break
        if path != newest:
            path.unlink(missing_ok=True)  # processes that have it open can still read it
            total -= size


def _limit_bytes() -> float:
    text = os.environ.get("OPENDINO_CACHE_GB", "")
    try:
        return float(text or LIMIT_GB) * 1e9
    except ValueError:
        raise UsageError(f"OPENDINO_CACHE_GB is '{text}'", "Set it to a number of gigabytes, e.g. 50") from None


def _one_line(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split())[:200] or type(error).__name__
