"""What all tabs share: where to look, what is open, and errors as sentences."""

from __future__ import annotations

import functools
import html
import inspect
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from opendino.app import uploads as _uploads
from opendino.app.catalog import Catalog
from opendino.app.model_cache import ModelCache
from opendino.app.training_jobs import TrainingJobs
from opendino.core import log
from opendino.core.errors import BadImage, UserError
from opendino.models.load import Model

NETWORK: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 2}
"""Of events that run a network: two at a time, whoever asks."""


@dataclass(frozen=True)
class Context:
    """What the tabs work with. Nothing of one user is in it but the trainings, which know whose they are.

    Attributes:
        places: What may be opened.
        shelf: What is open.
        workshop: Trainings.
        folder: For temporary files.
    """

    places: Catalog
    shelf: ModelCache
    workshop: TrainingJobs
    folder: Path

    @property
    def uploads(self) -> Path:
        """Where uploads lie."""
        return self.folder / "uploads"

    def runs(self, session: str) -> dict[str, Path]:
        """Name → folder: what was named, and what the session has trained."""
        return self.workshop.runs(session) | self.places.runs()

    def models(self, session: str) -> dict[str, str]:
        """Name → model: what was named, and what the session has trained."""
        return self.workshop.models(session) | self.places.models()

    def model(self, name: str | None, session: str) -> Model:
        """The model chosen at the top of the page.

        Raises:
            UserError: None is, or it cannot be opened.
        """
        known = self.models(session)
        if not isinstance(name, str) or name not in known:
            raise UserError("There is no model yet", "Train one in the last tab, or start with: opendino app RUN")
        return self.shelf.model(known[name])

    def picture(self, label: str, *, click: bool = False, height: int = 320) -> tuple[gr.Image, gr.State]:
        """A place for a picture, and the state that holds it as PIL once it has been looked at.

        Args:
            label: Above it.
            click: Whether a click on it means a point.
            height: In pixels.
        """
        shown = gr.Image(
            label=label,
            sources=["upload", "clipboard"] if click else ["upload", "webcam", "clipboard"],
            height=height,
            buttons=[],
        )
        seen: gr.State = gr.State(None)
        note = gr.HTML(visible=False)
        gr.on(
            [shown.input, shown.clear],
            handle_errors(self._take),
            shown,
            [shown, seen, note],
            preprocess=False,  # gradio would open the file itself, and believe it
            show_progress="hidden",
            api_visibility="private",
        )
        return shown, seen

    def _take(self, raw: Any) -> tuple[Any, Any, Any]:
        try:
            file = _uploads.path(raw, self.uploads)
            if file is None:
                return None, None, gr.update(visible=False)
            image = _uploads.picture(_uploads.content(file))
        except UserError as error:
            return None, None, refusal(error)
        return image, image, gr.update(visible=False)

    def temporary(self, suffix: str) -> Path:
        """A name for a file that goes with the server."""
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=suffix, delete=False) as file:
            return Path(file.name)


def bounded(value: Any, low: float, high: float) -> float:
    """A number from the browser, which need not be what a slider can give.

    Raises:
        UserError: It is no number within the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError("A number is out of its range", f"Choose one from {low:g} to {high:g}")
    return value


def handle_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of an event whose errors reach the page as a sentence; our own mistakes go to the terminal in full."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _sentences():
                yield from function(*args, **kwargs)

        return stream

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _sentences():
            return function(*args, **kwargs)

    return call


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except (UserError, BadImage) as error:
        raise gr.Error(html.escape(str(error)), title="", print_exception=False) from None
    except gr.Error:
        raise
    except Exception:
        log.warn(f"a mistake of ours\n{traceback.format_exc()}")
        sentence = "That went wrong, and the mistake is ours: the terminal says more"
        raise gr.Error(sentence, title="", print_exception=False) from None


def refusal(error: UserError) -> Any:
    """A sentence that stays on the page, below what was refused."""
    return gr.update(value=f'<div class="bad">{html.escape(str(error))}</div>', visible=True)


def session(request: gr.Request) -> str:
    """Whose event it is."""
    return request.session_hash or ""
