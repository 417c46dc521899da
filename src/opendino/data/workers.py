"""Data loader workers that survive crashes: when one dies, the stream continues at the same item.

A decoder that hangs or crashes in C code cannot be stopped from Python, so the kernel ends its process: with SIGALRM
from a timer that is set before each image is read, or with SIGSEGV and the like. Shared memory says which image each
worker was reading. That image counts as unreadable from then on, and the item is built again without it. A worker that
was killed from outside (for example by the out-of-memory killer) is replaced, and no image is blamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from opendino.core import log
from opendino.core.errors import BadImage, UserError
from opendino.core.ranges import MOST_PROCESSES, cores
from opendino.data.readers import limits

T = TypeVar("T")

_MAX_DEATHS = 3  # in a row, without an item delivered or an image to blame in between
_PIPE_BYTES = 2**20


class InFlightTracker:
    """Knows which image each worker is reading, and which images have crashed a worker.

    Attributes:
        fatal: Index of an image → why it is never read again.
    """

    def __init__(self) -> None:
        self.fatal: dict[int, str] = {}
        self._current = torch.empty(0, dtype=torch.int64)

    def open(self, workers: int) -> None:
        """Allocate one shared slot for each worker; call it before the workers start."""
        self._current = torch.full((workers,), -1).share_memory_()

    @contextlib.contextmanager
    def on(self, index: int) -> Iterator[None]:
        """Context in which image `index` is read: the worker is ended if that takes longer than `limits.MAX_SECONDS`.

        In the main process there is no timer, because SIGALRM would end the whole run.

        Raises:
            BadImage: The image has crashed a worker before.
        """
        if index in self.fatal:
            raise BadImage(self.fatal[index])
        worker = get_worker_info()
        if worker is None or not hasattr(signal, "setitimer"):
            yield
            return
        self._current[worker.id] = index
        signal.setitimer(signal.ITIMER_REAL, limits.MAX_SECONDS)  # SIGALRM has no handler: it ends the process
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._current[worker.id] = -1

    def record_crashes(self, ended: dict[int, int]) -> str:
        """Mark the images that crashed or hung a worker as fatal.

        Args:
            ended: Worker number → exit code, -n where signal n ended it.

        Returns:
            The signals or exit codes, for a message; "" if no worker ended.
        """
        causes = []
        for worker, code in ended.items():
            index, number = int(self._current[worker]), -code
            name = signal.Signals(number).name if number in set(signal.Signals) else f"exit code {code}"
            causes.append(name)
            if index >= 0 and number == signal.SIGALRM:
                self.fatal[index] = limits.too_slow()
            elif index >= 0 and number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
                self.fatal[index] = f"its decoder crashed ({name})"
        return ", ".join(causes)


def stream(
    dataset: Dataset[Any], in_flight: InFlightTracker, first: int, last: int, workers: int, pin: bool = False
) -> Iterator[Any]:
    """Iterate over items first … last - 1, prefetched by worker processes that are replaced when they die.

    Args:
        dataset: Item n must be a function of n alone, so that it can be built again after a crash.
        in_flight: The tracker that `dataset` enters for each image.
        first, last: The first item, and one past the last.
        workers: Number of worker processes; 0 to build each item in this process when it is requested.
        pin: Whether to copy items to pinned memory, for a fast transfer to a GPU.

    Yields:
        The items in order.

    Raises:
        UserError: Three workers in a row died without delivering an item.
    """
    if workers > MOST_PROCESSES:  # the run may have been started on a larger machine
        log.say(f"Using {MOST_PROCESSES} workers instead of {workers}: this machine has {cores()} cores")
        workers = MOST_PROCESSES
    deaths = 0
    while first < last:
        in_flight.open(workers)
        items = _start(dataset, range(first, last), workers, pin)
        while first < last:
            try:
                item = next(items)
            except (RuntimeError, OSError, EOFError):  # a dead worker can also leave an incomplete message in the pipe
                num_fatal, causes = len(in_flight.fatal), in_flight.record_crashes(_reap(items))
                if not causes:  # no worker died: the error is the dataset's own
                    raise
                deaths = deaths + 1 if len(in_flight.fatal) == num_fatal else 0
                if deaths == _MAX_DEATHS:
                    raise UserError(
                        f"Data loader workers die: {causes}, {deaths} times in a row",
                        "SIGKILL usually means that memory ran out: use fewer --workers",
                    ) from None
                log.warn(f"A data loader worker died ({causes}); restarting the workers at item {first}")
                break  # start new workers, from the item that was not delivered
            first, deaths = first + 1, 0
            yield item


def each(function: Callable[[int], T], indices: Sequence[int], in_flight: InFlightTracker, workers: int) -> Iterator[T]:
    """Map a function over image indices in worker processes; the results come in the order of `indices`.

    Args:
        function: Called with an index; must be a function of the index alone.
        indices: The images.
        in_flight: The tracker that `function` enters for each image.
        workers: Number of worker processes; 0, or a platform without fork, for four threads of this process.

    Raises:
        UserError: Three workers in a row died.
    """
    if not workers or sys.platform != "linux":
        with ThreadPoolExecutor(4) as pool:  # four, because an image of the largest size takes a gigabyte
            yield from pool.map(function, indices)
        return
    chunks = _Chunks(function, indices)
    for chunk in stream(chunks, in_flight, 0, len(chunks), min(workers, len(chunks))):
        yield from chunk


class _Chunks(Dataset[Any]):
    """The results of a few images as one item, because each item costs a message between processes."""

    def __init__(self, function: Callable[[int], Any], indices: Sequence[int], size: int = 8) -> None:
        self._function = function
        self._chunks = [indices[start : start + size] for start in range(0, len(indices), size)]

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, n: int) -> list[Any]:
        return [self._function(index) for index in self._chunks[n]]


def _start(dataset: Dataset[Any], numbers: range, workers: int, pin: bool) -> Any:
    """Start a `DataLoader` over items `numbers`; its iterator."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin,
        collate_fn=_identity,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # DataLoader draws a seed: it must not come from torch's global generator
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,  # fork shares a cache in RAM
    )
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    others = set(multiprocessing.active_children())
    try:
        items = iter(loader)
    except BaseException:  # e.g. too many open files: the workers already started ignore SIGTERM, so kill them
        _kill([process for process in multiprocessing.active_children() if process not in others])
        raise
    if workers:
        # At exit Python sends SIGTERM to workers that are still referenced and waits for them. They ignore SIGTERM.
        weakref.finalize(items, _kill, items._workers)  # pyright: ignore[reportAttributeAccessIssue]
        # torch's SIGCHLD handler raises in the main process at once, even in the middle of a training step. It is not
        # needed: torch also checks its workers while it waits for an item.
        with contextlib.suppress(ValueError):  # not the main thread: torch has not set a handler there either
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        # Enlarge the pipe so that every message fits whole: torch would wait forever for the rest of a message that a
        # dying worker has written half.
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(items._worker_result_queue._writer.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # pyright: ignore
    return items


def _reap(items: Any) -> dict[int, int]:
    """Exit codes of the workers that died, by worker number; if any did, the others are killed, since they may hang."""
    workers = getattr(items, "_workers", [])
    deadline, dead = time.monotonic() + 1.0, {}
    while workers and not dead and time.monotonic() < deadline:  # its pipe closes before its exit code is known
        time.sleep(0.02)
        dead = {number: worker.exitcode for number, worker in enumerate(workers) if worker.exitcode}
    for worker in workers if dead else ():
        worker.kill()
    return dead


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        with contextlib.suppress(ValueError):  # already closed
            worker.kill()


def _identity(item: Any) -> Any:
    return item


def _ignore_signals(_: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach every process of a run; the main process decides when the workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
