"""The site of docs/: its menu, its links, and the built pages in a real browser."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import opendino

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]* src=\"?(?:https?:)?//|<link[^>]*rel=\"?(?:stylesheet|preload)[^>]*//"
)
PHONE_PX = 390


@pytest.fixture(scope="module")
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs/site/pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def menu(entries: Any) -> list[str]:
    """The pages of a menu, in order."""
    if isinstance(entries, str):
        return [entries]
    return [page for entry in (entries.values() if isinstance(entries, dict) else entries) for page in menu(entry)]


def test_the_menu_names_every_page_once(hook: Any) -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    files = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(menu(settings["nav"])) == sorted([*files, *hook.pages()])


def test_every_name_and_command_has_a_place(hook: Any) -> None:
    pages = hook.pages()
    names = "\n".join(text for page, text in pages.items() if page.startswith("reference/"))
    assert [name for name in opendino.__all__ if f"opendino.{name}\n" not in names and name != "evaluate"] == []
    assert "## opendino.evaluate.knn\n" in names
    assert "## opendino eval knn\n" in pages["commands/eval.md"] and "--opset" in pages["commands/export.md"]
    assert "| [opendino drift](drift.md) | Do the images of two tables differ? |" in pages["commands/index.md"]


def test_links_lead_to_pages_or_to_copies(hook: Any) -> None:
    text = "[a](docs/tour.md#caches) [b](SECURITY.md) [c](docs/decisions) [d](pyproject.toml) [e](gone.md) [f](https://x.y)"
    linked, copies = hook.relinked("index.md", text)
    assert linked == (
        "[a](tour.md#caches) [b](security.md) [c](decisions/index.md) [d](files/pyproject.toml) [e](gone.md) [f](https://x.y)"
    )
    assert copies == {"files/pyproject.toml": ROOT / "pyproject.toml"}
    assert hook.relinked("decisions/0014-search.md", "[a](../../README.md)")[0] == "[a](../index.md)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of the build is an error."""
    for module in ("material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason="the packages for the site are not installed: make setup")
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return out


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere_and_shows_its_tables(site: Path) -> None:
    assert LOADED.search('<script src="https://elsewhere/a.js">') and LOADED.search("<link rel=stylesheet href=//a/b>")
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not LOADED.search(html), page.name
        assert "|---" not in re.sub(r"<pre>.*?</pre>", "", html, flags=re.S), f"{page.name}: a table is shown as text"
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not [style for style in styles if re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", style)]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_a_reader_without_a_network_finds_a_page_also_on_a_phone(site: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    requests: list[str] = []
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{site.as_uri()}/index.html")  # from its folder: search has no worker
        figure = page.get_by_role("img", name=re.compile("k-NN accuracy on five sets"))
        assert figure.evaluate("each => each.naturalWidth") > 0
        page.locator(".md-search__input").click()
        page.keyboard.type("copy-detection")
        page.locator(".md-search-result__link", has_text="opendino eval copy-detection").first.click()
        page.get_by_role("heading", name="opendino eval copy-detection").wait_for()
        page.set_viewport_size({"width": PHONE_PX, "height": 844})
        for name in ("reference/everyday", "results", "commands/train"):
            page.goto(f"{site.as_uri()}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE_PX, name
        chromium.close()
    assert requests and [url for url in requests if not url.startswith((site.as_uri(), "data:", "blob:"))] == []
