"""docs/methods.md is made from the methods and does not lag behind them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_methods_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/methods.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
