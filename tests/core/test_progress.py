"""After two seconds a live bar on a terminal, elsewhere a line every ten seconds, never on stdout."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from opendino.core import log, progress
from opendino.core.progress import Progress, track, waiting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(log, "console", lambda: Console(file=text, soft_wrap=True))
    return text


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    monkeypatch.setattr(log, "console", lambda: console)
    return text


def slow(clock: list[float], num: int, seconds: float) -> Iterator[int]:
    for number in range(num):
        clock[0] += seconds
        yield number


def test_away_from_a_terminal_a_line_comes_now_and_then_and_at_the_end(
    clock: list[float], said: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("step", total=100, patience=0) as shown:
        for done in range(10, 101, 10):
            clock[0] += 10
            shown.update(done, f"loss {done}")
    lines = said.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["20/100", "40/100", "60/100", "80/100", "100/100"]
    assert lines[0] == "step 20/100  loss 20  1m20 left"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("first", "done", "seconds", "left"),
    [(0, 50, 3600, "9h00"), (0, 499, 100, "0m00"), (0, 400, 60, "0m15"), (390, 400, 20, "3m20")],
)
def test_time_left_counts_from_where_this_call_began(
    clock: list[float], said: io.StringIO, first: int, done: int, seconds: float, left: str
) -> None:
    shown = Progress("step", total=500, done=first, patience=0)
    clock[0] += seconds
    shown.update(done)
    assert said.getvalue().split()[-2:] == [left, "left"]


def test_a_loop_tells_its_rate(clock: list[float], said: io.StringIO) -> None:
    assert list(track(slow(clock, 40, 0.5), "images", 40)) == list(range(40))
    assert said.getvalue() == "images 21/40  2.0/s  0m10 left\n"


def test_a_loop_of_unknown_length_tells_its_rate(clock: list[float], said: io.StringIO) -> None:
    list(track(slow(clock, 40, 0.5), "frames"))
    assert said.getvalue() == "frames 21  2.0/s\n"


def test_a_step_of_several_ends_at_the_total(clock: list[float], said: io.StringIO) -> None:
    list(track(slow(clock, 3, 11), "images", total=25, step=10))
    assert [line.split()[1] for line in said.getvalue().splitlines()] == ["10/25", "20/25", "25/25"]


def test_other_ranks_are_silent(clock: list[float], said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(progress, "_open_bar", lambda *_: pytest.fail("a bar of another rank"))
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.0)
    with waiting("writing ONNX"):
        time.sleep(0.02)
    with Progress("step", total=10, patience=0) as shown:
        clock[0] += 100
        shown.update(10, "loss 1")
    assert said.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_and_it_is_taken_down(terminal: io.StringIO) -> None:
    with Progress("step", total=10, done=4, patience=0) as shown:
        shown.update(7, "loss 1.234")
    assert "7/10" in terminal.getvalue() and "loss 1.234" in terminal.getvalue()
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1, "the cursor is back"


def test_what_is_done_within_two_seconds_shows_nothing(clock: list[float], terminal: io.StringIO) -> None:
    list(track(slow(clock, 3, 0.6), "images", 3))
    assert terminal.getvalue() == ""


def test_nested_loops_share_the_terminal(clock: list[float], terminal: io.StringIO) -> None:
    with Progress("step", total=3, patience=0) as outer:
        for step in range(3):
            list(track(slow(clock, 4, 3), "images", 4))
            outer.update(step + 1, "loss")
    text = terminal.getvalue()
    assert "images, 0.3/s" in text and "3/3" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_a_loop_that_fails_takes_its_bar_down(clock: list[float], terminal: io.StringIO) -> None:
    def fail() -> None:
        for number in track(slow(clock, 5, 3), "images", 5):
            assert number < 3

    with pytest.raises(AssertionError):
        fail()
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1
    assert progress._TerminalBar._display is None


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_what_cannot_be_counted_is_named_once_it_takes_long(
    seconds: float, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.05 if seconds else 86_400)
    with waiting("writing ONNX"):
        time.sleep(seconds)
    assert re.fullmatch("writing ONNX \\.\\.\\.\n" if seconds else "", said.getvalue())


def test_a_notebook_has_a_bar_that_is_updated(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    shown: list[str] = []

    class Handle:
        def update(self, drawn: Any, raw: bool = False) -> None:
            shown.append(drawn["text/plain"] if raw else drawn.data)

    def show(drawn: Any, display_id: bool) -> Handle:
        shown.append(drawn.data)
        return Handle()

    monkeypatch.setattr(display, "display", show)
    monkeypatch.setattr(log, "console", lambda: Console(file=io.StringIO(), force_jupyter=True))
    list(track(slow(clock, 4, 1), "images <new>", 4))
    assert shown == [
        '<progress value="2" max="4"></progress> 2/4 images &lt;new&gt;, 1.0/s',
        '<progress value="2" max="4"></progress> 2/4 images &lt;new&gt;, 1.0/s',
        '<progress value="3" max="4"></progress> 3/4 images &lt;new&gt;, 1.0/s',
        '<progress value="4" max="4"></progress> 4/4 images &lt;new&gt;, 1.0/s',
        "",
    ]
