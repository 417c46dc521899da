"""Tab "Train": train a tiny network, on generated or uploaded images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from opendino.app import chart_grid, uploads
from opendino.app.context import Context, bounded, handle_errors, session_id
from opendino.app.training_jobs import TrainingJob
from opendino.core import metrics_log
from opendino.core.accuracy import baseline_text
from opendino.core.errors import UserError
from opendino.engine import verdict
from opendino.visualize.drawing import panels, templates

NAME = "Train"

_GENERATED = {
    "Gray textures (learns well)": "toy:textures?n=2000&size=32",
    "Gray shapes": "toy:forms?n=2000&size=32",
    "Colored textures (learns colors only)": "toy:colorful?n=2000&size=32",
}
_UPLOADED = "My own images (.zip)"
_NETWORKS = {"Four convolutions (fast)": "conv4", "Small vision transformer": "vit_tiny/4"}


def build(context: Context, model: gr.Dropdown) -> None:
    """Build the tab."""
    gr.Markdown(
        "Train a tiny network: a few minutes on a laptop. Training uses no labels; they serve only the k-NN accuracy."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            images = gr.Radio([*_GENERATED, _UPLOADED], value=next(iter(_GENERATED)), label="Images")
            upload = gr.File(label=".zip archive of images", file_types=[".zip"], height=150, visible=False)
            network = gr.Radio(list(_NETWORKS), value=next(iter(_NETWORKS)), label="Network")
            steps = gr.Slider(20, 800, 200, step=20, label="Steps (64 images each)")
            with gr.Row():
                start = gr.Button("Train", variant="primary", min_width=80)
                stop = gr.Button("Stop", interactive=False, min_width=80)
        with gr.Column(scale=5):
            page = gr.HTML("<p>Nothing is running.</p>", min_height=80)
            charts, measured = gr.Column(), gr.State(0)
    timer = gr.Timer(1, active=False)
    buttons = [start, stop, timer]

    def begin(images: str, raw: Any, network: str, steps: float, request: gr.Request) -> tuple[Any, ...]:
        uploaded = uploads.resolve_upload(raw, context.upload_folder) if images == _UPLOADED else None
        data, flags = _data_and_flags(images, uploaded, network)
        context.jobs.start(session_id(request), data, int(bounded(steps, 1, 800)), flags)
        return "<p>Starting …</p>", *_buttons(running=True)

    def show(request: gr.Request) -> tuple[Any, ...]:
        training = context.jobs.latest(session_id(request))
        if training is None:
            return "<p>Nothing is running.</p>", *_buttons(running=False), gr.skip(), 0
        running = training.running  # read before the metrics: if it has ended, they are complete
        choices = gr.skip()
        if not running:
            mine = list(context.jobs.models(session_id(request)))
            known = list(context.models(session_id(request)))
            choices = gr.update(choices=known, value=mine[0]) if mine else gr.update(choices=known)
        return draw(training, running), *_buttons(running), choices, _size(training)

    def halt(request: gr.Request) -> None:
        if training := context.jobs.latest(session_id(request)):
            training.ask_to_stop()

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    images.change(lambda kind: gr.update(visible=kind == _UPLOADED), images, upload, queue=False, **private)
    start.click(handle_errors(begin), [images, upload, network, steps], [page, *buttons], preprocess=False, **private)
    stop.click(handle_errors(halt), None, None, **private)
    timer.tick(handle_errors(show), None, [page, *buttons, model, measured], **private)

    with charts:

        @gr.render([], [measured.change], show_progress="hidden")
        @handle_errors
        def show_charts(request: gr.Request) -> None:
            if (training := context.jobs.latest(session_id(request))) and _size(training):
                columns = panels.of_file(training.out / "metrics.jsonl")
                chart_grid.build(panels.charts({"this training": columns}))


def _data_and_flags(images: str, uploaded: Path | None, network: str) -> tuple[str | Path, list[str]]:
    """DATA and the flags of `opendino train` for the choices on the page.

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


def draw(training: TrainingJob, running: bool) -> str:
    """Progress and k-NN accuracy of a training, as HTML."""
    path = training.out / "metrics.jsonl"
    rows = metrics_log.rows(path) if path.is_file() else []
    done = max((row["step"] for row in rows), default=0)
    evaluated = next((row for row in reversed(rows) if row.get("knn")), {})
    title = f"k-NN accuracy after {evaluated.get('step', 0):,} steps:"
    names = {(True, True): "Stopping", (True, False): "Training", (False, True): "Stopped", (False, False): "Done"}
    return templates.render(
        "training.html",
        failed=training.failed,
        state=names[running, training.stopped],
        steps=f"{done:,} of {training.steps:,}",
        percent=100 * done / training.steps,
        ready=rows and not running,
        charts={title: panels.bars(evaluated)} if evaluated else {},
        baseline=baseline_text(evaluated),
        verdict=verdict.of_rows(rows, training.steps) if rows and not running else None,
    )


def _size(training: TrainingJob) -> int:
    """Bytes of its metrics: the charts are drawn again when it changes."""
    path = training.out / "metrics.jsonl"
    return path.stat().st_size if path.is_file() else 0


def _buttons(running: bool) -> tuple[Any, Any, Any]:
    return gr.update(interactive=not running), gr.update(interactive=running), gr.Timer(active=running)
