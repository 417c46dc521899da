"""Curves are drawn without a screen, the same each time, and into pictures only."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from opendino.core.errors import UsageError
from opendino.visualise.curves import Panel, draw

PANELS = [
    Panel("one", "y", {"a": [([0, 1, 2], [1.0, 2.0, 3.0]), ([0, 1, 2], [3.0, 2.0, 1.0])]}, level=(2.5, "ln K")),
    Panel("two", "z", {"b": [([0, 1], [1.0, 2.0]), ([0], [1.0])]}),
]


def test_a_picture_of_every_kind(tmp_path: Path) -> None:
    for kind in ("png", "svg", "pdf"):
        draw(PANELS, tmp_path / f"curves.{kind}")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > image.height > 300
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_curves_are_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        draw(PANELS, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"End its name in \.png, \.svg or \.pdf"):
        draw(PANELS, tmp_path / "curves.txt")
    assert not list(tmp_path.iterdir())
