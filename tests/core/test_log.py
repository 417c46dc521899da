"""Messages: once, and not while muted."""

from __future__ import annotations

import pytest

from opendino.core import log


def test_a_line_is_said_once_until_the_next_run_and_nothing_while_muted(capsys: pytest.CaptureFixture[str]) -> None:
    log.write_to(None)
    with log.muted():
        log.say("hidden")
        log.say_once("3 files left out")
    assert not capsys.readouterr().err
    log.say_once("3 files left out")
    log.say_once("3 files left out")
    assert capsys.readouterr().err.count("3 files left out") == 1
    log.write_to(None)
    log.say_once("3 files left out")
    assert "3 files left out" in capsys.readouterr().err
