"""Tab "Curves": state and metrics of runs, updated every two seconds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from opendino.app.context import Context, handle_errors, session_id
from opendino.config import read_tree
from opendino.core import metrics_log
from opendino.core.accuracy import baseline_text, format_accuracies
from opendino.core.errors import UserError
from opendino.engine.collapse_detection import EXAMINED, Monitor, Verdict, conclude
from opendino.visualize.curves import PANELS, of_runs
from opendino.visualize.drawing.line_plots import Style, plot, style

NAME = "Curves"

_SHOWN = 4
"""Number of runs selected at first."""
_TICK_BYTES = 2**25
"""Bytes read per run and update; a long run is complete after a few updates."""
_LEGEND = 48
"""Number of letters that fit in the legend above a plot."""
_TAIL_BYTES = 2**18
_ALIVE_SECONDS = 60
_NAMES = [*dict.fromkeys([*PANELS, *EXAMINED])]
Columns = Mapping[str, metrics_log.Column]


@dataclass
class _Read:
    course: metrics_log.Course
    style: Style
    lock: threading.Lock = field(default_factory=threading.Lock)
    columns: Columns | None = None
    changes: int = 0
    left: int = 0


@dataclass
class Reader:
    """Reads the metrics of runs incrementally, for all sessions. Each run keeps its color."""

    _read: dict[Path, _Read] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def columns(self, run: Path) -> Columns:
        """The metrics of a run so far, see `metrics_log.Course`.

        Raises:
            UserError: The run folder was deleted.
        """
        known = self._known(run)
        if not known.lock.acquire(blocking=known.columns is None):
            assert known.columns is not None
            return known.columns  # another session is reading this run: use what was read before
        try:
            known.left = known.course.read(_TICK_BYTES)
            if known.columns is None or known.changes != known.course.changes:
                known.columns, known.changes = known.course.columns(), known.course.changes
            return known.columns
        except OSError:
            with self._lock:
                self._read.pop(run, None)
            raise UserError(f"{run} was deleted", "Choose another run") from None
        finally:
            known.lock.release()

    def style(self, run: Path) -> Style:
        """The color and dashes of a run, the same in all plots until the server stops."""
        return self._known(run).style

    def left(self, run: Path) -> int:
        """Number of bytes of a run that are not read yet."""
        return self._known(run).left

    def _known(self, run: Path) -> _Read:
        with self._lock:
            if run not in self._read:
                taken = {each.style for each in self._read.values()}
                free = next((style(n) for n in range(24) if style(n) not in taken), style(len(self._read)))
                self._read[run] = _Read(metrics_log.Course(run / "metrics.jsonl", _NAMES), free)
            return self._read[run]


def build(context: Context, model: gr.Dropdown) -> None:
    """Build the tab."""
    reader, seen = Reader(), gr.State("")
    names = list(context.catalog.runs())
    chosen = gr.CheckboxGroup(names, value=names[:_SHOWN], label="Runs (newest first)")
    page = gr.HTML(min_height=400)
    timer = gr.Timer(2)

    def refresh(picked: list[str], before: str, request: gr.Request) -> tuple[Any, Any, str]:
        runs, known, gone = context.runs(session_id(request)), dict[str, Columns](), list[str]()
        for name in dict.fromkeys(name for name in picked if name in runs):
            try:
                known[name] = reader.columns(runs[name])
            except UserError as error:  # the other runs are still drawn
                gone.append(f'<p class="bad">{escape(str(error))}</p>')
        state = json.dumps([list(runs), {name: _fingerprint(columns) for name, columns in known.items()}, gone])
        if state == before:
            return gr.skip(), gr.skip(), before
        listed = gr.skip() if state.partition("]")[0] == before.partition("]")[0] else gr.update(choices=list(runs))
        shown = {name: runs[name] for name in known}
        styles = {name: reader.style(run) for name, run in shown.items()}
        left = {name: reader.left(run) for name, run in shown.items()}
        return listed, "".join(gone) + draw(shown, known, styles, left), state

    gr.on(
        [timer.tick, chosen.change],
        handle_errors(refresh),
        [chosen, seen],
        [chosen, page, seen],
        show_progress="hidden",
        concurrency_limit=4,
        api_visibility="private",
    )


def draw(
    runs: dict[str, Path],
    columns: Mapping[str, Columns],
    styles: Mapping[str, Style] | None = None,
    left: Mapping[str, int] | None = None,
) -> str:
    """A table with one row per run, and their curves as SVG, one color per run.

    Args:
        runs: Name → run folder.
        columns: Name → its metrics.
        styles: Name → color and dashes; by default assigned in order.
        left: Name → number of bytes not read yet.

    Returns:
        HTML.
    """
    if not runs:
        return "<p>No run is selected. Start one in the tab Train, or with <code>opendino train DATA</code>.</p>"
    short, left = _short(list(runs)), left or {}
    styles = styles or {name: style(number) for number, name in enumerate(runs)}
    rows = [_row(short[name], name, runs[name], columns[name], styles[name][0], left.get(name, 0)) for name in runs]
    heads = "".join(f"<th>{head}</th>" for head in ("run", "step", "loss", "k-NN", "rank", "state"))
    panels = of_runs({short[name]: columns[name] for name in runs})
    lines = {short[name]: styles[name] for name in runs}
    if len(runs) == 1:  # one curve per network; the recommended one, the first, has the color of the run
        own = next(iter(lines.values()))
        names = dict.fromkeys(name for panel in panels for name in panel.curves if name not in lines)
        lines |= dict(zip(names, [own, *(each for n in range(24) if (each := style(n)) != own)], strict=False))
    plots = []
    for panel in panels:
        curves = {name: curves[0] for name, curves in panel.curves.items()}
        unit = panel.ylabel.replace(" (%)", ", %")
        title = f"{panel.title} ({unit})" if unit else panel.title
        plots.append(plot(title, curves, panel.level, panel.bands, lines))
    table = f'<table class="runs"><tr>{heads}</tr>{"".join(rows)}</table>'
    return f'{table}<div class="plots">{"".join(plots)}</div>'


def _short(names: list[str]) -> dict[str, str]:
    """Names for the plots: the last parts of the paths, or numbers if these are too long or not unique."""
    ends = [Path(name).name for name in names]
    if len(set(ends)) < len(ends) or len("".join(ends)) > _LEGEND:
        ends = [str(number) for number in range(1, len(names) + 1)]
    return dict(zip(names, ends, strict=True))


def _row(short: str, name: str, run: Path, columns: Columns, color: str, left: int) -> str:
    def last(column: str, format_spec: str) -> str:
        each = next((each for key, each in columns.items() if key.partition(".")[0] == column), None)
        # Step 0 is the network before training.
        return "" if each is None or not each.steps[-1] else format(float(each.values[-1]), format_spec)

    done = _last_step(columns)
    try:
        total = _total(run)
        word = state(run, done, total, columns) if not left else f"reading: {left / 2**20:,.0f} MB left"
    except (UserError, OSError) as error:
        total, word = 0, escape(str(error))
    cells = [f"{done:,} of {total:,}" if total else f"{done:,}", last("loss", ".3f"), _knn(columns)]
    cells += [last("effective_rank", ".1f"), word]
    label = f"{short}: {name}" if short.isdecimal() else name
    shown = f'<td><span style="color:{color}">●</span> {escape(label)}</td>'
    return f"<tr>{shown}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _knn(columns: Columns) -> str:
    """k-NN accuracy of the recommended network as HTML; the tooltip names the baselines."""
    found: dict[str, Any] = {
        name: float(columns[name].values[-1]) for name in ("majority", "num_queries") if name in columns
    }
    for kind in ("knn", "balanced_accuracy"):
        of_kind = {key.partition(".")[2]: each for key, each in columns.items() if key.startswith(f"{kind}.")}
        # Step 0 is the network before training.
        found[kind] = {name: float(each.values[-1]) for name, each in of_kind.items() if each.steps[-1]}
    accuracy = next(iter(format_accuracies(found).values()), "")
    return f'<span title="{escape(baseline_text(found))}">{accuracy}</span>' if accuracy else ""


def state(run: Path, done: int, total: int, columns: Columns) -> str:
    """State of a run as HTML: running, stopped or finished, and a warning about a collapse or no learning.

    Args:
        run: Run folder.
        done: Last step.
        total: Number of steps of the run; 0 if not known.
        columns: Its metrics.
    """
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


def _fingerprint(columns: Columns) -> list[int]:
    """A fingerprint of the metrics, to redraw only on changes: the last step and the number of values."""
    return [_last_step(columns), sum(len(each.steps) for each in columns.values())]


def _last_step(columns: Columns) -> int:
    return max((int(each.steps[-1]) for each in columns.values()), default=0)
