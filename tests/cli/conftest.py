"""Images for the verbs that read some."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.factories import noise_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five pictures and a file that is none."""
    folder = noise_folder(tmp_path / "photos", 5, 30, 20)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder
