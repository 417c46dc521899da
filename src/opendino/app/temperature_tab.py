"""Tab "Temperature": sliders that show the effect of centering and sharpening on the teacher's output."""

from __future__ import annotations

import math
from html import escape

import gradio as gr
from torch import Tensor

from opendino.app.context import Context, bounded, handle_errors
from opendino.losses import entropy
from opendino.visualize import temperature
from opendino.visualize.drawing.tile_grid import COLORS

NAME = "Temperature"

_WIDTH, _HEIGHT, _FOOT, _HEAD = 660, 150, 4, 26


def build(context: Context, model: gr.Dropdown) -> None:
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
            output = gr.HTML(draw(0.04, 0.1, 1, 0.25, 32, 0), min_height=520)
    sliders = [teacher, student, centering, lead, prototypes, seed]
    gr.on(
        [slider.input for slider in sliders],
        handle_errors(draw),
        sliders,
        output,
        trigger_mode="always_last",
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )


def draw(teacher: float, student: float, centering: float, lead: float, prototypes: float, seed: float) -> str:
    """Three distributions over prototypes as SVG, and what they mean for a training, as HTML.

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
    bars = [
        _bars("Student: sharpened, never centered", (raw / student).softmax(-1), COLORS[2]),
        _bars("Teacher: centered, then sharpened", target, COLORS[0]),
        _bars("Teacher's mean over 256 images", marginal, COLORS[1]),
    ]
    entropy_frac, marginal_frac = entropy(target).item() / max_entropy, entropy(marginal).item() / max_entropy
    name, why = verdict(entropy_frac, marginal_frac, marginal.max().item())
    kind = "good" if name == "Balanced" else "bad"
    return f'<div class="{kind}"><b>{escape(name)}.</b> {escape(why)}</div><div class="bars">{"".join(bars)}</div>'


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


def _bars(title: str, probabilities: Tensor, color: str) -> str:
    """A bar chart of probabilities [K] as SVG, with a dashed line at 1/K."""
    number, top = len(probabilities), max(float(probabilities.max()), 2 / len(probabilities))
    high, wide = _HEIGHT - _FOOT - _HEAD, _WIDTH / number
    caption = (
        f"entropy {entropy(probabilities).item():.2f}, {entropy(probabilities).item() / math.log(number):.0%} of ln K"
    )
    base, even = _HEIGHT - _FOOT, _HEIGHT - _FOOT - high / number / top
    rects = "".join(
        f'<rect x="{i * wide + 0.08 * wide:.1f}" y="{base - high * p / top:.1f}" width="{0.84 * wide:.1f}" '
        f'height="{high * p / top:.1f}"/>'
        for i, p in enumerate(probabilities.tolist())
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="system-ui, sans-serif" font-size="13" role="img">'
        f'<text x="0" y="15" font-weight="600">{escape(title)}</text>'
        f'<text x="{_WIDTH}" y="15" text-anchor="end" fill="#666">{caption}</text>'
        f'<g fill="{color}">{rects}</g>'
        f'<path d="M0 {even:.1f}H{_WIDTH}" stroke="#888" stroke-dasharray="4 4"/>'
        f'<path d="M0 {base}H{_WIDTH}" stroke="#bbb"/></svg>'
    )
