"""One task at a time, in order, and every exception is raised."""

from __future__ import annotations

import threading
import time

import pytest

from opendino.core import log
from opendino.engine.background import BackgroundWriter


def test_the_caller_goes_on_and_the_work_is_done_in_order() -> None:
    done: list[int] = []
    gate = threading.Event()
    with BackgroundWriter() as background:
        background.submit(lambda: done.append(1) if gate.wait(60) else None)
        assert done == []
        gate.set()
        background.submit(lambda: done.append(2))
        assert done[0] == 1
        background.wait()
        assert done == [1, 2]
        background.submit(lambda: done.append(3))
    assert done == [1, 2, 3]


def fail() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("how", ["next", "wait", "leave"])
def test_an_error_is_raised_at_the_next_chance_and_once(how: str) -> None:
    with pytest.raises(OSError, match="No space"), BackgroundWriter() as background:
        background.submit(fail)
        if how == "next":
            background.submit(lambda: None)
        elif how == "wait":
            background.wait()
    with BackgroundWriter() as background:
        background.submit(fail)
        with pytest.raises(OSError, match="No space"):
            background.wait()
        background.wait()


def test_an_error_is_found_by_looking_and_looking_does_not_wait() -> None:
    gate, failed = threading.Event(), threading.Event()

    def work() -> None:
        gate.wait(60)
        failed.set()
        fail()

    with BackgroundWriter() as background:
        background.submit(work)
        background.check()
        gate.set()
        failed.wait(60)
        with pytest.raises(OSError, match="No space"):
            for _ in range(1000):
                background.check()
                time.sleep(0.01)
        background.check()


def test_an_error_of_the_caller_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)
    with pytest.raises(ValueError, match="mine"), BackgroundWriter() as background:
        background.submit(fail)
        raise ValueError("mine")
    assert len(said) == 1 and "No space left" in said[0]
