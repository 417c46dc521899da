"""What one rank does while the others wait."""

from __future__ import annotations

import multiprocessing
import time
from datetime import timedelta
from pathlib import Path

import torch

from opendino.core import distributed


def test_without_other_ranks_the_work_is_done_here() -> None:
    assert distributed.on_first_rank(lambda: 3) == 3


def rank(folder: Path, number: int) -> None:
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", meeting, timedelta(seconds=3), rank=number, world_size=2)

    def work() -> str:
        assert number == 0
        time.sleep(5)  # longer than collectives of this group wait
        return "compared"

    (folder / str(number)).write_text(distributed.on_first_rank(work))
    torch.distributed.destroy_process_group()


def test_the_others_wait_longer_than_collectives_do(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=rank, args=(tmp_path, number)) for number in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [(tmp_path / name).read_text() for name in "01"] == ["compared", "compared"]
