"""Temperature: what centering and sharpening do to the teacher's output, under your hands."""

from __future__ import annotations

import math
from html import escape

import gradio as gr
from torch import Tensor

from opendino.app.context import Context, bounded
from opendino.app.context import handle_errors as told
from opendino.losses import entropy
from opendino.visualize import temperature
from opendino.visualize.drawing.tile_grid import COLORS

NAME = "Temperature"

_WIDTH, _HEIGHT, _FOOT, _HEAD = 660, 150, 4, 26


def build(desk: Context, model: gr.Dropdown) -> None:
    """The tab."""
    gr.Markdown(
        "The teacher's answer to one picture, as probabilities of prototypes. A low temperature **sharpens** it; "
        "**centering** takes off the mean over many pictures, and with it the lead that one has in all of them. "
        "Either alone collapses. Move the sliders."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            teacher = gr.Slider(0.01, 1, 0.04, step=0.01, label="Teacher's temperature (DINO 0.04 to 0.07)")
            student = gr.Slider(0.01, 1, 0.1, step=0.01, label="Student's temperature (DINO 0.1)")
            centering = gr.Slider(0, 1, 1, step=0.05, label="Centering: how much of the mean is taken off")
            lead = gr.Slider(0, 1, 0.25, step=0.05, label="Lead of one prototype in every picture")
            prototypes = gr.Slider(8, 96, 32, step=4, label="Prototypes K")
            chance = gr.Slider(0, 50, 0, step=1, label="Another picture")
        with gr.Column(scale=4):
            found = gr.HTML(draw(0.04, 0.1, 1, 0.25, 32, 0), min_height=520)
    sliders = [teacher, student, centering, lead, prototypes, chance]
    gr.on(
        [slider.input for slider in sliders],
        told(draw),
        sliders,
        found,
        trigger_mode="always_last",
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )


def draw(teacher: float, student: float, centering: float, lead: float, prototypes: float, seed: float) -> str:
    """Three distributions over prototypes as SVG, and in words what would become of a training.

    Args:
        teacher, student: Temperatures, above 0.
        centering: Share of the mean that is taken off, 0 to 1.
        lead: Added to one prototype's logit in all images.
        prototypes: K.
        seed: Of the logits.
    """
    teacher, student = bounded(teacher, 0.01, 1), bounded(student, 0.01, 1)
    centering, lead = bounded(centering, 0, 1), bounded(lead, 0, 1)
    prototypes, seed = bounded(prototypes, 8, 96), bounded(seed, 0, 50)
    logits = temperature.example(int(prototypes), int(seed), lead=lead)
    mean = logits.mean(0)
    raw, centered = logits[0], logits[0] - centering * mean
    target = (centered / teacher).softmax(-1)
    everyone = ((logits - centering * mean) / teacher).softmax(-1).mean(0)
    most = math.log(int(prototypes))
    bars = [
        _bars("Student: sharpened, never centered", (raw / student).softmax(-1), COLORS[2]),
        _bars("Teacher: centered, then sharpened", target, COLORS[0]),
        _bars("Teacher's mean over 256 pictures", everyone, COLORS[1]),
    ]
    name, why = verdict(entropy(target).item() / most, entropy(everyone).item() / most, everyone.max().item())
    kind = "good" if name == "Balanced" else "bad"
    return f'<div class="{kind}"><b>{escape(name)}.</b> {escape(why)}</div><div class="bars">{"".join(bars)}</div>'


def verdict(entropy_frac: float, marginal_frac: float, top_frac: float) -> tuple[str, str]:
    """What such outputs lead to.

    Args:
        entropy_frac: Entropy of the teacher's answer to a picture, a share of ln K.
        marginal_frac: That of its mean answer over many.
        top_frac: The largest probability of the mean answer.
    """
    if entropy_frac > 0.95:
        return "It says next to nothing", "Every prototype is about equally likely for every picture: sharpen more."
    if top_frac > 0.3:
        return "One prototype takes over", f"It gets {top_frac:.0%} of all answers, and soon every one: center more."
    if marginal_frac - entropy_frac < 0.05:
        return "Hardly different from picture to picture", "The student could answer without looking: sharpen more."
    return "Balanced", "Each picture gets an answer of its own, and all prototypes are in use."


def _bars(title: str, probabilities: Tensor, color: str) -> str:
    number, top = len(probabilities), max(float(probabilities.max()), 2 / len(probabilities))
    high, wide = _HEIGHT - _FOOT - _HEAD, _WIDTH / number
    told = (
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
        f'<text x="{_WIDTH}" y="15" text-anchor="end" fill="#666">{told}</text>'
        f'<g fill="{color}">{rects}</g>'
        f'<path d="M0 {even:.1f}H{_WIDTH}" stroke="#888" stroke-dasharray="4 4"/>'
        f'<path d="M0 {base}H{_WIDTH}" stroke="#bbb"/></svg>'
    )
