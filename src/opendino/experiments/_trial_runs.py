"""Runs many short trainings, several at a time, each in its own process; finished ones are not run again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from opendino import config as configs
from opendino.config import Config
from opendino.core import atomic_write, log, metrics_log
from opendino.core.errors import UserError
from opendino.core.progress import Progress
from opendino.core.ranges import cores
from opendino.data import fingerprint
from opendino.data.open_source import open_source

_REFRESH_SECONDS = 1.0


@dataclass(frozen=True)
class TrialRun:
    """One run of an experiment.

    Attributes:
        setting: Name of the setting; runs of one setting differ only in their seed.
        config: Settings of the run; `run` decides its `out`.
    """

    setting: str
    config: Config

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return f"{self.setting.replace(' ', '-').replace('=', '-')}-seed{self.config.seed}"


def run(trials: Sequence[TrialRun], folder: Path, jobs: int) -> list[list[dict[str, Any]]]:
    """Train all runs into `folder/runs`.

    Args:
        trials: The runs.
        folder: Folder of the experiment. Finished runs in it are kept, unfinished ones continue, and those with other
            settings, other images or of another version of opendino run again.
        jobs: Number of runs at a time; they share the cores.

    Returns:
        The rows of metrics.jsonl of each run.

    Raises:
        UserError: A run failed.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    data = {name for trial in trials for name in (trial.config.data, trial.config.val) if name}
    images = {name: fingerprint.whole(open_source(name)) for name in sorted(data)}

    def train(trial: TrialRun) -> list[dict[str, Any]]:
        fingerprints = ", ".join(images[name] for name in (trial.config.data, trial.config.val) if name)
        settings = (
            f"# opendino {version('opendino')}, images {fingerprints}\n{configs.dump(replace(trial.config, out=None))}"
        )
        return _train(trial, settings, folder / "runs" / trial.name, jobs)

    total = sum(trial.config.steps or 0 for trial in trials)
    log.say(f"{len(trials)} runs of {total:,} steps in all, {jobs} at a time; finished ones in {folder}/runs are kept")
    done = sum(_steps_done(folder, trial) for trial in trials)
    with ThreadPoolExecutor(jobs) as pool, Progress("steps", total, done) as shown:
        running = [pool.submit(train, trial) for trial in trials]
        try:
            while (state := wait(running, _REFRESH_SECONDS, FIRST_EXCEPTION)).not_done:
                if any(each.exception() for each in state.done):
                    break
                # Metrics of ended runs are not read again.
                pairs = [(trial, each.done()) for trial, each in zip(trials, running, strict=True)]
                ended = sum(trial.config.steps or 0 for trial, over in pairs if over)
                shown.update(ended + sum(_steps_done(folder, trial) for trial, over in pairs if not over))
        finally:  # after Ctrl-C or a failure no other run starts
            pool.shutdown(cancel_futures=True)
        return [each.result() for each in running]


def _steps_done(folder: Path, trial: TrialRun) -> int:
    rows = _rows(folder / "runs" / trial.name)
    return rows[-1]["step"] if rows else 0


def _train(trial: TrialRun, settings: str, out: Path, jobs: int) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl of a run. A run already in `out` is used only if its settings and images are the same."""
    path = out.with_name(f"{out.name}.yaml")  # not with_suffix: names contain dots
    if out.exists() and not (path.is_file() and path.read_text(encoding="utf-8") == settings):
        log.warn(f"{out} was run with other settings, images or another version: it is deleted and run again")
        shutil.rmtree(out)
    rows = _rows(out)
    if rows and rows[-1]["step"] == trial.config.steps and "effective_rank" in rows[-1]:
        return rows
    if (out / "config.yaml").is_file():
        words = ["resume", str(out)]
    else:
        atomic_write.write(path, settings)
        words = ["train", trial.config.data, "--config", str(path), "--out", str(out)]
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}
    command = [sys.executable, "-m", "opendino", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if done.returncode:
        raise UserError(f"The run {out} failed: {done.stderr.strip().splitlines()[-1:]}", f"See {out}/log.txt")
    rows = _rows(out)
    log.say(f"{trial.name}: {_summary(rows[-1])}")
    return rows


def _summary(row: dict[str, Any]) -> str:
    """The last row of a run's metrics in words."""
    words = [f"effective rank {row['effective_rank']:.1f}"] if "effective_rank" in row else []
    if knn := row.get("knn"):
        words = [
            f"k-NN {', '.join(f'{name} {value:.1f} %' for name, value in knn.items() if value is not None)}",
            *words,
        ]
    return "; ".join([f"step {row['step']}", *words])


def _rows(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return metrics_log.rows(path) if path.is_file() else []
