"""Many short runs, several at a time, each in a process of its own; those that are finished are not run again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opendino import config as configs
from opendino.config import Config
from opendino.core import files, log, metrics
from opendino.core.errors import UserError


@dataclass(frozen=True)
class Trial:
    """One run of an experiment.

    Attributes:
        setting: What is tried; trials of one setting differ in their seed.
        config: The run; its `out` is decided by `run`.
    """

    setting: str
    config: Config

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.setting.replace(' ', '-').replace('=', '-')}-seed{self.config.seed}"


def run(trials: Sequence[Trial], folder: Path, jobs: int) -> list[list[dict[str, Any]]]:
    """Train them all into `folder/runs`.

    Args:
        trials: The runs.
        folder: Of the experiment; what is finished there already is kept, what is not is gone on with.
        jobs: Runs at a time; they share the cores.

    Returns:
        The rows of metrics.jsonl of each.

    Raises:
        UserError: A run failed.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda trial: _train(trial, folder / "runs" / trial.name, jobs), trials))


def _train(trial: Trial, out: Path, jobs: int) -> list[dict[str, Any]]:
    rows = _rows(out)
    if rows and rows[-1]["step"] == trial.config.steps and "effective_rank" in rows[-1]:
        return rows
    if (out / "config.yaml").is_file():
        words = ["resume", str(out)]
    else:
        path = out.with_name(f"{out.name}.yaml")  # names hold dots
        files.write(path, configs.dump(replace(trial.config, out=str(out))))
        words = ["train", trial.config.data, "--config", str(path)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    command = [sys.executable, "-m", "opendino", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if done.returncode:
        raise UserError(f"The run {out} failed: {done.stderr.strip().splitlines()[-1:]}", f"See {out}/log.txt")
    rows = _rows(out)
    log.say(f"{trial.name}: {rows[-1]}")
    return rows


def _rows(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return metrics.rows(path) if path.is_file() else []
