"""Tab "Train": train on images of the server, on generated images, or on uploaded ones."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from opendino.app import chart_grid, run_curves, uploads
from opendino.app.context import Context, Head, bounded, handle_errors, session_id
from opendino.app.pace import Pace
from opendino.app.page_words import (
    ELSEWHERE,
    FOLDER_CHOICES,
    FOLDERS,
    LONGER,
    MINUTES,
    RECIPE,
    STACK,
    cure_words,
    in_page_words,
)
from opendino.app.run_curves import Reader
from opendino.app.training_jobs import TrainingJob
from opendino.core import metrics_log
from opendino.core.accuracy import baseline_text, knn_title
from opendino.core.errors import UserError
from opendino.data.image_overview import recommended_recipe
from opendino.engine import verdict
from opendino.existing_runs import cures
from opendino.visualize.drawing import panels, templates

NAME = "Train"

_GENERATED = {
    "Gray textures (learns well)": "toy:textures?n=2000&size=32",
    "Gray shapes": "toy:forms?n=2000&size=32",
    "Colored textures (learns colors only)": "toy:colorful?n=2000&size=32",
}
_UPLOADED = "My own images (.zip)"
_NETWORKS = {"Four convolutions (fast)": "conv4", "Small vision transformer": "vit_tiny/4"}
_MINUTES, _TRIAL = "Minutes", "A trial of 10 steps"
_DEFAULT_MINUTES, _SHORTEST, _LONGEST = 20, 0.5, 10_000
_RECIPES = ("auto", "microscopy", "aerial", "industrial")
"""Values of --recipe for images of one's own; auto: without it."""
STACKS = ("ask", "channels", "max", "mean", "images")
"""Values of --stack that name a meaning of pages."""


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown("Train a network on images without labels. Labels serve only to measure it while it trains.")
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            inputs = _inputs(context, head)
            with gr.Row():
                start = gr.Button("Train", variant="primary", min_width=80)
                stop = gr.Button("Stop", interactive=False, min_width=80)
        with gr.Column(scale=5):
            page = gr.HTML("<p>Nothing is running.</p>", min_height=80)
            charts, measured = gr.Column(), gr.State(0)
    timer = gr.Timer(5)  # active at first: a training may be running already
    buttons = [start, stop, timer]
    pace, chart_pace = Pace(), Pace()

    def begin(values: dict[Any, Any], request: gr.Request) -> tuple[Any, ...]:
        chosen, data = values[inputs.images], context.catalog.data()
        if chosen in data:
            settings = (inputs.length, inputs.minutes, inputs.folders, inputs.stack, inputs.recipe)
            flags = server_flags(*(values[each] for each in settings))
            context.jobs.start_on_server_images(session_id(request), data[chosen], flags)
        else:
            raw = values[inputs.upload] if chosen == _UPLOADED else None
            uploaded = uploads.resolve_upload(raw, context.upload_folder)
            small_set, flags = _data_and_flags(chosen, uploaded, values[inputs.network])
            flags += ["--steps", str(int(bounded(values[inputs.steps], 1, 800)))]
            context.jobs.start(session_id(request), small_set, flags)
        return "<p>Starting …</p>", *_buttons(running=True)

    def show(chosen: str | None, request: gr.Request) -> tuple[Any, ...]:
        training = context.jobs.latest(session_id(request))
        if training is None:
            return "<p>Nothing is running.</p>", *_buttons(running=False), gr.skip(), 0
        running = training.running  # read before the metrics: if it has ended, they are complete
        if running and not pace.due():
            return (gr.skip(),) * len(outputs)
        model, choices = "", gr.skip()
        if not running:
            model, chosen, choices = _finished(context, training, chosen, session_id(request))
        with pace.counted():
            drawn = draw(training, running, context.curves, model, model == chosen)
        grown = _size(training) if chart_pace.due() or not running else gr.skip()
        return drawn, *_buttons(running), choices, grown

    def halt(request: gr.Request) -> None:
        if training := context.jobs.latest(session_id(request)):
            training.ask_to_stop()

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    start.click(handle_errors(begin), {*inputs}, [page, *buttons], preprocess=False, **private)
    stop.click(handle_errors(halt), None, None, **private)
    outputs = [page, *buttons, head.model, measured]
    timer.tick(handle_errors(show), [head.model], outputs, preprocess=False, **private)

    with charts:

        @gr.render([], [measured.change], show_progress="hidden")
        @handle_errors
        def show_charts(request: gr.Request) -> None:
            if (training := context.jobs.latest(session_id(request))) and _size(training):
                with chart_pace.counted():
                    columns = panels.of_file(training.out / "metrics.jsonl")
                    name = "this training"
                    chart_grid.build(panels.charts({name: columns}, {name: context.curves.color(training.out)}))


