"""Background work that training does not wait for: one task at a time, and no exception is lost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from opendino.core import log


class BackgroundWriter:
    """Context manager that runs one task at a time on a thread; leaving it waits for the task to finish."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "background")
        self._future: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Start a task, after waiting for the previous one.

        Raises:
            Exception: The exception of the previous task.
        """
        self.wait()
        self._future = self._thread.submit(work)

    def check(self) -> None:
        """Raise the task's exception if the task has already failed; does not wait."""
        if self._future is not None and self._future.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the task to finish and raise its exception, if any."""
        future, self._future = self._future, None
        if future is not None:
            future.result()

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
            log.warn(f"the last save also failed: {failed}")  # the first error is the one to raise
        finally:
            self._thread.shutdown()
