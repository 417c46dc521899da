"""The folder is the registry: a name in a config is a module name, and each module of a folder has the same API."""

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
"""Fields in the docstring of every method, one line each; docs/methods.md is generated from them."""


def names(package: str) -> list[str]:
    """Names of the public modules of a package, e.g. ["byol", "dino"] for "opendino.methods"; imports none of them."""
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name for module in modules if module.name[0] != "_" and not module.ispkg)


def load(package: str, name: str) -> ModuleType:
    """Import one module of a package.

    Raises:
        UsageError: There is no such module; the message lists the closest names and all names.
    """
    if name not in names(package):
        raise unknown(package.rpartition(".")[2].rstrip("s"), name, names(package))
    return importlib.import_module(f"{package}.{name}")


def summary(package: str, name: str) -> str:
    """First line of a module's docstring, read without importing the module."""
    return _docstring(package, name).partition("\n")[0]


def answers(package: str, name: str) -> dict[str, str]:
    """The lines "Field: text" of a method's docstring, for the fields in `METHOD_QUESTIONS`."""
    lines = (line.partition(": ") for line in _docstring(package, name).splitlines())
    return {question: answer for question, _, answer in lines if question in METHOD_QUESTIONS}


def _docstring(package: str, name: str) -> str:
    spec = importlib.util.find_spec(f"{package}.{name}")
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        return ast.get_docstring(ast.parse(file.read())) or ""
