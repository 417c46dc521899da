"""Distributions sum to 1, and their entropies match the closed form."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from opendino.core.errors import UsageError, UserError
from opendino.visualize.drawing import style
from opendino.visualize.temperature import Config, example, figure, show, softened

EXACT = {"rtol": 0, "atol": 1e-12}


def test_entropies_in_closed_form() -> None:
    # Two prototypes d apart: p = 1 / (1 + exp(-d/τ)), H = ln(1 + exp(d/τ)) - p·d/τ. Centering makes d that of one image
    # from the mean of both.
    logits = torch.tensor([[1.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    found = softened(logits, (0.1, 1.0))
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(2, 2, dtype=torch.float64), **EXACT)
    for row, distance in ((0, 1.0), (1, 0.25)):
        for column, temperature in enumerate((0.1, 1.0)):
            scaled = distance / temperature
            p = 1 / (1 + math.exp(-scaled))
            assert found.probabilities[row, column, 0].item() == pytest.approx(p, abs=1e-12)
            expected = math.log(1 + math.exp(scaled)) - p * scaled
            assert found.entropies[row, column].item() == pytest.approx(expected, abs=1e-12)


def test_sharper_means_less_entropy_and_centering_takes_the_lead_away() -> None:
    logits = example(32, seed=0)
    found = softened(logits, (0.01, 0.04, 0.1, 1.0, 100.0))
    assert (found.entropies.diff(dim=1) > 0).all()
    assert found.entropies[0, -1].item() == pytest.approx(math.log(32), abs=1e-4)
    assert (found.entropies[1, 1:3] > found.entropies[0, 1:3]).all()
    assert (logits.argmax(1) == 10).float().mean() > 0.5, "one prototype is ahead of the others"
    assert ((logits - logits.mean(0)).argmax(1) == 10).float().mean() < 0.15
    assert torch.equal(example(32, 0), logits) and not torch.equal(example(32, 1), logits)


def test_bars_are_the_probabilities_and_the_entropy_is_written_in() -> None:
    found = softened(example(8, 0), (0.04, 0.1))
    with style.applied():
        axes = figure(found).axes
    assert len(axes) == 4 and axes[1].get_title("left") == "τ = 0.1"
    for row in (0, 1):
        for column in (0, 1):
            axis = axes[2 * row + column]
            heights = [bar.get_height() for bar in axis.patches]
            assert heights == pytest.approx(found.probabilities[row, column].tolist())
            assert axis.texts[0].get_text().startswith(f"H = {found.entropies[row, column]:.2f} (")


def test_logits_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.zeros((3, 4), np.float32))
    found = show(Config((0.5,), logits=str(tmp_path / "l.npy"), out=str(tmp_path / "t.svg")))
    assert found.fields["entropy"] == found.fields["entropy_centered"] == pytest.approx([math.log(4)])
    assert (tmp_path / "t.svg").read_text().startswith("<?xml")
    np.save(tmp_path / "nan.npy", np.full((3, 4), np.nan))
    np.save(tmp_path / "flat.npy", np.zeros(4))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name, said in (
        ("nan", "NaN or infinite"),
        ("flat", r"holds float64 \[4\]"),
        ("objects", "Cannot read"),
        ("no", "Cannot"),
    ):
        with pytest.raises(UserError, match=said):
            show(Config(logits=str(tmp_path / f"{name}.npy"), out=str(tmp_path / "o.png")))
    for flags, said in (
        ({"temperatures": (0.0,)}, "from 0.0001"),
        ({"temperatures": ()}, "1 to 6 values"),
        ({"prototypes": 1}, "2"),
    ):
        with pytest.raises(UsageError, match=said):
            Config(**flags)
