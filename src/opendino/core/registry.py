"""The folder is the registry: a name in a config is a file name, and the file defines what its folder agreed on."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from types import ModuleType

from opendino.core.errors import unknown

METHOD_QUESTIONS = (
    "Teacher is", "Student sees", "Teacher sees", "Objective", "Against collapse", "Learns from",
)  # fmt: skip
"""What the docstring of every method answers, a line each; docs/methods.md is made of it."""


def names(package: str) -> list[str]:
    """The modules of a package, e.g. `names("opendino.methods") == ["dino", ...]`. Imports none of them."""
    return sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__) if m.name[0] != "_")


def load(package: str, name: str) -> ModuleType:
    """Import one module of a package.

    Raises:
        UsageError: No such module; names the nearest and the list.
    """
    if name not in names(package):
        raise unknown(package.rpartition(".")[2].rstrip("s"), name, names(package))
    return importlib.import_module(f"{package}.{name}")


def summary(package: str, name: str) -> str:
    """The first line of a module's docstring, read without importing the module."""
    return _docstring(package, name).partition("\n")[0]


def answers(package: str, name: str) -> dict[str, str]:
    """The lines `Question: answer` of a module's docstring, for `METHOD_QUESTIONS`."""
    lines = (line.partition(": ") for line in _docstring(package, name).splitlines())
    return {question: answer for question, _, answer in lines if question in METHOD_QUESTIONS}


def _docstring(package: str, name: str) -> str:
    spec = importlib.util.find_spec(f"{package}.{name}")
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        return ast.get_docstring(ast.parse(file.read())) or ""
