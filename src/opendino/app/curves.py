"""Curves: how runs are doing, drawn anew while they go on."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from opendino.app._desk import Desk, session, told
from opendino.config import read_tree
from opendino.core import metrics
from opendino.core.accuracy import shown, yardstick
from opendino.core.errors import UserError
from opendino.engine.monitors import EXAMINED, Monitor, Verdict, conclude
from opendino.visualise._canvas import COLOURS
from opendino.visualise._lines import plot
from opendino.visualise.curves import PANELS, of_runs

NAME = "Curves"

_SHOWN = 4
"""Runs chosen to begin with."""
_LONG_BYTES, _PIECES = 2**24, 128
_RESTS = 20
"""A file is read again once this many times as long has passed as reading it takes."""
_LEGEND = 48
"""Letters that fit above a plot."""
_TAIL_BYTES = 2**18
_ALIVE_SECONDS = 60
_NAMES = [*dict.fromkeys([*PANELS, *EXAMINED])]
Columns = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class _Read:
    columns: Columns
    size: int
    at: float
    took: float


@dataclass
class Reader:
    """Reads runs for everybody: of a long file a sample first, then all; what has grown again, but not all the time."""

    _read: dict[Path, _Read] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def columns(self, run: Path) -> Columns:
        """What a run has measured so far, see `metrics.columns`.

        Raises:
            UserError: It is gone.
        """
        path = run / "metrics.jsonl"
        known = self._read.get(path)
        if not self._lock.acquire(blocking=known is None):
            assert known is not None
            return known.columns  # somebody reads it just now
        try:
            known, now = self._read.get(path), time.monotonic()
            size = path.stat().st_size
            if known is None and size > _LONG_BYTES:
                known = self._read[path] = _Read(metrics.columns(path, _NAMES, pieces=_PIECES), 0, now, 0)
            elif known is None or (known.size != size and now - known.at > _RESTS * known.took):
                columns = metrics.columns(path, _NAMES)
                known = self._read[path] = _Read(columns, size, now, time.monotonic() - now)
            return known.columns
        except OSError:
            raise UserError(f"{run} is gone", "Choose another run") from None
        finally:
            self._lock.release()


def build(desk: Desk, model: gr.Dropdown) -> None:
    """The tab."""
    reader, seen = Reader(), gr.State("")
    names = list(desk.places.runs())
    chosen = gr.CheckboxGroup(names, value=names[:_SHOWN], label="Runs, the newest first")
    page = gr.HTML(min_height=400)
    timer = gr.Timer(2)

    def refresh(picked: list[str], before: str, ask: gr.Request) -> tuple[Any, Any, str]:
        runs = desk.runs(session(ask))
        known = {name: reader.columns(runs[name]) for name in picked if name in runs}
        state = json.dumps([list(runs), {name: _seen(columns) for name, columns in known.items()}])
        if state == before:
            return gr.skip(), gr.skip(), before
        listed = gr.skip() if state.partition("]")[0] == before.partition("]")[0] else gr.update(choices=list(runs))
        return listed, draw({name: runs[name] for name in known}, known), state

    gr.on(
        [timer.tick, chosen.change],
        told(refresh),
        [chosen, seen],
        [chosen, page, seen],
        show_progress="hidden",
        concurrency_limit=4,
        api_visibility="private",
    )


def draw(runs: dict[str, Path], columns: dict[str, Columns]) -> str:
    """A line about each run, and their curves as SVG, a colour a run.

    Args:
        runs: Name → folder.
        columns: Name → what it has measured.
    """
    if not runs:
        return "<p>No run is chosen. Start one in the last tab, or with <code>opendino train DATA</code>.</p>"
    short = _short(list(runs))
    rows = [
        _row(short[name], name, runs[name], columns[name], COLOURS[i % len(COLOURS)]) for i, name in enumerate(runs)
    ]
    heads = "".join(f"<th>{head}</th>" for head in ("run", "step", "loss", "k-NN", "rank", "state"))
    plots = []
    for panel in of_runs({short[name]: columns[name] for name in runs}):
        lines = {name: curves[0] for name, curves in panel.curves.items()}
        unit = panel.ylabel.replace(" (%)", ", %")
        title = f"{panel.title} ({unit})" if unit else panel.title
        plots.append(plot(title, lines, panel.level, panel.bands))
    table = f'<table class="runs"><tr>{heads}</tr>{"".join(rows)}</table>'
    return f'{table}<div class="plots">{"".join(plots)}</div>'


def _short(names: list[str]) -> dict[str, str]:
    """What runs are called in plots: the ends of their paths, or numbers where these are long or the same."""
    ends = [Path(name).name for name in names]
    if len(set(ends)) < len(ends) or len("".join(ends)) > _LEGEND:
        ends = [str(number) for number in range(1, len(names) + 1)]
    return dict(zip(names, ends, strict=True))


def _row(short: str, name: str, run: Path, columns: Columns, colour: str) -> str:
    def last(column: str, form: str) -> str:
        values = next((v for key, (_, v) in columns.items() if key.partition(".")[0] == column), None)
        return "" if values is None else format(float(values[-1]), form)

    total, done = _total(run), _last_step(columns)
    cells = [f"{done:,} of {total:,}" if total else f"{done:,}", last("loss", ".3f"), _knn(columns)]
    cells += [last("effective_rank", ".1f"), state(run, done, total, columns)]
    told = f"{short}: {name}" if short.isdecimal() else name
    shown = f'<td><span style="color:{colour}">●</span> {escape(told)}</td>'
    return f"<tr>{shown}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _knn(columns: Columns) -> str:
    """The k-NN of the network to use, with what it is to be compared with, as HTML."""
    found: dict[str, Any] = {
        name: float(columns[name][1][-1]) for name in ("majority", "num_queries") if name in columns
    }
    for kind in ("knn", "balanced_accuracy"):
        of_kind = {key.partition(".")[2]: values for key, (_, values) in columns.items() if key.startswith(f"{kind}.")}
        found[kind] = {name: float(values[-1]) for name, values in of_kind.items()}
    told = next(iter(shown(found).values()), "")
    return f'<span title="{escape(yardstick(found))}">{told}</span>' if told else ""


def state(run: Path, done: int, total: int, columns: Columns) -> str:
    """Whether a run goes on, whether its last steps look like a collapse, and whether it has learned, as HTML."""
    path = run / "metrics.jsonl"
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().splitlines()
    monitor, verdict = Monitor(total or 10**9), None
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "loss" in row:
            verdict = monitor.watch(row)
    if verdict is not None:
        return _verdict(verdict)
    if total and done >= total:
        found = conclude(columns, done, total)
        return "finished, learned" if found.name == "healthy" else f"finished, {_verdict(found)}"
    return "running" if time.time() - path.stat().st_mtime < _ALIVE_SECONDS else "stopped"


def _verdict(verdict: Verdict) -> str:
    return f'<span class="bad-word" title="{escape(verdict.evidence)}. {escape(verdict.cure)}">{verdict.name}</span>'


def _total(run: Path) -> int:
    steps = read_tree(run / "config.yaml").get("steps")
    return steps if isinstance(steps, int) else 0


def _seen(columns: Columns) -> list[int]:
    """What changes with everything that is drawn: the last step, and how many values there are."""
    return [_last_step(columns), sum(len(steps) for steps, _ in columns.values())]


def _last_step(columns: Columns) -> int:
    return max((int(steps[-1]) for steps, _ in columns.values()), default=0)
