"""Chromium without a screen at a page that the command line serves: what the tests of the page share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
WAIT_MS = 60_000


class Visit:
    """One user's browser at the page; notes requests to other hosts."""

    def __init__(self, browser: Any, address: str) -> None:
        self.elsewhere: list[str] = []
        self._context = browser.new_context(viewport={"width": 1280, "height": 860})
        self._context.set_default_timeout(WAIT_MS)
        self.page = self._context.new_page()
        self.page.on("request", self._note)
        self._own = (address, "data:", "blob:")
        self.page.goto(address)
        self.page.get_by_role("tab", name="Curves").wait_for()

    def tab(self, name: str) -> Any:
        """Open a tab; what is on it."""
        self.page.get_by_role("tab", name=name, exact=True).click()
        return self.page.get_by_role("tabpanel").filter(visible=True)

    def close(self) -> None:
        self._context.close()

    def _note(self, request: Any) -> None:
        if not request.url.startswith(self._own):
            self.elsewhere.append(request.url)


def put(panel: Any, file: Path, number: int = 0) -> None:
    """Choose a file for a panel's upload."""
    panel.locator("input[type=file]").nth(number).set_input_files(file)


def picture(panel: Any, label: str) -> Any:
    """The picture shown under a label."""
    return panel.locator(".block").filter(has=panel.page.get_by_text(label, exact=True)).locator("img").first


def sentence(page: Any, text: str) -> None:
    """Wait for a notice that contains a text, and close it."""
    notice = page.locator(".toast-body").filter(has_text=text).first
    notice.wait_for()
    notice.get_by_role("button").first.click()
