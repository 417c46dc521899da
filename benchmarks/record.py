"""How each benchmark ends: one JSON document, the last line of stdout, and a file where one is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def keep(document: dict[str, Any], out: Path | None) -> None:
    """Print the document, and write it to `out`."""
    text = json.dumps(document)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    print(text)
