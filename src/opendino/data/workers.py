"""Processes that read images ahead, and what happens when one dies: the stream goes on where it was.

A decoder that hangs or crashes inside C code listens to nobody, so it is the kernel that ends its process: by a timer,
set before each image is read, or for a forbidden access. Which image that was stands in memory that the processes
share. It is unreadable from then on, and the item is made anew. A process that was killed from outside costs nothing
but the time to start another.
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
from opendino.data import decode

T = TypeVar("T")

_STARTS = 3  # without an item or a culprit in between
_PIPE_BYTES = 2**20


class InFlightTracker:
    """What each process has in hands, and the images that ended one.

    Attributes:
        fatal: index → reason.
    """

    def __init__(self) -> None:
        self.fatal: dict[int, str] = {}
        self._held = torch.empty(0, dtype=torch.int64)

    def open(self, workers: int) -> None:
        """Before that many processes start."""
        self._held = torch.full((workers,), -1).share_memory_()

    @contextlib.contextmanager
    def on(self, index: int) -> Iterator[None]:
        """Entered while an image is read. In the main process there is no timer: its end would be the run's.

        Raises:
            BadImage: It has ended a process.
        """
        if index in self.fatal:
            raise BadImage(self.fatal[index])
        worker = get_worker_info()
        if worker is None or not hasattr(signal, "setitimer"):
            yield
            return
        self._held[worker.id] = index
        signal.setitimer(signal.ITIMER_REAL, decode.MAX_SECONDS)  # nobody handles SIGALRM: it ends the process
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._held[worker.id] = -1

    def record_crashes(self, ended: dict[int, int]) -> str:
        """Settle what processes left when they ended.

        Args:
            ended: Process → exit code.

        Returns:
            What happened, for people.
        """
        said = []
        for worker, code in ended.items():
            index, number = int(self._held[worker]), -code
            name = signal.Signals(number).name if number in set(signal.Signals) else f"exit code {code}"
            said.append(name)
            if index >= 0 and number == signal.SIGALRM:
                self.fatal[index] = decode.too_slow()
            elif index >= 0 and number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
                self.fatal[index] = f"its decoder crashed ({name})"
        return ", ".join(said)


def stream(
    dataset: Dataset[Any], hands: InFlightTracker, first: int, last: int, workers: int, pin: bool = False
) -> Iterator[Any]:
    """Items first … last - 1, made ahead by `workers` processes (0: by this one, when asked for).

    Args:
        dataset: Item n must be a function of n alone.
        hands: Of the images that it reads.
        first, last: The first item and the one after the last.
        workers: Number of processes.
        pin: Whether items go on to a GPU.

    Raises:
        UserError: Processes die again and again.
    """
    if workers > MOST_PROCESSES:  # a run that was begun on a larger machine
        log.say(f"workers = {MOST_PROCESSES} in place of {workers}: this machine has {cores()} cores")
        workers = MOST_PROCESSES
    deaths = 0
    while first < last:
        hands.open(workers)
        items = _started(dataset, range(first, last), workers, pin)
        while first < last:
            try:
                item = next(items)
            except (RuntimeError, OSError, EOFError):  # a dead process leaves torn messages too
                known, said = len(hands.fatal), hands.record_crashes(_buried(items))
                if not said:
                    raise
                deaths = deaths + 1 if len(hands.fatal) == known else 0
                if deaths == _STARTS:
                    raise UserError(
                        f"The processes that read images die: {said}, {deaths} times in a row",
                        "SIGKILL is most often a lack of memory: use fewer --workers",
                    ) from None
                log.warn(f"a process that reads images has died ({said}); starting anew at item {first}")
                break
            first, deaths = first + 1, 0
            yield item


def each(look: Callable[[int], T], indices: Sequence[int], hands: InFlightTracker, workers: int) -> Iterator[T]:
    """What `look` makes of each image, in order, by `workers` processes; by threads where there are none or no fork."""
    if not workers or sys.platform != "linux":
        with ThreadPoolExecutor(4) as pool:  # a picture of the largest size takes a gigabyte
            yield from pool.map(look, indices)
        return
    parts = _Looks(look, indices)
    for part in stream(parts, hands, 0, len(parts), min(workers, len(parts))):
        yield from part


class _Looks(Dataset[Any]):
    """A few images an item, since each item costs a message."""

    def __init__(self, look: Callable[[int], Any], indices: Sequence[int], size: int = 8) -> None:
        self._look, self._parts = look, [indices[start : start + size] for start in range(0, len(indices), size)]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, n: int) -> list[Any]:
        return [self._look(index) for index in self._parts[n]]


def _started(dataset: Dataset[Any], numbers: range, workers: int, pin: bool) -> Any:
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin,
        collate_fn=_as_is,
        worker_init_fn=_deaf,
        generator=torch.Generator(),  # its own, so that making an iterator leaves the global stream alone
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,  # shares a cache in RAM
    )
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    others = set(multiprocessing.active_children())
    try:
        items = iter(loader)
    except BaseException:  # e.g. no descriptor is left for the next one: those that were started hear no SIGTERM
        _end([process for process in multiprocessing.active_children() if process not in others])
        raise
    if workers:
        # Whatever still holds on to them when Python ends, which would wait for them for ever: they hear no SIGTERM.
        weakref.finalize(items, _end, items._workers)  # pyright: ignore[reportAttributeAccessIssue]
        # torch would have the death of a process raise wherever the main one is, in the middle of a step too. It also
        # looks by itself when it waits for an item.
        with contextlib.suppress(ValueError):  # only the main thread may, and only there torch has
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        # Room for all messages that can be on their way: one half written by a dead process would be waited for.
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(items._worker_result_queue._writer.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # pyright: ignore
    return items


def _buried(items: Any) -> dict[int, int]:
    """The exit codes of those that died; the others, which may hang, are ended too."""
    workers = getattr(items, "_workers", [])
    last, dead = time.monotonic() + 1.0, {}
    while workers and not dead and time.monotonic() < last:  # its connections go before it does
        time.sleep(0.02)
        dead = {number: worker.exitcode for number, worker in enumerate(workers) if worker.exitcode}
    for worker in workers if dead else ():
        worker.kill()
    return dead


def _end(workers: list[Any]) -> None:
    for worker in workers:
        with contextlib.suppress(ValueError):  # closed long ago
            worker.kill()


def _as_is(item: Any) -> Any:
    return item


def _deaf(_: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach every process of a run; the main one decides when the workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
