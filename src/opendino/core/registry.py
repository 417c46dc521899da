"""The folder is the registry: a name in a config is a file name, and the file defines what its folder agreed on."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from types import ModuleType

from opendino.core.errors import unknown


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
    spec = importlib.util.find_spec(f"{package}.{name}")
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        return (ast.get_docstring(ast.parse(file.read())) or "").partition("\n")[0]
