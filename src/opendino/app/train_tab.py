"""Train: a tiny network now, on images drawn on the spot or on your own."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from opendino.app import uploads
from opendino.app.context import Context, bounded, session
from opendino.app.context import handle_errors as told
from opendino.app.training_jobs import TrainingJob
from opendino.core import metrics_log
from opendino.core.accuracy import shown, yardstick
from opendino.core.errors import UserError
from opendino.engine.collapse_detection import examine
from opendino.visualize.drawing.line_plots import plot

NAME = "Train"

_DRAWN = {
    "Gray textures (learns well)": "toy:textures?n=2000&size=32",
    "Gray forms": "toy:forms?n=2000&size=32",
    "Colored textures (learns colors only)": "toy:colorful?n=2000&size=32",
}
_MINE = "My own images (.zip)"
_NETWORKS = {"Four convolutions (fast)": "conv4", "Small vision transformer": "vit_tiny/4"}
_PLOTS = (
    ("loss (nats)", {"loss": "loss"}),
    ("entropy, teacher (share of ln K)", {"entropy_frac": "of an image", "marginal_frac": "of the mean"}),
)
_NAMES = {"teacher": "teacher (the one to use)", "untrained": "untrained network", "pixels": "raw pixels"}


def build(desk: Context, model: gr.Dropdown) -> None:
    """The tab."""
    gr.Markdown(
        "Train a tiny network now: a few minutes on a laptop. No labels are used; k-NN only shows what is learnt."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            images = gr.Radio([*_DRAWN, _MINE], value=next(iter(_DRAWN)), label="Images")
            upload = gr.File(label=".zip of images", file_types=[".zip"], height=150, visible=False)
            network = gr.Radio(list(_NETWORKS), value=next(iter(_NETWORKS)), label="Network")
            steps = gr.Slider(20, 800, 200, step=20, label="Steps of 64 images")
            with gr.Row():
                start = gr.Button("Train", variant="primary", min_width=80)
                stop = gr.Button("Stop", interactive=False, min_width=80)
        with gr.Column(scale=5):
            page = gr.HTML("<p>Nothing is running.</p>", min_height=420)
    timer = gr.Timer(1, active=False)
    buttons = [start, stop, timer]

    def begin(images: str, raw: Any, network: str, steps: float, ask: gr.Request) -> tuple[Any, ...]:
        if images not in (*_DRAWN, _MINE) or network not in [*_NETWORKS]:
            raise UserError("That cannot be chosen")
        flags = ["--backbone", _NETWORKS[network], "--workers", "0", "--eval-every", "25%", "--eval-images", "1000"]
        flags += ["--report", "False"]
        if images == _MINE:
            data = uploads.path(raw, desk.uploads)
            if data is None:
                raise UserError("There is no .zip yet", "Put one in above")
            number = uploads.archive(data)
            flags += ["--val", "None", "--batch", str(min(64, max(2, number // 2)))]
        else:
            data = _DRAWN[images]
            flags += ["--val", f"{data.replace('n=2000', 'n=500')}&split=val"]
        desk.workshop.start(session(ask), data, int(bounded(steps, 1, 800)), flags)
        return "<p>Starting …</p>", *_buttons(running=True)

    def show(ask: gr.Request) -> tuple[Any, ...]:
        training = desk.workshop.latest(session(ask))
        if training is None:
            return "<p>Nothing is running.</p>", *_buttons(running=False), gr.skip()
        running = training.running  # asked first: what is drawn then is the last there is
        listed = gr.skip()
        if not running:
            mine = list(desk.workshop.models(session(ask)))
            known = list(desk.models(session(ask)))
            listed = gr.update(choices=known, value=mine[0]) if mine else gr.update(choices=known)
        return draw(training, running), *_buttons(running), listed

    def halt(ask: gr.Request) -> None:
        if training := desk.workshop.latest(session(ask)):
            training.ask_to_stop()

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    images.change(lambda kind: gr.update(visible=kind == _MINE), images, upload, queue=False, **private)
    start.click(told(begin), [images, upload, network, steps], [page, *buttons], preprocess=False, **private)
    stop.click(told(halt), None, None, **private)
    timer.tick(told(show), None, [page, *buttons, model], **private)


def draw(training: TrainingJob, running: bool) -> str:
    """How far a training is, with its curves, as HTML."""
    path = training.out / "metrics.jsonl"
    rows = metrics_log.rows(path) if path.is_file() else []
    done = max((row["step"] for row in rows), default=0)
    if training.failed:
        return f'<div class="bad"><b>It did not work.</b> {escape(training.failed)}</div>'
    word = (
        "Stopping"
        if running and training.stopped
        else "Training"
        if running
        else "Stopped"
        if training.stopped
        else "Done"
    )
    after = "" if running or not rows else " Choose it at the top of the page and look at pictures with it."
    share = done / training.steps
    head = f"<b>{word}:</b> {done:,} of {training.steps:,} steps.{after}"
    parts = [f'<p>{head}</p><div class="track"><div style="width:{share:.1%}"></div></div>']
    judged = [row for row in rows if row.get("knn")]
    if judged:
        cells = "".join(
            f"<tr><th>{escape(_NAMES.get(str(name), str(name)))}</th>"
            f'<td><span class="bar" style="width:{2 * judged[-1]["knn"][name]:.0f}px"></span>{value}</td></tr>'
            for name, value in shown(judged[-1]).items()
        )
        parts.append(f"<p>k-NN after {judged[-1]['step']:,} steps:</p><table>{cells}</table>")
        parts.append(f"<p>{escape(yardstick(judged[-1]))}</p>")
    if not running and rows:
        found = examine(rows, training.steps)
        parts.append(f"<p><b>{found.name}</b>: {escape(found.evidence)}</p>")
    plots = []
    for title, names in _PLOTS:
        lines = {
            told: ([row["step"] for row in rows if name in row], [row[name] for row in rows if name in row])
            for name, told in names.items()
        }
        if any(values for _, values in lines.values()):
            plots.append(plot(title, lines))
    return "".join([*parts, f'<div class="plots">{"".join(plots)}</div>'])


def _buttons(running: bool) -> tuple[Any, Any, Any]:
    return gr.update(interactive=not running), gr.update(interactive=running), gr.Timer(active=running)
