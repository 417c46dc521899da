"""From what a user writes after `opendino train` to a source of images."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from opendino.core import registry
from opendino.core.contracts import Source
from opendino.core.errors import UsageError, UserError, unknown
from opendino.data import unsupported
from opendino.data.source_files import detect_layout, exists, is_file, is_image, printable, suffix, unescape

_SOURCES = "opendino.data.sources"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_+-]+):")  # two letters or more: one is a Windows drive


def open_source(data: str | os.PathLike[str]) -> Source:
    """Open a folder, an archive, a list of paths, or `scheme:rest` with any module of `data/sources` as the scheme.

    A path that exists wins over a scheme. `~` stands for the home folder.

    Raises:
        UserError: There is nothing there that can be used; one line, with what to do next.
        UsageError: Unknown scheme or option.
    """
    data = _home(os.fspath(data))
    if not data:
        raise UsageError("No images were named", "Give a folder, an archive, a list of paths, or toy:")
    available = registry.names(_SOURCES)
    scheme = _SCHEME.match(data) if not exists(data) else None
    if scheme and scheme[1] in available:
        return registry.load(_SOURCES, scheme[1]).build(_home(data[scheme.end() :]))
    for name in available:
        module = registry.load(_SOURCES, name)
        if module.matches(data):
            return module.build(data)
    raise unknown("source", scheme[1], available) if scheme else _explained(data)


def absolute(data: str) -> str:
    """DATA as it must be written to mean the same in any other folder; what is no path stays."""
    data = _home(data)
    available = registry.names(_SOURCES)
    scheme = _SCHEME.match(data) if not exists(data) else None
    if "://" in data or (scheme and scheme[1] not in available):
        return data
    before, rest = (data[: scheme.end()], _home(data[scheme.end() :])) if scheme else ("", data)
    path, mark, options = (rest, "", "") if exists(rest) else rest.partition("?")
    matches = bool(scheme) and registry.load(_SOURCES, scheme[1]).matches(rest)
    if not (matches or "{" in path or (exists(path) and (not scheme or "." in path))):
        return data
    return before + "::".join(map(os.path.abspath, path.split("::"))) + mark + options


def list_paths(data: str, keys: Iterable[str]) -> list[str]:
    """What names images of DATA in a list of images, wherever that lies: their absolute paths; of images that are no
    files of their own (in an archive, drawn) the keys.
    """
    data = _home(data)
    scheme = _SCHEME.match(data) if not exists(data) else None
    if scheme and scheme[1] in ("folder", "listing"):
        data = _home(data[scheme.end() :])
    if detect_layout(data) == "images":
        folder = os.path.abspath(data)  # noqa: PTH100 - resolve() would follow links
    elif is_file(data) and data.lower().endswith((".txt", ".lst", ".csv")):
        folder = os.path.dirname(os.path.abspath(data))  # noqa: PTH100, PTH120
    else:
        return list(keys)
    return [printable(os.path.join(folder, unescape(key))) for key in keys]  # noqa: PTH118 - perhaps a million


def _home(data: str) -> str:
    return os.path.expanduser(data)  # noqa: PTH111 - pathlib would also tidy the slashes of a URL


def _explained(data: str) -> UserError:
    """Why no source wanted a path."""
    path, shown = Path(data), printable(data)
    if not exists(data):
        if os.path.lexists(data):
            return UserError(f"{shown} is a link to something that does not exist", "Mend the link or give its target")
        return _missing(path)
    if is_image(data):
        return UserError(f"{shown} is a single image", f"Give the folder it lies in: {printable(str(path.parent))}")
    if found := unsupported.way_on(suffix(data)):
        return UserError(f"{shown} is {found[0]}, which is not supported", found[1][0].upper() + found[1][1:])
    return UserError(
        f"{shown} is no source of images", "Give a folder, a .tar or .zip, a .parquet, or a .txt list of paths"
    )


def _missing(path: Path) -> UserError:
    """The first part of the path that does not exist, and its neighbor with the most similar name."""
    first = path
    while not exists(str(first.parent)) and first.parent != first:
        first = first.parent
    try:
        neighbors = {other.name.lower(): other for other in first.parent.iterdir()}
    except OSError:
        neighbors = {}
    close = difflib.get_close_matches(first.name.lower(), neighbors, n=1)
    if close:
        hint = f"Did you mean {printable(str(neighbors[close[0]]))}?"
    else:
        hint = f"There is no '{printable(first.name)}' in {printable(str(first.parent.absolute()))}"
    return UserError(f"{printable(str(path))} does not exist", hint)
