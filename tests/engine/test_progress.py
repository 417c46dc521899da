"""A live bar on a terminal, elsewhere a line every 15 seconds, never on stdout."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from opendino.core import log
from opendino.engine import progress
from opendino.engine.progress import Progress


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


def test_away_from_a_terminal_a_line_comes_now_and_then_and_at_the_end(
    clock: list[float], said: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(total=100, done=0)
    for done in range(10, 101, 10):
        clock[0] += 10
        shown.update(done, f"loss {done}")
    shown.close()
    assert [line.split()[1] for line in said.getvalue().splitlines()] == [
        "20/100",
        "40/100",
        "60/100",
        "80/100",
        "100/100",
    ]
    assert said.getvalue().splitlines()[0] == "step 20/100  loss 20  1m20 left"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("first", "done", "seconds", "left"),
    [(0, 50, 3600, "9h00"), (0, 499, 100, "0m00"), (0, 400, 60, "0m15"), (390, 400, 20, "3m20")],
)
def test_time_left_counts_from_where_this_call_began(
    clock: list[float], said: io.StringIO, first: int, done: int, seconds: float, left: str
) -> None:
    shown = Progress(total=500, done=first)
    clock[0] += seconds
    shown.update(done, "")
    assert said.getvalue().split()[-2:] == [left, "left"]


def test_other_ranks_are_silent(clock: list[float], said: io.StringIO) -> None:
    shown = Progress(total=10, done=0, show=False)
    clock[0] += 100
    shown.update(10, "loss 1")
    shown.close()
    assert said.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_and_it_is_taken_down(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    monkeypatch.setattr(log, "console", lambda: console)
    shown = Progress(total=10, done=4)
    shown.update(7, "loss 1.234")
    shown.close()
    assert "7/10" in text.getvalue() and "loss 1.234" in text.getvalue()
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h") == 1, "the cursor is shown again"