def _finished(context: Context, training: TrainingJob, chosen: str | None, session: str) -> tuple[str, str | None, Any]:
    """Of a training that has ended: the name of its model or "", the model to choose, and the update that does so."""
    known = context.models(session)
    model = next((name for name, path in known.items() if Path(path) == training.out), "")
    # Only who started it gets its model: others may be working with another one.
    if model and (training.session == session or chosen not in known):
        chosen = model
    return model, chosen, gr.update(choices=list(known), value=chosen)


class _Inputs(NamedTuple):
    images: gr.Radio
    length: gr.Radio
    minutes: gr.Number
    folders: gr.Radio
    stack: gr.Dropdown
    recipe: gr.Dropdown
    upload: gr.File
    network: gr.Radio
    steps: gr.Slider


def _inputs(context: Context, head: Head) -> _Inputs:
    """The settings: of images of the server, or of a tiny network on generated or uploaded images."""
    data = context.catalog.data()
    choices = [*data, *_GENERATED, _UPLOADED]
    images = gr.Radio(choices, value=choices[0], label="Images")
    with gr.Column(visible=bool(data)) as own:
        length = gr.Radio([_MINUTES, _TRIAL], value=_MINUTES, label="Length")
        minutes = gr.Number(
            _DEFAULT_MINUTES,
            label=f"{MINUTES}, {_SHORTEST} to {_LONGEST:,}",
            minimum=_SHORTEST,
            maximum=_LONGEST,
        )
        recipe = gr.Dropdown(list(_RECIPES), value="auto", label=f"{RECIPE} (auto: for any images)")
        folders = gr.Radio(list(FOLDER_CHOICES), value=next(iter(FOLDER_CHOICES)), label=FOLDERS)
        stack = gr.Dropdown(list(STACKS), value="ask", label=f"{STACK} (stacks only)")
    with gr.Column(visible=not data) as small:
        upload = gr.File(label=".zip archive of images", file_types=[".zip"], height=150, visible=False)
        network = gr.Radio(list(_NETWORKS), value=next(iter(_NETWORKS)), label="Network")
        steps = gr.Slider(20, 800, 200, step=20, label="Steps (64 images each)")

    def choose(kind: str) -> tuple[Any, ...]:
        return (
            gr.update(visible=kind in data),
            gr.update(visible=kind not in data),
            gr.update(visible=kind == _UPLOADED),
        )

    private: dict[str, Any] = {"api_visibility": "private"}

    def recommended(name: str | None, pages: str) -> Any:
        return recommended_recipe(data[name], pages) if name in data and pages in STACKS else gr.skip()

    gr.on(None, handle_errors(recommended), [images, stack], recipe, show_progress="hidden", **private)
    head.images.change(lambda name: name, head.images, images, queue=False, **private)
    images.change(choose, images, [own, small, upload], queue=False, **private)
    length.change(lambda kind: gr.update(visible=kind == _MINUTES), length, minutes, queue=False, **private)
    return _Inputs(images, length, minutes, folders, stack, recipe, upload, network, steps)


def server_flags(length: str, minutes: Any, folders: str, stack: str, recipe: str) -> list[str]:
    """Flags of `opendino train` for the choices on the page.

    Raises:
        UserError: A value is not among the choices, or the number of minutes is out of its range.
    """
    chosen = ((length, [_MINUTES, _TRIAL]), (folders, [*FOLDER_CHOICES]), (stack, STACKS), (recipe, _RECIPES))
    if any(value not in choices for value, choices in chosen):
        raise UserError("A setting is not among the choices", "Choose it on this page")
    duration = ["--steps", "10"] if length == _TRIAL else ["--minutes", f"{bounded(minutes, _SHORTEST, _LONGEST):g}"]
    named = [] if recipe == "auto" else ["--recipe", recipe]
    return [*duration, *named, "--labels", FOLDER_CHOICES[folders], "--stack", stack]


