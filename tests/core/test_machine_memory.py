"""What a process may count on: of the machine, of its container, of its neighbors in the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from opendino.core import machine_memory


def test_both_are_sensible_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert 2**20 < machine_memory.free_bytes() < machine_memory.total_bytes() < 2**50


def test_a_container_and_other_processes_leave_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    machine = machine_memory.total_bytes()
    monkeypatch.setattr(machine_memory, "_CONTAINER", tmp_path)
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\nactive_file 1\n")
    for text, total in (("max\n", machine), ("1000000\n", 1e6)):
        (tmp_path / "memory.max").write_text(text)
        assert machine_memory.total_bytes() == total
    assert machine_memory.free_bytes() == 300_000  # of 1,000,000, 700,000 are in use
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (machine_memory.total_bytes(), machine_memory.free_bytes()) == (250_000, 75_000)
    (tmp_path / "memory.max").write_text("600000\n")
    assert machine_memory.free_bytes() == 0
