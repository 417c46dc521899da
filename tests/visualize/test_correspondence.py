"""A shifted patch is found in the second image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opendino.core.errors import UsageError
from opendino.models.load import Model
from opendino.visualize import correspondence
from opendino.visualize.correspondence import Config, show


def test_a_shifted_patch_is_found(looking: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correspondence, "load", lambda *_: looking)
    red = np.zeros((16, 24, 3), np.uint8)
    red[..., 1] = 200
    first, second = red.copy(), np.concatenate([red, red], axis=1)
    first[4:8, 8:12] = (250, 0, 0)
    second[8:12, 32:36] = (250, 0, 0)  # row 2, column 8
    for name, pixels in (("first.png", first), ("second.png", second)):
        Image.fromarray(pixels).save(tmp_path / name)
    a, b, out = (str(tmp_path / name) for name in ("first.png", "second.png", "out.png"))
    report = show(Config("any", a, b, at=(9, 6), out=out, size_px=16, device="cpu"))
    assert (report.fields["grid"], report.fields["best"]) == ([4, 12], [34, 10])
    assert report.fields["similarity"] == pytest.approx(1) and "(9, 6) → (34, 10)" in report.text
    with Image.open(out) as drawn:
        assert drawn.width == 24 + 48 + 48 + 4 * 8  # the point, the match, the map, and gaps
    with pytest.raises(UsageError, match=r"at is -1 0\. Use 2 values, each a number from 0"):
        Config("any", a, b, at=(-1, 0), out=out)
    for at in ((24, 3), (3, 16)):
        with pytest.raises(UsageError, match="outside an image of 24×16 px"):
            show(Config("any", a, b, at=at, out=out, size_px=16, device="cpu"))
