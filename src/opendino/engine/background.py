"""Work that a run need not wait for: one thing at a time, and no error is lost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from opendino.core import log


class BackgroundWriter:
    """A context; what was begun in it is finished when it is left."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "background")
        self._work: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Begin this; first wait for what was begun before, and raise what went wrong in it."""
        self.wait()
        self._work = self._thread.submit(work)

    def check(self) -> None:
        """Raise what has gone wrong by now."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Until all is done; raises what went wrong in it."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            log.warn(f"besides, the last save failed: {failed}")  # the first error is the one to raise
        finally:
            self._thread.shutdown()
