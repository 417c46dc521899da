"""Files from a web server that may fail, stall, slow down or cut off, and a bounded folder that keeps them.

Whole files are fetched, not the bytes of single images: a shard is read from beginning to end within a short part of an
epoch, one long transfer runs at the speed of the line where ten thousand short ones wait for as many answers, and
stores that bill requests bill one.
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
"""How often a transfer that gets nowhere is tried."""
FIRST_WAIT_S = 1.0
"""Before the second attempt, give or take a half; twice as long before each further one."""
TIMEOUT_S = 30.0
"""Without a byte for so long, or slower than `LEAST_RATE` over so long, a transfer has failed."""
LEAST_RATE = 16 * 1024
"""Bytes a second."""
FORGOTTEN_S = 600.0
"""What could not be fetched is tried again after so long."""
ASK_AGAIN_S = 24 * 3600.0
"""A server is asked again whether a file is still the same after so long, when a run starts."""
LIMIT_GB = 50.0
"""Default of OPENDINO_CACHE_GB."""

_PIECE = 2**20
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class Unreachable(Exception):
    """A file that cannot be had; `str(error)` is the reason, one line."""


def is_remote(name: str) -> bool:
    """Whether a name is an address on a web server."""
    return name.lower().startswith(("http://", "https://"))


def download(url: str, path: Path) -> str:
    """Fetch a file. A transfer that breaks goes on where it broke, if the server can do that.

    Returns:
        What names this content on the server, its ETag or date; "" where it says neither.

    Raises:
        Unreachable: It is not there, may not be read, or `ATTEMPTS` attempts in a row brought nothing new.
    """
    failures, most, reason, state = 0, 0, "", _Transfer()
    with open(path, "wb") as file:
        while failures < ATTEMPTS:
            if failures:
                _wait(failures, state)
            try:
                _take(url, file, state)
                return state.validator
            except urllib.error.HTTPError as error:
                reason = f"the server says {error.code} {error.reason}"
                state.retry_after = error.headers.get("Retry-After", "") if error.headers else ""
                error.close()
                if error.code == 416:  # it has become shorter than what we have
                    file.truncate(0)
                elif error.code not in _TEMPORARY:
                    raise Unreachable(reason) from error
            except (ValueError, http.client.InvalidURL) as error:
                raise Unreachable(f"no address: {_line(error)}") from error
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = _line(error)
            gained = file.seek(0, os.SEEK_END) - most
            failures = 1 if gained >= _PIECE else failures + 1
            most += max(0, gained)
    raise Unreachable(f"{reason}, {ATTEMPTS} attempts")


def small(url: str) -> bytes | None:
    """The content of a small file that may well not be there: then, and whenever it cannot be had, None."""
    path = mmap_table.folder() / f".small-{os.getpid()}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download(url, path)
        return path.read_bytes()
    except (Unreachable, OSError):
        return None
    finally:
        path.unlink(missing_ok=True)


def keep(name: str, make: Callable[[Path], str | None]) -> Path:
    """The file of that name in the folder of kept files; made where it is not there, by one process on the machine.

    A note beside it says whose it is. A file that is not what its note says is discarded, with a line.

    The files used last stay, up to OPENDINO_CACHE_GB (50) and half of the room that the disk has. What could not be
    made is not tried again for ten minutes, by any process.

    Args:
        name: Such as an address.
        make: Writes the file, returns what names its content at its origin; may raise `Unreachable`.

    Raises:
        Unreachable: It could not be made.
    """
    path = _place(name)
    folder, note = path.parent, _note(path)
    if _used(path, name):
        return path
    with mmap_table.locked(path):
        if _used(path, name):
            return path
        if path.exists():
            log.warn(f"the kept copy of {name} is damaged or of something else; it is discarded")
        failed, partial = path.with_suffix(".failed"), path.with_suffix(".partial")
        with contextlib.suppress(OSError):
            if time.time() - failed.stat().st_mtime < FORGOTTEN_S:
                raise Unreachable(failed.read_text("utf-8"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            validator = make(partial) or ""
            note.unlink(missing_ok=True)
            partial.replace(path)
            said = {"name": printable(name), "bytes": path.stat().st_size, "validator": validator}
            atomic_write.write(note, json.dumps(said))
            _make_room(folder, path)
        except (Unreachable, OSError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
                failed.write_text(_line(error), "utf-8")
            log.warn(f"{name} is left out for {FORGOTTEN_S / 60:.0f} minutes: {_line(error)}")
            raise Unreachable(_line(error)) from error
    return path


def stamp(name: str) -> list[int]:
    """A number for the content that a file had when it was fetched; empty where it was not, or has no name there."""
    validator = _said(name).get("validator", "")
    return [zlib.crc32(validator.encode())] if validator else []


def forget_changed(urls: Sequence[str]) -> None:
    """Ask servers whether files fetched a day ago or longer are still what they were; drop those that are not."""
    offline = threading.Event()

    def ask(url: str) -> None:
        said, note = _said(url), _note(_place(url))
        if offline.is_set() or not said.get("validator") or time.time() - note.stat().st_mtime < ASK_AGAIN_S:
            return
        try:
            now = _validator_now(url, said["validator"])
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
            offline.set()  # nobody answers: what was fetched is good enough
            return
        if now != said["validator"]:
            log.say(f"{url} has changed on the server; the kept copy is discarded")
            _place(url).unlink(missing_ok=True)
            said |= {"bytes": -1, "validator": now}
        atomic_write.write(note, json.dumps(said))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, urls))


def _validator_now(url: str, validator: str) -> str:
    """What names the content on the server now; the same where the server no longer has any."""
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


def _place(name: str) -> Path:
    return mmap_table.folder() / "shards" / hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.note")


def _said(name: str) -> dict[str, Any]:
    """What the note beside a kept file says, {} if it is none of this file's."""
    try:
        said = json.loads(_note(_place(name)).read_bytes())
        return said if said["name"] == printable(name) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class _Transfer:
    """What is known of a file from the answers so far."""

    validator = ""  # names this very content, so that a transfer never goes on with another
    retry_after = ""


