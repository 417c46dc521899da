"""Uploads on their way in: under random names of the server's own, within a quota, and gone with their visitor."""

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

_AT_ONCE = 8
_ENDINGS = SUFFIXES | {".zip", ".mp4", ".mov", ".webm", ".mkv", ".avi"}
_MAX_SECONDS, _LOOKED_AT_SECONDS = 3600, 15  # the editor of Follow uploads what is painted several times a second
"""Uploads that are older than the first go. Pictures that are older than the second have been looked at: they go where
half the quota of their visitor is used."""


@dataclass(frozen=True)
class Quota:
    """What uploads may take on the disk.

    Attributes:
        bytes, files: Of one visitor.
        all_bytes, all_files: Of all visitors together.
    """

    bytes: int = 512 * 2**20
    files: int = 1000
    all_bytes: int = 2 * 2**30
    all_files: int = 10_000


class UploadStore:
    """Takes uploads and knows whose they are.

    All but the copying happens on the server's one event loop, so nothing here needs a lock.

    Args:
        folder: Where uploads go; made when the first comes.
        quota: What they may take.
    """

    def __init__(self, folder: Path, quota: Quota | None = None) -> None:
        self._folder, self._quota = folder, quota or Quota()
        self._held: dict[str, dict[Path, tuple[int, float]]] = {}  # size and time of arrival
        self._arriving: Counter[str] = Counter()
        self._pages: Counter[str] = Counter()

    @contextlib.contextmanager
    def visit(self, visitor: str) -> Iterator[None]:
        """While a page of a visitor is open; with the last one its uploads go."""
        self._pages[visitor] += 1
        try:
            yield
        finally:
            self._pages[visitor] -= 1
            if not self._pages[visitor]:
                del self._pages[visitor]
                self._remove(visitor)

    async def take(self, request: Request, visitor: str) -> Response:
        """Store the files of a multipart request; the answer is the list of their paths, or a refusal."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return PlainTextResponse("An upload is multipart/form-data", 400)
        self._tidy(visitor)
        arrived = [0]  # bytes
        try:
            body = self._counted(request, visitor, arrived)
            parser = MultiPartParser(request.headers, body, max_files=_AT_ONCE, max_fields=_AT_ONCE)
            form = await parser.parse()
            try:
                files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
                self._check(visitor, len(files))
                return JSONResponse([str(await self._keep(visitor, file)) for file in files])
            finally:
                await form.close()
        except _Full as error:
            return PlainTextResponse(str(error.message), 413)
        except (MultiPartException, FormParserError, ClientDisconnect):
            return PlainTextResponse("This is no upload that can be read", 400)
        finally:
            self._arriving[visitor] -= arrived[0]
            self._arriving += Counter()  # forgets zeros

    async def _counted(self, request: Request, visitor: str, arrived: list[int]) -> AsyncGenerator[bytes, None]:
        """The body, for as long as there is room for it."""
        async for chunk in request.stream():
            arrived[0] += len(chunk)
            self._arriving[visitor] += len(chunk)
            if arrived[0] > MAX_BYTES:
                raise _Full(f"An upload may hold {MAX_BYTES // 2**20} MB")
            self._check(visitor, 1)
            yield chunk

    def _check(self, visitor: str, files: int) -> None:
        """Refuse what is beyond the quota."""
        mine = self._held.get(visitor, {})
        every = [size for each in self._held.values() for size, _ in each.values()]
        if (
            len(mine) + files > self._quota.files
            or sum(size for size, _ in mine.values()) + self._arriving[visitor] > self._quota.bytes
        ):
            raise _Full("You have uploaded too much. Reload the page, which removes it, and go on")
        if (
            len(every) + files > self._quota.all_files
            or sum(every) + self._arriving.total() > self._quota.all_bytes
            or shutil.disk_usage(self._folder.parent).free < 2 * MAX_BYTES
        ):
            raise _Full("There is no room for uploads just now. Try again in a few minutes")

    async def _keep(self, visitor: str, file: UploadFile) -> Path:
        ending = Path(file.filename or "").suffix.lower()
        path = self._folder / f"{secrets.token_hex(16)}{ending if ending in _ENDINGS else ''}"
        await run_in_threadpool(_copy, file.file, path)
        self._held.setdefault(visitor, {})[path] = path.stat().st_size, time.monotonic()
        return path

    def _tidy(self, visitor: str) -> None:
        """Remove what is old or no longer needed."""
        now, mine = time.monotonic(), self._held.get(visitor, {})
        used = max(len(mine) / self._quota.files, sum(size for size, _ in mine.values()) / self._quota.bytes)
        for held in self._held.values():
            for path, (_, since) in [*held.items()]:
                looked_at = held is mine and used > 0.5 and path.suffix in SUFFIXES
                if now - since > (_LOOKED_AT_SECONDS if looked_at else _MAX_SECONDS):
                    path.unlink(missing_ok=True)
                if not path.exists():
                    del held[path]

    def _remove(self, visitor: str) -> None:
        for path in self._held.pop(visitor, {}):
            path.unlink(missing_ok=True)


class _Full(MultiPartException):
    """There is no room; the parser closes what it has begun."""


def _copy(file: Any, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "xb") as out:
        shutil.copyfileobj(file, out)
