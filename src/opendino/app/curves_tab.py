"""Tab "Curves": state and metrics of runs. While it is open the table is updated, and the charts as `Pace` allows."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from opendino.app import chart_grid, run_curves
from opendino.app.context import Context, Head, handle_errors, session_id
from opendino.app.pace import Pace
from opendino.app.page_words import verdict_words
from opendino.app.run_curves import Columns, Reader
from opendino.core.accuracy import baseline_text, folders_confirmed, format_accuracies
from opendino.core.errors import UserError
from opendino.engine.collapse_detection import Collapse, Monitor
from opendino.engine.verdict import LEARNED, Verdict, judge
from opendino.existing_runs import cures
from opendino.visualize.drawing import panels, templates
from opendino.visualize.drawing.panels import Chart

NAME = "Curves"

_SHOWN = 4
"""Number of runs selected at first."""
_LEGEND = 48
"""Number of letters that fit in the legend below a plot."""
_TAIL_BYTES = 2**18
_CONFIRMED = "judged_on.confirmed"
_ALIVE_SECONDS = 60
_SECONDS = 10
"""Between updates. Each takes the browser 0.3 s, because Gradio copies all numbers of all charts for it."""


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    reader, seen, drawn, pace = context.curves, gr.State(""), gr.State(""), Pace()
    names = list(context.catalog.runs())
    chosen = gr.CheckboxGroup(names, value=names[:_SHOWN], label="Runs (newest first)")
    page = gr.HTML(min_height=60)
    timer = gr.Timer(_SECONDS, active=False)

    def read(picked: list[str], session: str) -> tuple[dict[str, Path], dict[str, Columns], list[str]]:
        """The runs that the page may show, the metrics of the selected ones, and the errors."""
        runs, known, gone = context.runs(session), dict[str, Columns](), list[str]()
        for name in dict.fromkeys(name for name in picked if name in runs):
            try:
                known[name] = reader.columns(runs[name])
            except UserError as error:  # the other runs are still drawn
                gone.append(str(error))
        return runs, known, gone

    def refresh(picked: list[str], before: str, shown: str, request: gr.Request) -> tuple[Any, Any, str, str]:
        listed = json.loads(before)[0] if before else names
        picked = with_new(picked, listed, list(context.runs(session_id(request))))
        runs, known, gone = read(picked, session_id(request))
        state = json.dumps([list(runs), {name: _fingerprint(columns) for name, columns in known.items()}, gone])
        if pace.due() or not shown or [*json.loads(shown)[1]] != [*known]:
            shown = state
        if state == before:
            return gr.skip(), gr.skip(), before, shown
        same = before and listed == list(runs)
        choices = gr.skip() if same else gr.update(choices=list(runs), value=picked)
        return choices, table({name: runs[name] for name in known}, known, reader, gone), state, shown

    def turn(event: gr.SelectData) -> gr.Timer:
        return gr.Timer(active=event.value == NAME)

    head.tabs.select(handle_errors(turn), None, timer, show_progress="hidden", api_visibility="private")
    gr.on(
        [head.tabs.select, timer.tick, chosen.change],
        handle_errors(refresh),
        [chosen, seen, drawn],
        [chosen, page, seen, drawn],
        show_progress="hidden",
        concurrency_limit=4,
        api_visibility="private",
    )

    @gr.render([chosen], [drawn.change], show_progress="hidden", concurrency_limit=4)
    @handle_errors
    def show_charts(picked: list[str], request: gr.Request) -> None:
        with pace.counted():
            runs, known, _ = read(picked, session_id(request))
            chart_grid.build(charts({name: runs[name] for name in known}, known, reader))


def with_new(picked: Sequence[str], listed: Sequence[str], runs: Sequence[str]) -> list[str]:
    """The selected runs and at most four that are not listed yet, newest first, without those that are gone.

    Args:
        picked: The selected runs.
        listed: The runs among which they were selected.
        runs: The runs that there are now, newest first.
    """
    new = [name for name in runs if name not in listed][:_SHOWN]
    return [*new, *(name for name in picked if name in runs and name not in new)]


def table(runs: dict[str, Path], columns: Mapping[str, Columns], reader: Reader, errors: Sequence[str] = ()) -> str:
    """A table with one row per run, as HTML.

    Args:
        runs: Name → run folder.
        columns: Name → its metrics.
        reader: Has read the metrics; keeps the colors of the runs.
        errors: Sentences to show above the table.
    """
    short = _short(list(runs))
    rows = [
        _row(short[name], name, run, columns[name], reader.left(run)) | {"color": reader.color(run)}
        for name, run in runs.items()
    ]
    return templates.render("runs.html", errors=errors, rows=rows)


def charts(runs: dict[str, Path], columns: Mapping[str, Columns], reader: Reader) -> list[Chart]:
    """The charts of runs, one color per run; arguments as for `table`."""
    short = _short(list(runs))
    colors = {short[name]: reader.color(run) for name, run in runs.items()}
    return panels.charts({short[name]: columns[name] for name in runs}, colors)


def _short(names: list[str]) -> dict[str, str]:
    """Names for the plots: the last parts of the paths, or numbers if these are too long or not unique."""
    ends = [Path(name).name for name in names]
    if len(set(ends)) < len(ends) or len("".join(ends)) > _LEGEND:
        ends = [str(number) for number in range(1, len(names) + 1)]
    return dict(zip(names, ends, strict=True))


def _row(short: str, name: str, run: Path, columns: Columns, left: int) -> dict[str, Any]:
    """The values of a row in pages/runs.html."""

    def last(column: str, format_spec: str) -> str:
        each = next((each for key, each in columns.items() if key.partition(".")[0] == column), None)
        # Step 0 is the network before training.
        return "" if each is None or not each.steps[-1] else format(float(each.values[-1]), format_spec)

    done, total, verdict = _last_step(columns), 0, None
    try:
        settings = run_curves.settings(run)
        total = _total(settings)
        word, verdict = state(run, done, total, columns, cures(settings))
    except (UserError, OSError) as error:
        word = str(error)
    if left:
        word, verdict = f"reading: {left / 2**20:,.0f} MB left", None
    row = {
        "name": f"{short}: {name}" if short.isdecimal() else name,
        "steps": f"{done:,} of {total:,}" if total else f"{done:,}",
        "loss": last("loss", ".3f"),
        "rank": last("effective_rank", ".1f"),
        "state": word,
        "verdict": verdict.name if verdict else "",
        "why": verdict_words(verdict.evidence, verdict.cure) if verdict else "",
    }
    return row | _knn(columns)


def _knn(columns: Columns) -> dict[str, str]:
    """k-NN accuracy of the recommended network, and how to interpret it."""
    found: dict[str, Any] = {
        name: float(columns[name].values[-1]) for name in ("majority", "num_queries") if name in columns
    }
    for kind in ("knn", "balanced_accuracy"):
        of_kind = {key.partition(".")[2]: each for key, each in columns.items() if key.startswith(f"{kind}.")}
        # Step 0 is the network before training.
        found[kind] = {name: float(each.values[-1]) for name, each in of_kind.items() if each.steps[-1]}
    found["judged_on"] = {"confirmed": columns[_CONFIRMED].values[-1]} if _CONFIRMED in columns else {}
    accuracy = next(iter(format_accuracies(found).values()), "")
    if accuracy and not folders_confirmed(found):
        accuracy += " by folders (unconfirmed)"
    return {"accuracy": accuracy, "baseline": baseline_text(found)}


def state(run: Path, done: int, total: int, columns: Columns, cures: Mapping[str, str]) -> tuple[str, Verdict | None]:
    """State of a run: running, stopped or finished, and a verdict that says that it collapsed or has not learned.

    Args:
        run: Run folder.
        done: Last step.
        total: Number of steps of the run; 0 if not known.
        columns: Its metrics.
        cures: Of its method, see `existing_runs.cures`.
    """
    path = run / "metrics.jsonl"
    about = path.stat()
    collapse = _collapse(path, (about.st_size, about.st_mtime_ns), total, tuple(cures.items()))
    finished = total > 0 and done >= total
    if collapse is not None or finished:
        found = judge(columns, total, collapse)
        word = "finished," if finished else ""
        return (f"{word} {LEARNED}", None) if found.name == LEARNED else (word, found)
    return "running" if time.time() - about.st_mtime < _ALIVE_SECONDS else "stopped", None


@functools.lru_cache(maxsize=64)
def _collapse(path: Path, version: tuple[int, int], total: int, cures: tuple[tuple[str, str], ...]) -> Collapse | None:
    """What the last rows of a run show; they are read again only if the file has changed."""
    with open(path, "rb") as file:
        file.seek(max(0, version[0] - _TAIL_BYTES))
        lines = file.read().splitlines()
    monitor, collapse = Monitor(total or 10**9, dict(cures)), None
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "loss" in row:
            collapse = monitor.watch(row)
    return collapse


def _total(settings: Mapping[str, Any]) -> int:
    steps = settings.get("steps")
    return steps if isinstance(steps, int) else 0


def _fingerprint(columns: Columns) -> list[int]:
    """A fingerprint of the metrics, to redraw only on changes: the last step and the number of values."""
    return [_last_step(columns), sum(len(each.steps) for each in columns.values())]


def _last_step(columns: Columns) -> int:
    return max((int(each.steps[-1]) for each in columns.values()), default=0)
