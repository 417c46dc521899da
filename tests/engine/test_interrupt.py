"""Ctrl-C and SIGTERM set a flag; a second Ctrl-C raises KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from opendino.engine.interrupt import Interrupt


@pytest.fixture(autouse=True)
def _handlers_come_back() -> Iterator[None]:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_there_is_a_state_to_save_it_leaves_at_once(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt():
        signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_later_the_first_is_only_noted(number: signal.Signals) -> None:
    with Interrupt() as interrupt:
        interrupt.finish_step = True
        assert not interrupt.asked
        signal.raise_signal(number)
        assert interrupt.asked
        signal.raise_signal(signal.SIGTERM)  # a second one of these changes nothing


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_that_does_not_wait(first: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        interrupt.finish_step = True
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)


def test_in_another_thread_it_stays_out_of_the_way() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append((signal.getsignal(signal.SIGTERM), interrupt.asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
