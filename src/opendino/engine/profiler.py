"""Profiles a few early steps of a run (`--profile`): a trace for a viewer, and a table of where a step's time goes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function, schedule

from opendino.core import atomic_write, log

SECTIONS = ("wait for images", "crops", "forward", "backward", "optimizer", "teacher EMA")
"""The sections of a step, as training.py marks them."""
_WARMUP_STEPS, _ACTIVE_STEPS = 3, 5

section = record_function
"""Context manager that marks a section of a step by its name; costs almost nothing if no profiler is active."""


class Profiler:
    """Context manager around the training loop that writes `profile.json.gz` and `profile.txt` to the run folder.

    Args:
        folder: The run's folder; None to profile nothing.
        device: Device to train on.
    """

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        self._folder, self._cuda = folder, device.type == "cuda"
        self._profile: Any = None
        if folder is not None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
            steps_schedule = schedule(wait=1, warmup=_WARMUP_STEPS, active=_ACTIVE_STEPS, repeat=1)
            self._profile = torch.profiler.profile(
                activities=activities, schedule=steps_schedule, on_trace_ready=self._write
            )

    def __enter__(self) -> Profiler:
        if self._profile is not None:
            self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.__exit__(kind, error, trace)

    def step(self) -> None:
        """Call after every step."""
        if self._profile is not None:
            self._profile.step()

    def _write(self, profile: Any) -> None:
        assert self._folder is not None
        profile.export_chrome_trace(str(self._folder / "profile.json.gz"))
        found = {event.key: event for event in profile.key_averages() if event.key in SECTIONS}
        steps = profile.key_averages()
        step_total = (
            next((event.cpu_time_total for event in steps if event.key.startswith("ProfilerStep")), 0.0) / _ACTIVE_STEPS
        )
        lines = [f"{'section of a step':<18}{'host, ms':>10}{'share':>7}" + (f"{'GPU, ms':>10}" if self._cuda else "")]
        for name in SECTIONS:
            if name in found:
                host = found[name].cpu_time_total / _ACTIVE_STEPS
                gpu = f"{found[name].device_time_total / _ACTIVE_STEPS / 1e3:>10.2f}" if self._cuda else ""
                lines.append(f"{name:<18}{host / 1e3:>10.2f}{host / max(step_total, 1e-9):>7.0%}{gpu}")
        lines.append(f"{'total':<18}{step_total / 1e3:>10.2f}{1:>7.0%}")
        sort = "self_device_time_total" if self._cuda else "self_cpu_time_total"
        table = steps.table(sort_by=sort, row_limit=25, max_name_column_width=50)
        atomic_write.write(self._folder / "profile.txt", "\n".join([*lines, "", table]))
        log.say("\n".join([*lines, f"trace: {self._folder / 'profile.json.gz'} (chrome://tracing, ui.perfetto.dev)"]))
