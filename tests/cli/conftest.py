"""Images for the verbs that read some."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five pictures and a file that is none."""
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.new("RGB", (30, 20), (50 * number, 99, 200 - 9 * number)).save(tmp_path / f"photos/{number}.png")
    (tmp_path / "photos/broken.jpg").write_bytes(b"no image")
    return tmp_path / "photos"
