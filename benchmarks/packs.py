"""Packs of real images: folders, or .tar.gz files that are unpacked when they are needed, in $OPENDINO_DATA."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path


def folder(name: str, home: Path) -> Path:
    """The folder of a pack, unpacked into `home` unless it is one already."""
    found = Path(os.environ["OPENDINO_DATA"]) / name
    if found.is_dir():
        return found
    if not (home / name).is_dir():
        with tarfile.open(found.with_name(f"{name}.tar.gz")) as tar:
            tar.extractall(home, filter="data")
    return home / name
