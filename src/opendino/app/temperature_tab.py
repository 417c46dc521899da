"""Tab "Temperature": sliders that show the effect of centering and sharpening on the teacher's output."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import gradio as gr
import pandas as pd
from torch import Tensor

from opendino.app.context import Context, Head, bounded, handle_errors
from opendino.losses import entropy
from opendino.visualize import temperature
from opendino.visualize.drawing.style import COLORS

NAME = "Temperature"

_CHARTS = {
    "Student: sharpened, never centered": COLORS[2],
    "Teacher: centered, then sharpened": COLORS[0],
    "Teacher's mean over 256 images": COLORS[1],
}
"""Label → color of the bars."""


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "The teacher's output for one image: a probability for each prototype. A low temperature **sharpens** it. "
        "**Centering** subtracts the mean over many images, so that no prototype wins for all of them. "
        "Training collapses with only one of the two. Move the sliders."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            teacher = gr.Slider(0.01, 1, 0.04, step=0.01, label="Teacher temperature (DINO: 0.04 to 0.07)")
            student = gr.Slider(0.01, 1, 0.1, step=0.01, label="Student temperature (DINO: 0.1)")
            centering = gr.Slider(0, 1, 1, step=0.05, label="Centering: share of the mean that is subtracted")
            lead = gr.Slider(0, 1, 0.25, step=0.05, label="Bias of one prototype, in all images")
            prototypes = gr.Slider(8, 96, 32, step=4, label="Number of prototypes K")
            seed = gr.Slider(0, 50, 0, step=1, label="Random seed of the image")
        with gr.Column(scale=4):
            note, *charts = draw(0.04, 0.1, 1, 0.25, 32, 0)
            outputs: list[Any] = [gr.HTML(note)]
            outputs += [
                gr.BarPlot(
                    x="prototype", y="probability", color="of", colors_in_legend=[], color_map={title: color},
                    y_lim=[0, None], x_axis_labels_visible=False, height=190, **chart,
                )
                for chart, (title, color) in zip(charts, _CHARTS.items(), strict=True)
            ]  # fmt: skip
    sliders = [teacher, student, centering, lead, prototypes, seed]
    gr.on(
        [slider.input for slider in sliders],
        handle_errors(
            lambda *values: [gr.update(**each) if isinstance(each, dict) else each for each in draw(*values)]
        ),
        sliders,
        outputs,
        trigger_mode="always_last",
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )


def draw(teacher: float, student: float, centering: float, lead: float, prototypes: float, seed: float) -> list[Any]:
    """What the settings mean for a training, as HTML, and the options of three bar charts over the prototypes.

    Args:
        teacher, student: Temperatures, 0.01 to 1.
        centering: Share of the mean that is subtracted, 0 to 1.
        lead: Bias added to the logit of one prototype in all images, 0 to 1.
        prototypes: Number of prototypes K, 8 to 96.
        seed: Seed of the random logits, 0 to 50.

    Raises:
        UserError: A value is out of its range.
    """
    teacher, student = bounded(teacher, 0.01, 1), bounded(student, 0.01, 1)
    centering, lead = bounded(centering, 0, 1), bounded(lead, 0, 1)
    prototypes, seed = bounded(prototypes, 8, 96), bounded(seed, 0, 50)
    logits = temperature.example(int(prototypes), int(seed), lead=lead)  # [B, K]
    mean = logits.mean(0)  # [K]
    raw, centered = logits[0], logits[0] - centering * mean
    target = (centered / teacher).softmax(-1)
    marginal = ((logits - centering * mean) / teacher).softmax(-1).mean(0)
    max_entropy = math.log(int(prototypes))
    entropy_frac, marginal_frac = entropy(target).item() / max_entropy, entropy(marginal).item() / max_entropy
    name, why = verdict(entropy_frac, marginal_frac, marginal.max().item())
    kind = "good" if name == "Balanced" else "bad"
    distributions = [(raw / student).softmax(-1), target, marginal]
    note = f'<div class="{kind}"><b>{escape(name)}.</b> {escape(why)}</div>'
    return [note, *(_chart(title, each) for title, each in zip(_CHARTS, distributions, strict=True))]


def verdict(entropy_frac: float, marginal_frac: float, top_frac: float) -> tuple[str, str]:
    """Name and explanation of the state that such teacher outputs lead to.

    Args:
        entropy_frac: Entropy of the output for one image, as a share of ln K.
        marginal_frac: Entropy of the mean output over many images, as a share of ln K.
        top_frac: Largest probability of the mean output.
    """
    if entropy_frac > 0.95:
        return "Uniform output", "All prototypes have about the same probability for every image: sharpen more."
    if top_frac > 0.3:
        return "One prototype dominates", f"It has {top_frac:.0%} of the probability over all images: center more."
    if marginal_frac - entropy_frac < 0.05:
        return "Nearly the same output for every image", "The student can predict it without the image: sharpen more."
    return "Balanced", "Different images get different outputs, and all prototypes are used."


def _chart(title: str, probabilities: Tensor) -> dict[str, Any]:
    """Value and label of the bar chart of probabilities [K]. A new title would make Gradio draw the old value."""
    number, found = len(probabilities), entropy(probabilities).item()
    values = {
        "prototype": [str(k) for k in range(1, number + 1)],  # names, not numbers: bars as wide as their share
        "probability": probabilities.tolist(),
        "of": title,
    }
    caption = f"{title} (entropy {found:.2f}, {found / math.log(number):.0%} of ln K)"
    return {"value": pd.DataFrame(values), "label": caption}