def _take(url: str, file: BinaryIO, state: _Transfer) -> None:
    """One attempt to get what is missing; returns when the file is whole."""
    have = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"User-Agent": "opendino", "Accept-Encoding": "identity"})
    if have and state.validator:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", state.validator)
    with _opener().open(request, timeout=TIMEOUT_S) as answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
            file.truncate(file.seek(0))
        state.validator = _validator(answer.headers)
        length = answer.headers.get("Content-Length", "")
        whole = have + int(length) if length.isdigit() else None
        since, seen = time.monotonic(), have
        while piece := answer.read1(_PIECE):
            file.write(piece)
            have += len(piece)
            if time.monotonic() - since > TIMEOUT_S:
                if have - seen < LEAST_RATE * TIMEOUT_S:
                    raise TimeoutError(f"slower than {LEAST_RATE // 1024} KiB a second")
                since, seen = time.monotonic(), have
    if whole is not None and have < whole:
        raise ConnectionError(f"cut off after {have} of {whole} bytes")


def _validator(headers: Message) -> str:
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _opener() -> urllib.request.OpenerDirector:
    """For the web alone: whatever a server redirects to, it is no local file and no FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _wait(failures: int, state: _Transfer) -> None:
    asked = float(state.retry_after) if state.retry_after.isdigit() else 0.0
    state.retry_after = ""
    spread = random.SystemRandom().uniform(0.5, 1.5)  # a thousand workers must not all come back at once
    time.sleep(max(min(asked, 60.0), FIRST_WAIT_S * 2 ** (failures - 1) * spread))


def _used(path: Path, name: str) -> bool:
    """Whether the file is there and what its note says; if so it counts as used just now."""
    try:
        if path.stat().st_size != _said(name).get("bytes"):
            return False
        os.utime(path)
    except OSError:
        return False
    return True


def _make_room(folder: Path, newest: Path) -> None:
    kept = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process makes room too
            if not path.suffix and not path.name.startswith("."):
                status = path.stat()
                kept.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in kept)
    limit = min(_limit_bytes(), (total + shutil.disk_usage(folder).free) / 2)
    for _, size, path in sorted(kept):
        if total <= limit:
            break
        if path != newest:
            path.unlink(missing_ok=True)  # who reads from it goes on doing so
            total -= size


def _limit_bytes() -> float:
    text = os.environ.get("OPENDINO_CACHE_GB", "")
    try:
        return float(text or LIMIT_GB) * 1e9
    except ValueError:
        raise UsageError(f"OPENDINO_CACHE_GB is '{text}'", "Set it to a number of gigabytes, e.g. 50") from None


def _line(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split())[:200] or type(error).__name__
