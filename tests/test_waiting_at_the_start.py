"""Whatever a run does for more than two seconds says what it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.factories import dino_run

import opendino
from opendino import online_eval, resolve, training
from opendino.core import progress


def test_every_part_of_the_start_that_may_take_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []

    @contextlib.contextmanager
    def waiting(what: str) -> Iterator[None]:
        named.append(what)
        yield

    class Bar(progress.Progress):
        def close(self) -> None:
            shown.append((self._what, self._total, self._done))
            super().close()

    shown: list[tuple[str, int | None, int]] = []
    monkeypatch.setattr(online_eval, "Progress", Bar)
    for module in (resolve, training):
        monkeypatch.setattr(module, "waiting", waiting)
    opendino.train(dino_run(tmp_path / "run", steps=1))
    parts = [text.split()[0] for text in named]
    assert parts == [
        "finding",
        "measuring",
        "measuring",
        "measuring",
        "building",
        "reading",
    ]
    # An evaluation counts the images: all of them are announced, and all are embedded.
    assert [(what, done == total) for what, total, done in shown] == [
        ("images, evaluating the network before training", True),
        ("images, evaluating", True),
    ]
