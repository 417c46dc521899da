"""Renders the page templates in pages/. They escape every value; markup of our own is passed as `Markup`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

__all__ = ["Markup", "render"]


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("pages"))
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def render(name: str, **values: Any) -> str:
    """Render the template `name` of pages/ with values.

    Raises:
        jinja2.UndefinedError: The template uses a value that is missing.
    """
    return _environment().get_template(name).render(values)
