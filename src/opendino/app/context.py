"""State shared by all tabs, and error handling for their event functions."""

from __future__ import annotations

import contextlib
import functools
import html
import inspect
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from opendino.app.catalog import Catalog
from opendino.app.model_cache import ModelCache, ShownTable
from opendino.app.page_words import with_fields
from opendino.app.run_curves import Reader
from opendino.app.training_jobs import TrainingJobs
from opendino.core import log
from opendino.core.errors import BadImage, UserError
from opendino.data.source_files import line
from opendino.models.load import Model
from opendino.visualize.drawing.tile_grid import end_of_path

NETWORK: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 2}
"""Options of events that run a network: at most two run at a time, over all sessions."""


_KEPT_SECONDS = 3600
_CAPTION_LETTERS = 30


class Head(NamedTuple):
    """What several tabs share: the choices at the top of the page, the folder in the tab Images, the image to look at.

    Attributes:
        model, table, images: Names of the catalog.
        tabs: The tabs, to switch between them.
        look: (image, time of the click): a `ServerImage` that the tab Look opens.
    """

    model: gr.Dropdown
    table: gr.Dropdown
    images: gr.Dropdown
    tabs: gr.Tabs
    look: gr.State


@dataclass(frozen=True)
class Context:
    """State shared by all tabs and sessions. Only the training jobs belong to a session; they store which one.

    Attributes:
        catalog: Runs, models and tables that may be opened.
        cache: Open models and tables.
        jobs: Trainings started on the page.
        folder: Folder for temporary files.
        out: Folder for runs and tables from images of the server.
        curves: Metrics and colors of the runs.
    """

    catalog: Catalog
    cache: ModelCache
    jobs: TrainingJobs
    folder: Path
    out: Path
    curves: Reader = field(default_factory=Reader)

    @property
    def upload_folder(self) -> Path:
        """Folder of the uploaded files."""
        return self.folder / "uploads"

    def runs(self, session: str) -> dict[str, Path]:
        """Name → run folder: runs of the catalog and runs trained in the session."""
        return self.jobs.runs(session) | self.catalog.runs()

    def models(self, session: str) -> dict[str, str]:
        """Name → model: models of the catalog and models trained in the session."""
        return self.jobs.models(session) | self.catalog.models()

    def model(self, name: str | None, session: str) -> Model:
        """Open the model chosen at the top of the page.

        Raises:
            UserError: No model is chosen, or it cannot be opened.
        """
        known = self.models(session)
        if not isinstance(name, str) or name not in known:  # the name comes from the browser
            raise UserError("No model is chosen", "Train one in the tab Train, or start with: opendino app RUN")
        return self.cache.model(known[name])

    def table(self, name: str | None) -> ShownTable:
        """Open the table chosen at the top of the page.

        Raises:
            UserError: No table is chosen, or it cannot be opened.
        """
        known = self.catalog.tables()
        if not isinstance(name, str) or name not in known:
            raise UserError("No table is chosen", "Make one in the tab Images, or name one: opendino app RUN TABLE")
        return self.cache.table(known[name])

    def temporary_file(self, suffix: str) -> Path:
        """Create an empty file that is deleted after an hour, when another is made, or when the server stops."""
        for path in self.folder.glob(f"*{suffix}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                    path.unlink()
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=suffix, delete=False) as file:
            return Path(file.name)

    def file_list(self, keys: Sequence[str]) -> tuple[str, Path]:
        """Images as a list, a line each, and a temporary file with it."""
        text, file = "".join(f"{line(key)}\n" for key in keys), self.temporary_file(".txt")
        file.write_text(text, encoding="utf-8")
        return text, file


def bounded(value: Any, low: float, high: float) -> float:
    """Check a number from the browser, which can send values that no slider allows.

    Raises:
        UserError: The value is not a number from `low` to `high`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError("A number is out of its range", f"Choose one from {low:g} to {high:g}")
    return value


def enlarged(image: Image.Image) -> Image.Image:
    """A small image enlarged to be looked at: its shorter side has at least 320 pixels."""
    scale = max(1, 320 / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def caption(key: str) -> str:
    """The end of an image's path, for a gallery; a long one shortened in front."""
    return end_of_path(key, lambda text: len(text) <= _CAPTION_LETTERS)


def handle_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an event function: its errors appear on the page as one sentence, tracebacks in the terminal."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _errors_on_page():
                yield from function(*args, **kwargs)

        return stream

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _errors_on_page():
            return function(*args, **kwargs)

    return call


@contextmanager
def _errors_on_page() -> Iterator[None]:
    try:
        yield
    except (UserError, BadImage) as error:
        raise gr.Error(html.escape(with_fields(str(error))), title="", print_exception=False) from None
    except gr.Error:
        raise
    except Exception:
        log.warn(f"internal error\n{traceback.format_exc()}")
        message = "Internal error of opendino: see the traceback in the terminal"
        raise gr.Error(message, title="", print_exception=False) from None


def refusal(error: UserError) -> Any:
    """An update that shows an error message below the input that was refused."""
    return gr.update(value=f'<div class="bad">{html.escape(str(error))}</div>', visible=True)


def session_id(request: gr.Request) -> str:
    """The session that an event belongs to."""
    return request.session_hash or ""
