"""Stores uploads under random names and within a quota, and deletes them when their visitor leaves."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from opendino.app.uploads import MAX_BYTES
from opendino.data.decode import SUFFIXES
from opendino.data.source_files import is_image, suffix

_MAX_FILES = 8  # per request
_ENDINGS = SUFFIXES | {".zip", ".csv", ".mp4", ".mov", ".webm", ".mkv", ".avi"}
_MAX_SECONDS, _MAX_IMAGE_SECONDS = 3600, 15
"""Uploads older than the first are deleted. Images are read soon after the upload, so those older than the second are
deleted once half of the visitor's quota is used: the editor of the tab "Video" uploads several per second."""


@dataclass(frozen=True)
class Quota:
    """Limits on the disk use of uploads.

    Attributes:
        bytes, files: Limits per visitor.
        all_bytes, all_files: Limits for all visitors together.
    """

    bytes: int = 512 * 2**20
    files: int = 1000
    all_bytes: int = 2 * 2**30
    all_files: int = 10_000


class UploadStore:
    """Stores uploads and records which visitor each belongs to.

    Everything except copying files runs on the server's single event loop, so no lock is needed.

    Args:
        folder: Folder for uploads; created with the first one.
        quota: Limits on their disk use.
    """

    def __init__(self, folder: Path, quota: Quota | None = None) -> None:
        self._folder, self._quota = folder, quota or Quota()
        self._held: dict[str, dict[Path, tuple[int, float]]] = {}  # visitor → path → (bytes, time of arrival)
        self._arriving: Counter[str] = Counter()  # visitor → bytes of requests in progress
        self._pages: Counter[str] = Counter()  # visitor → open pages

    @contextlib.contextmanager
    def visit(self, visitor: str) -> Iterator[None]:
        """Enter while a page of a visitor is open; when the last one closes, the visitor's uploads are deleted."""
        self._pages[visitor] += 1
        try:
            yield
        finally:
            self._pages[visitor] -= 1
            if not self._pages[visitor]:
                del self._pages[visitor]
                self._remove(visitor)

    async def take(self, request: Request, visitor: str) -> Response:
        """Store the files of a multipart request; the response is the JSON list of their paths, or an error."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return PlainTextResponse("An upload is multipart/form-data", 400)
        self._delete_old(visitor)
        arrived = [0]  # bytes
        try:
            body = self._counted(request, visitor, arrived)
            parser = MultiPartParser(request.headers, body, max_files=_MAX_FILES, max_fields=_MAX_FILES)
            form = await parser.parse()
            try:
                files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
                self._check(visitor, len(files))
                return JSONResponse([str(await self._store(visitor, file)) for file in files])
            finally:
                await form.close()
        except _QuotaExceeded as error:
            return PlainTextResponse(str(error.message), 413)
        except (MultiPartException, FormParserError, ClientDisconnect):
            return PlainTextResponse("The upload cannot be read", 400)
        finally:
            self._arriving[visitor] -= arrived[0]
            self._arriving += Counter()  # drops entries of 0

    async def _counted(self, request: Request, visitor: str, arrived: list[int]) -> AsyncGenerator[bytes, None]:
        """The chunks of the body, until the quota is exceeded."""
        async for chunk in request.stream():
            arrived[0] += len(chunk)
            self._arriving[visitor] += len(chunk)
            if arrived[0] > MAX_BYTES:
                raise _QuotaExceeded(f"The upload is larger than {MAX_BYTES // 2**20} MB")
            self._check(visitor, 1)
            yield chunk

    def _check(self, visitor: str, files: int) -> None:
        """Raise if the visitor or all visitors together would exceed the quota, or if the disk is nearly full."""
        mine = self._held.get(visitor, {})
        every = [size for each in self._held.values() for size, _ in each.values()]
        if (
            len(mine) + files > self._quota.files
            or sum(size for size, _ in mine.values()) + self._arriving[visitor] > self._quota.bytes
        ):
            raise _QuotaExceeded("You have uploaded too much. Reload the page to delete your uploads")
        if (
            len(every) + files > self._quota.all_files
            or sum(every) + self._arriving.total() > self._quota.all_bytes
            or shutil.disk_usage(self._folder.parent).free < 2 * MAX_BYTES
        ):
            raise _QuotaExceeded("The server has no space for uploads. Try again in a few minutes")

    async def _store(self, visitor: str, file: UploadFile) -> Path:
        # of the client's file name only a known suffix is used
        ending = suffix(file.filename or "")
        path = self._folder / f"{secrets.token_hex(16)}{ending if ending in _ENDINGS else ''}"
        await run_in_threadpool(_copy, file.file, path)
        self._held.setdefault(visitor, {})[path] = path.stat().st_size, time.monotonic()
        return path

    def _delete_old(self, visitor: str) -> None:
        """Delete uploads that are too old, and this visitor's images that are no longer needed."""
        now, mine = time.monotonic(), self._held.get(visitor, {})
        used = max(len(mine) / self._quota.files, sum(size for size, _ in mine.values()) / self._quota.bytes)
        for held in self._held.values():
            for path, (_, since) in [*held.items()]:
                spent = held is mine and used > 0.5 and is_image(path.name)
                if now - since > (_MAX_IMAGE_SECONDS if spent else _MAX_SECONDS):
                    path.unlink(missing_ok=True)
                if not path.exists():
                    del held[path]

    def _remove(self, visitor: str) -> None:
        for path in self._held.pop(visitor, {}):
            path.unlink(missing_ok=True)


class _QuotaExceeded(MultiPartException):
    """The quota is exceeded. A MultiPartException, because the parser then closes its temporary files."""


def _copy(file: Any, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "xb") as out:
        shutil.copyfileobj(file, out)