def _data_and_flags(images: str, uploaded: Path | None, network: str) -> tuple[str | Path, list[str]]:
    """DATA and the flags of `opendino demo` for the choices on the page.

    Raises:
        UserError: A value is not among the choices, or no usable .zip was uploaded.
    """
    if images not in (*_GENERATED, _UPLOADED) or network not in [*_NETWORKS]:
        raise UserError("The images or the network are not among the choices", "Choose them on this page")
    flags = ["--backbone", _NETWORKS[network], "--workers", "0", "--eval-every", "25%", "--eval-images", "1000"]
    flags += ["--report", "False"]
    if images != _UPLOADED:
        data = _GENERATED[images]
        return data, [*flags, "--val", f"{data.replace('n=2000', 'n=500')}&split=val"]
    if uploaded is None:
        raise UserError("No .zip was uploaded", "Upload one above")
    number = uploads.check_zip(uploaded)
    return uploaded, [*flags, "--val", "None", "--batch", str(min(64, max(2, number // 2)))]


def draw(training: TrainingJob, running: bool, curves: Reader, model: str = "", chosen: bool = False) -> str:
    """Progress, time left and k-NN accuracy of a training, as HTML; before its first step what it says last.

    Args:
        training: The training.
        running: Whether it is running.
        curves: Colors of the runs.
        model: Name of its model at the top of the page; empty while there is none.
        chosen: Whether this model is chosen there.
    """
    path = training.out / "metrics.jsonl"
    rows = metrics_log.rows(path) if path.is_file() else []
    done = max((row["step"] for row in rows), default=0)
    settings = _settings(training.out)
    total, batch = settings.get("steps"), settings.get("batch")
    if not isinstance(total, int) or not isinstance(batch, int):
        total = batch = 0
    evaluated = next((row for row in reversed(rows) if row.get("knn")), {})
    title = f"{knn_title(evaluated)}, accuracy after {evaluated.get('step', 0):,} steps:"
    found = verdict.of_rows(rows, total, cures(settings)) if rows and total and not running else None
    longer = found is not None and found.cure.startswith(verdict.LONGER)
    said = training.said
    names = {(True, True): "Stopping", (True, False): "Training", (False, True): "Stopped", (False, False): "Done"}
    return templates.render(
        "training.html",
        failed=in_page_words(training.failed),
        state=names[running, training.stopped],
        done=done,
        running=running,
        model=model,
        chosen=chosen,
        last_line=in_page_words(said[-1].strip().removeprefix("opendino train: ")) if said else "starting Python ...",
        color=curves.color(training.out),
        steps=f"{done:,} of {total:,}" if total else f"{done:,}",
        percent=100 * done / total if total else 0,
        left=_time_left(rows, (total - done) * batch) if running and total else "",
        charts={title: panels.bars(evaluated)} if evaluated else {},
        baseline=in_page_words(baseline_text(evaluated)),
        verdict=found,
        evidence=in_page_words(found.evidence) if found else "",
        cure=LONGER if longer else ELSEWHERE if found and found.collapse else cure_words(found.cure) if found else "",
        command=training.command,
        said=said[-40:],
    )


def _settings(run: Path) -> dict[str, Any]:
    """The settings of a run; none before it has chosen them."""
    try:
        return run_curves.settings(run)
    except (UserError, OSError):
        return {}


def _time_left(rows: list[dict[str, Any]], num_images: int) -> str:
    """How long the remaining images take at the median speed of the last rows; empty if it is not known yet."""
    speeds = [row["images_per_second"] for row in rows[-200:] if row.get("images_per_second")]
    if not speeds:
        return ""
    minutes = num_images / statistics.median(speeds) / 60
    if minutes < 1:
        return "less than a minute left"
    return f"about {minutes:.0f} min left" if minutes < 90 else f"about {minutes / 60:.1f} hours left"


def _size(training: TrainingJob) -> int:
    """Bytes of its metrics: the charts are drawn again when it changes."""
    path = training.out / "metrics.jsonl"
    return path.stat().st_size if path.is_file() else 0


def _buttons(running: bool) -> tuple[Any, Any, Any]:
    return gr.update(interactive=not running), gr.update(interactive=running), gr.Timer(active=running)
