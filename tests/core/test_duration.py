"""Durations: the allowed formats, and their number of steps."""

from __future__ import annotations

import pytest

from opendino.core import duration
from opendino.core.errors import UsageError

RUN = {"total_steps": 1000, "steps_per_epoch": 40}


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        ("0", 0), ("7", 7), ("1.5", 2), ("20k", 20_000), ("1.25k", 1250), ("2m", 2_000_000), ("1ep", 40), ("0.5ep", 20),
        ("10EP", 400), ("5%", 50), ("0.25%", 2), ("100%", 1000), (" 12 ", 12),
    ],
)  # fmt: skip
def test_every_unit_in_steps(written: str, steps: int) -> None:
    assert duration.steps(written, **RUN) == steps


@pytest.mark.parametrize("written", ["", "ep", "-1", "+1", "1 ep", "1e3", "3 epochs", "5%%", ".5", "1,5", "nan", "٣"])
def test_invalid_durations_are_rejected_with_the_formats(written: str) -> None:
    with pytest.raises(UsageError, match="is not a duration") as caught:
        duration.parse(written)
    assert repr(written) in str(caught.value)
    assert all(form in caught.value.hint for form in ("10ep", "5%", "20k"))


def test_only_epochs_are_in_epochs() -> None:
    assert [duration.in_epochs(written) for written in ("3ep", "0ep", "3", "3%", "3k")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("written", "kept"), [("2ep", "2ep"), ("100", "100"), ("10%", "10%"), ("101", "100"), ("3ep", "100"), ("1k", "100")]
)
def test_capped_shortens_only_long_durations(written: str, kept: str) -> None:
    assert duration.capped(written, 0.1, **RUN) == kept


def test_capped_rounds_down() -> None:
    assert duration.capped("1ep", 0.1, total_steps=19, steps_per_epoch=19) == "1"
    assert duration.capped("1ep", 0.1, total_steps=9, steps_per_epoch=9) == "0"
