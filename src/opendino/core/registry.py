"""What a name stands for: a module of our folders, a plug-in of an installed package, or an object given in Python.

The folder is the registry: a name in a config is a module name, and each module of a folder has the same API. Other
packages add to it by entry points, and scripts by `add`. Only what is installed or given in Python is ever loaded: a
run folder or a YAML file can only name it. Our own names cannot be replaced.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from opendino.core.errors import UsageError, UserError, first_line, unknown

METHODS, SOURCES, BACKBONES, EVALS = "opendino.methods", "opendino.data.sources", "opendino.backbones", "opendino.evals"
AUGMENTATIONS = "opendino.views.augmentations"
GROUPS = {
    METHODS: "opendino.methods",
    SOURCES: "opendino.sources",
    BACKBONES: "opendino.backbones",
    EVALS: "opendino.evals",
    AUGMENTATIONS: "opendino.augmentations",
}
"""Package → group of entry points. `opendino.backbones` has no folder: ours are built by `models.build`."""
METHOD_QUESTIONS = (
    "For", "Teacher is", "Student sees", "Teacher sees", "Objective", "Against collapse", "Learns from",
)  # fmt: skip
"""Fields in the docstring of every method, one line each; docs/methods.md is generated from them."""
_added: dict[str, dict[str, Any]] = {package: {} for package in GROUPS}
importing: list[str] = []
"""Files that `--import` is running now: a script must not start a run meanwhile."""


def names(package: str) -> list[str]:
    """Names of a package's public modules, of plug-ins and of added objects, e.g. ["byol", "dino"] for
    "opendino.methods"; imports none of them.
    """
    return sorted({*own_names(package), *_plugins(package), *_added.get(package, {})})


def own_names(package: str) -> list[str]:
    """Names of the public modules of one of our packages."""
    if package == BACKBONES:
        return []
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name for module in modules if module.name[0] != "_" and not module.ispkg)


def load(package: str, name: str) -> Any:
    """Import one module of a package, or the plug-in or object of this name.

    Raises:
        UsageError: There is no such name; the message lists the closest names and all names.
        UserError: The plug-in cannot be imported.
    """
    if name in own_names(package):
        return importlib.import_module(f"{package}.{name}")
    if name in _added.get(package, {}):
        return _added[package][name]
    if name not in _plugins(package):
        raise unknown(package.rpartition(".")[2].rstrip("s"), name, names(package))
    try:
        return _plugins(package)[name].load()
    except Exception as error:  # code of another package: anything may happen
        raise UserError(
            f"{origin(package, name)} cannot be loaded: {type(error).__name__}: {first_line(error)}",
            "Install a version of that package that works with this opendino",
        ) from error


def add(package: str, name: str, thing: Any) -> None:
    """Give an object a name for this process.

    Args:
        package: A key of `GROUPS`.
        name: The name in configs and on run folders.
        thing: What `load` returns: a method's module, a function that builds a backbone, an open source.

    Raises:
        UsageError: The name is one of ours or of a plug-in.
    """
    if name in own_names(package) or name in _plugins(package):
        raise UsageError(f"The name '{name}' is taken", "Use another name")
    _added[package][name] = thing


def origin(package: str, name: str) -> str:
    """Where a name that is not ours comes from: "my-package 0.1", "Python (networks.py)", "Python"; empty for ours."""
    if name in own_names(package):
        return ""
    if name in _added.get(package, {}):
        file = source_file(package, name)
        return f"Python ({file.name})" if file else "Python"
    found = _plugins(package)[name].dist
    return f"{found.name} {found.version}" if found else _plugins(package)[name].value


def is_from_python(where: object) -> bool:
    """Whether an `origin` is that of an object given in Python."""
    return isinstance(where, str) and re.fullmatch(r"Python( \(.*\))?", where) is not None


def source_file(package: str, name: str) -> Path | None:
    """The file where `--import` finds an object given in Python by its name; None if no file does, as in a notebook."""
    thing = _added[package][name]
    try:
        file = Path(inspect.getsourcefile(thing) or "")
    except (TypeError, OSError):  # no function, class or module, or one that no file defines
        return None
    at_top = file.stem if isinstance(thing, ModuleType) else getattr(thing, "__qualname__", "")
    return file if file.suffix == ".py" and file.is_file() and at_top == name.removeprefix("python:") else None


def not_here(kind: str, name: str, where: object) -> UserError:
    """The error for a part that a run names and that this process does not know.

    Args:
        kind: "backbone", "method" or "augmentation".
        name: The name; may come from a stranger's run, as `where` may.
        where: Its `origin` in the process that trained.
    """
    name = name.removeprefix("python:")[:100]
    where = "".join(letter for letter in str(where)[:100] if letter.isprintable())
    hint = f"Install {where}"
    if is_from_python(where):
        found = re.search(r"\(([\w.-]+\.py)\)$", where)
        hint = (
            f"Add to the command: --import {found[1] if found else 'FILE.py'}, the file that defines {name}; or in "
            f'Python, before: opendino.register_{kind}("{name}", {name})'
        )
    return UserError(f"The {kind} '{name}' came from {where}, which is not here", hint)


def summary(package: str, name: str) -> str:
    """First line of a module's docstring, read without importing the module; for others, where they come from."""
    where = origin(package, name)
    return f"from {where}" if where else _docstring(package, name).partition("\n")[0]


def answers(package: str, name: str) -> dict[str, str]:
    """The lines "Field: text" of a method's docstring, for the fields in `METHOD_QUESTIONS`."""
    text = (load(package, name).__doc__ or "") if origin(package, name) else _docstring(package, name)
    lines = (line.partition(": ") for line in text.splitlines())
    return {question: answer for question, _, answer in lines if question in METHOD_QUESTIONS}


@functools.cache
def _plugins(package: str) -> dict[str, EntryPoint]:
    """Name → entry point of installed packages; reading all their metadata takes milliseconds, so only once."""
    if package not in GROUPS:
        return {}
    return {point.name: point for point in entry_points(group=GROUPS[package])}


def _docstring(package: str, name: str) -> str:
    spec = importlib.util.find_spec(f"{package}.{name}")
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        return ast.get_docstring(ast.parse(file.read())) or ""
