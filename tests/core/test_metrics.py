"""The rows of a run are read as far as they are rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from opendino.core import metrics


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.5}\n[1]\n{"loss": 1}\n\n{"step": "2"}\n\xff\n{"step": 3}\n{"step": 4, "lo')
    assert metrics.rows(path) == [{"step": 1, "loss": 2.5}, {"step": 3}]


def test_no_file_is_the_callers_to_explain(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        metrics.rows(tmp_path / "metrics.jsonl")
