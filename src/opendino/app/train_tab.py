"""Tab "Train": train a tiny network, on generated or uploaded images."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from opendino.app import uploads
from opendino.app.context import Context, bounded, handle_errors, session_id
from opendino.app.training_jobs import TrainingJob
from opendino.core import metrics_log
from opendino.core.accuracy import baseline_text, format_accuracies
from opendino.core.errors import UserError
from opendino.engine.collapse_detection import examine
from opendino.visualize.drawing.line_plots import plot

NAME = "Train"

_GENERATED = {
    "Gray textures (learns well)": "toy:textures?n=2000&size=32",
    "Gray shapes": "toy:forms?n=2000&size=32",
    "Colored textures (learns colors only)": "toy:colorful?n=2000&size=32",
}
_UPLOADED = "My own images (.zip)"
_NETWORKS = {"Four convolutions (fast)": "conv4", "Small vision transformer": "vit_tiny/4"}
_PLOTS = (
    ("loss (nats)", {"loss": "loss"}),
    ("entropy of the teacher (share of ln K)", {"entropy_frac": "per image", "marginal_frac": "of the mean"}),
)
_NAMES = {"teacher": "teacher (recommended)", "untrained": "untrained network", "pixels": "raw pixels"}


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
            page = gr.HTML("<p>Nothing is running.</p>", min_height=420)
    timer = gr.Timer(1, active=False)
    buttons = [start, stop, timer]

    def begin(images: str, raw: Any, network: str, steps: float, request: gr.Request) -> tuple[Any, ...]:
        if images not in (*_GENERATED, _UPLOADED) or network not in [*_NETWORKS]:
            raise UserError("The images or the network are not among the choices", "Choose them on this page")
        flags = ["--backbone", _NETWORKS[network], "--workers", "0", "--eval-every", "25%", "--eval-images", "1000"]
        flags += ["--report", "False"]
        if images == _UPLOADED:
            data = uploads.resolve_upload(raw, context.upload_folder)
            if data is None:
                raise UserError("No .zip was uploaded", "Upload one above")
            number = uploads.check_zip(data)
            flags += ["--val", "None", "--batch", str(min(64, max(2, number // 2)))]
        else:
            data = _GENERATED[images]
            flags += ["--val", f"{data.replace('n=2000', 'n=500')}&split=val"]
        context.jobs.start(session_id(request), data, int(bounded(steps, 1, 800)), flags)
        return "<p>Starting …</p>", *_buttons(running=True)

    def show(request: gr.Request) -> tuple[Any, ...]:
        training = context.jobs.latest(session_id(request))
        if training is None:
            return "<p>Nothing is running.</p>", *_buttons(running=False), gr.skip()
        running = training.running  # read before the metrics: if it has ended, they are complete
        choices = gr.skip()
        if not running:
            mine = list(context.jobs.models(session_id(request)))
            known = list(context.models(session_id(request)))
            choices = gr.update(choices=known, value=mine[0]) if mine else gr.update(choices=known)
        return draw(training, running), *_buttons(running), choices

    def halt(request: gr.Request) -> None:
        if training := context.jobs.latest(session_id(request)):
            training.ask_to_stop()

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    images.change(lambda kind: gr.update(visible=kind == _UPLOADED), images, upload, queue=False, **private)
    start.click(handle_errors(begin), [images, upload, network, steps], [page, *buttons], preprocess=False, **private)
    stop.click(handle_errors(halt), None, None, **private)
    timer.tick(handle_errors(show), None, [page, *buttons, model], **private)


def draw(training: TrainingJob, running: bool) -> str:
    """Progress, k-NN accuracy and curves of a training, as HTML."""
    path = training.out / "metrics.jsonl"
    rows = metrics_log.rows(path) if path.is_file() else []
    done = max((row["step"] for row in rows), default=0)
    if training.failed:
        return f'<div class="bad"><b>The training failed.</b> {escape(training.failed)}</div>'
    word = (
        "Stopping"
        if running and training.stopped
        else "Training"
        if running
        else "Stopped"
        if training.stopped
        else "Done"
    )
    after = "" if running or not rows else " Choose the model at the top of the page to use it in the other tabs."
    share = done / training.steps
    head = f"<b>{word}:</b> {done:,} of {training.steps:,} steps.{after}"
    parts = [f'<p>{head}</p><div class="track"><div style="width:{share:.1%}"></div></div>']
    evaluated = [row for row in rows if row.get("knn")]
    if evaluated:
        cells = "".join(
            f"<tr><th>{escape(_NAMES.get(str(name), str(name)))}</th>"
            f'<td><span class="bar" style="width:{2 * evaluated[-1]["knn"][name]:.0f}px"></span>{value}</td></tr>'
            for name, value in format_accuracies(evaluated[-1]).items()
        )
        parts.append(f"<p>k-NN accuracy after {evaluated[-1]['step']:,} steps:</p><table>{cells}</table>")
        parts.append(f"<p>{escape(baseline_text(evaluated[-1]))}</p>")
    if not running and rows:
        found = examine(rows, training.steps)
        parts.append(f"<p><b>{found.name}</b>: {escape(found.evidence)}</p>")
    plots = []
    for title, names in _PLOTS:
        lines = {
            label: ([row["step"] for row in rows if name in row], [row[name] for row in rows if name in row])
            for name, label in names.items()
        }
        if any(values for _, values in lines.values()):
            plots.append(plot(title, lines))
    return "".join([*parts, f'<div class="plots">{"".join(plots)}</div>'])


def _buttons(running: bool) -> tuple[Any, Any, Any]:
    return gr.update(interactive=not running), gr.update(interactive=running), gr.Timer(active=running)
