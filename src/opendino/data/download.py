"""Download files of limited size from web servers, with retries and resume."""

from __future__ import annotations

import http.client
import io
import os
import random
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO, BinaryIO

ATTEMPTS = 6
"""Attempts in a row without progress after which a download fails."""
FIRST_WAIT_S = 1.0
"""Seconds before the second attempt, ± 50 % at random; doubled before each further attempt."""
TIMEOUT_S = 30.0
"""Seconds: a transfer fails if no byte arrives, or if it is slower than `LEAST_RATE`, for this time."""
LEAST_RATE = 16 * 1024
"""Bytes per second."""

_CHUNK_BYTES = 2**20
_RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_REQUESTED_WAIT_S = 60.0


class Unreachable(Exception):
    """A file that cannot be downloaded; `str(error)` is the reason, in one line."""


class TooLarge(Unreachable):
    """A file that is larger than allowed, or that never ends."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"it is larger than the limit of {max_bytes / 2**20:,.1f} MiB")


def is_remote(name: str) -> bool:
    """Whether a name is an http or https address."""
    return name.lower().startswith(("http://", "https://"))


def download(url: str, path: Path, max_bytes: int) -> str:
    """Download a file. An interrupted transfer is resumed where it stopped, if the server supports range requests.

    Args:
        url: The address.
        path: The file to write.
        max_bytes: A larger file is refused: before a byte is read if the server says its size, else at this many bytes.

    Returns:
        The validator of the content: its ETag, or else its Last-Modified date; "" if the server sends neither.

    Raises:
        TooLarge: The file has more than `max_bytes`.
        Unreachable: The file is missing or forbidden, or `ATTEMPTS` attempts in a row made no progress.
    """
    with open(path, "wb") as file:
        return _download(url, file, max_bytes)


def download_optional(url: str, max_bytes: int) -> bytes | None:
    """Content of an optional file; None if it is missing, larger than `max_bytes`, or cannot be downloaded."""
    content = io.BytesIO()
    try:
        _download(url, content, max_bytes)
    except Unreachable:
        return None
    return content.getvalue()


def current_validator(url: str, validator: str) -> str:
    """Ask a server for the validator of a file; unchanged if the server no longer has the file.

    Args:
        url: The address.
        validator: What `download` returned.

    Raises:
        OSError, ValueError, http.client.HTTPException: There is no answer.
    """
    try:
        with _open(url, {"If-None-Match" if validator.startswith('"') else "If-Modified-Since": validator}) as answer:
            return _validator(answer.headers)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (304, 404, 410):
            return validator
        raise


def one_line(error: Exception) -> str:
    """The reason of an error in one line."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split())[:200] or type(error).__name__


def _download(url: str, file: BinaryIO, max_bytes: int) -> str:
    failures, most, validator, reason = 0, 0, "", ""  # `most`: bytes of the longest attempt so far
    while failures < ATTEMPTS:
        requested_wait_s = 0.0
        try:
            with _open_rest(url, file, validator) as answer:
                validator = _validator(answer.headers)
                _copy(answer, file, max_bytes)
            return validator
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            wait = error.headers.get("Retry-After", "") if error.headers else ""
            requested_wait_s = min(float(wait), _LONGEST_REQUESTED_WAIT_S) if wait.isdigit() else 0.0
            error.close()
            if error.code == 416:  # the file on the server is now shorter than what we have: start again
                file.truncate(0)
            elif error.code not in _RETRY_STATUS:
                raise Unreachable(reason) from error
        except (ValueError, http.client.InvalidURL) as error:
            raise Unreachable(f"not a valid address: {one_line(error)}") from error
        except (http.client.HTTPException, OSError) as error:
            reason = one_line(error)
        gained = file.seek(0, os.SEEK_END) - most
        # An attempt that gained a MiB or more resets the count: a slow connection may break many times.
        failures = 1 if gained >= _CHUNK_BYTES else failures + 1
        most += max(0, gained)
        if failures < ATTEMPTS:
            jitter = random.SystemRandom().uniform(0.5, 1.5)  # a thousand workers must not retry at the same time
            time.sleep(max(requested_wait_s, FIRST_WAIT_S * 2 ** (failures - 1) * jitter))
    raise Unreachable(f"{reason}, {ATTEMPTS} attempts")


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects to FTP too; urllib itself refuses those to local files. Reads nothing of their bodies."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not is_remote(newurl):
            return None
        fp.close()  # urllib reads the whole body before it follows, which may never end
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    if not is_remote(url):
        raise ValueError(f"'{url}' is not an http or https address")
    request = urllib.request.Request(url, headers={"User-Agent": "opendino"} | headers)
    return urllib.request.build_opener(_HttpRedirects).open(request, timeout=TIMEOUT_S)


def _open_rest(url: str, file: BinaryIO, validator: str) -> http.client.HTTPResponse:
    """Request the bytes that the file lacks, and move to where they belong.

    The validator makes sure that a resumed transfer never mixes two versions of a file.
    """
    have = file.seek(0, os.SEEK_END)
    rest = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
    answer = _open(url, {"Accept-Encoding": "identity"} | rest)
    # 206 continues where we stopped. Any other answer is the whole file: start again.
    if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        file.truncate(file.seek(0))
    return answer


def _copy(answer: http.client.HTTPResponse, file: BinaryIO, max_bytes: int) -> None:
    have = file.tell()
    length = answer.headers.get("Content-Length", "")
    whole = have + int(length) if length.isdigit() else 0
    if whole > max_bytes:
        raise TooLarge(max_bytes)
    since, seen = time.monotonic(), have
    while piece := answer.read1(_CHUNK_BYTES):
        if have + len(piece) > max_bytes:  # no size was stated
            raise TooLarge(max_bytes)
        have += file.write(piece)
        if time.monotonic() - since > TIMEOUT_S:
            if have - seen < LEAST_RATE * TIMEOUT_S:
                raise TimeoutError(f"slower than {LEAST_RATE // 1024} KiB/s")
            since, seen = time.monotonic(), have
    if have < whole:
        raise ConnectionError(f"cut off after {have} of {whole} bytes")


def _validator(headers: Message) -> str:
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")  # weak ETags are not exact
