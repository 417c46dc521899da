"""`--import FILE.py`: networks, methods and augmentations of the user's own file, for every verb.

A run stores only the names of what was given in Python. The file is run because the user names it: a run folder, which
may come from a stranger, never makes a command import anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from opendino.core import registry
from opendino.core.errors import UsageError, UserError, first_line

_FLAG = "--import"
_OF_A_PART = ("views", "build", "sample", "title", "apply")  # functions of a method or an augmentation


def take(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Remove every `--import FILE` and `--import=FILE` from the words of a command: the other words, and the files.

    Raises:
        UsageError: The last one has no file.
    """
    rest, files, words = [], [], iter(args)
    for word in words:
        flag, equals, file = word.partition("=")
        if flag != _FLAG:
            rest.append(word)
        elif not equals and not (file := next(words, "")):
            raise UsageError(f"{_FLAG} lacks a file", f"Write {_FLAG} networks.py, or the name of a module")
        else:
            files.append(file)
    return rest, files


def add(files: Sequence[str]) -> None:
    """Import files or modules and register what they define, each by its name.

    That is every public function and every `nn.Module` of the file as a network (for `--backbone`: `python:NAME`), and
    the file itself as a method or as an augmentation if it has the parts of one.

    Args:
        files: Paths that end in .py, or names of modules that Python finds, e.g. "my_package.networks".

    Raises:
        UserError: There is no such file, or it fails.
        UsageError: It has the name of another module or of one of our parts.
    """
    for file in files:
        module = _imported(file)
        from torch import nn

        from opendino import start

        for name, thing in vars(module).items():
            if name[0] == "_" or name in _OF_A_PART or getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(thing) or (isinstance(thing, type) and issubclass(thing, nn.Module)):
                start.register_backbone(name, thing)
        name = module.__name__.rpartition(".")[2]
        if hasattr(module, "VIEWS") and hasattr(module, "build"):
            start.register_method(name, module)
        if hasattr(module, "ORDER") and hasattr(module, "apply"):
            start.register_augmentation(name, module)


def _imported(file: str) -> ModuleType:
    registry.importing.append(file)
    try:
        return _module_of(Path(file).expanduser()) if file.endswith(".py") else importlib.import_module(file)
    except UserError:
        raise
    except Exception as error:  # the user's code: anything may happen
        if isinstance(error, ModuleNotFoundError) and error.name == file:
            raise UserError(f"There is no module '{file}'", f"Write {_FLAG} FILE.py, or install its package") from error
        raise UserError(f"{file} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    finally:
        registry.importing.pop()


def _module_of(path: Path) -> ModuleType:
    """The module of a file, imported as Python runs a script: the modules beside it can be imported too."""
    if not path.is_file():
        raise UserError(f"There is no file '{path}'", f"Give {_FLAG} the file that defines the network or method")
    name = path.stem
    if name in sys.modules or name in sys.stdlib_module_names:
        raise UsageError(f"{path} has the name of another module", "Rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
