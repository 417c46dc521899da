"""Open DATA, as given to `opendino train`, as a source of images."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from opendino.core import registry
from opendino.core.contracts import Source
from opendino.core.errors import UsageError, UserError, unknown
from opendino.data import unsupported
from opendino.data.source_files import detect_layout, exists, is_file, is_image, printable, suffix, unescape
from opendino.data.video_file import split_every

_SOURCES = "opendino.data.sources"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_+-]+):")  # two letters or more: one letter is a Windows drive


def open_source(data: str | os.PathLike[str]) -> Source:
    """Open a folder, an archive, a list of paths, or `scheme:rest`, where the scheme is a module of `data/sources`.

    An existing path has priority over a scheme. `~` is expanded to the home folder.

    Args:
        data: What the user gave as DATA.

    Raises:
        UserError: The path does not exist or holds no images.
        UsageError: Unknown scheme or option.
    """
    data = _expand_user(os.fspath(data))
    if not data:
        raise UsageError("No images were named", "Give a folder, an archive, a list of paths, or toy:")
    available = registry.names(_SOURCES)
    scheme = _SCHEME.match(data) if not exists(data) else None
    if scheme and scheme[1] in available:
        return registry.load(_SOURCES, scheme[1]).build(_expand_user(data[scheme.end() :]))
    for name in available:
        module = registry.load(_SOURCES, name)
        if module.matches(data):
            return module.build(data)
    raise unknown("source", scheme[1], available) if scheme else _unusable(data)


def absolute(data: str) -> str:
    """DATA with absolute paths, so that it means the same in any working directory; other parts are unchanged."""
    data = _expand_user(data)
    available = registry.names(_SOURCES)
    scheme = _SCHEME.match(data) if not exists(data) else None
    if "://" in data or (scheme and scheme[1] not in available):
        return data
    before, rest = (data[: scheme.end()], _expand_user(data[scheme.end() :])) if scheme else ("", data)
    path, mark, options = (rest, "", "") if exists(rest) else rest.partition("?")
    matches = bool(scheme) and registry.load(_SOURCES, scheme[1]).matches(rest)
    if not (matches or "{" in path or (exists(path) and (not scheme or "." in path))):
        return data
    paths = [path] if exists(path) else path.split("::")
    return before + "::".join(map(os.path.abspath, paths)) + mark + options


def list_paths(data: str, keys: Iterable[str]) -> list[str]:
    """The names of images for a list of images that can be read from any folder.

    Args:
        data: DATA of the source.
        keys: Keys of the images in the source.

    Returns:
        Absolute paths if the images are files; the keys if they are not (in an archive, generated, remote).
    """
    data = _expand_user(data)
    scheme = _SCHEME.match(data) if not exists(data) else None
    if scheme and scheme[1] in ("folder", "file_list"):
        data = _expand_user(data[scheme.end() :])
    data, _ = split_every(data)
    if detect_layout(data) == "images":
        folder = os.path.abspath(data)  # noqa: PTH100 - resolve() would follow links
    elif is_file(data) and data.lower().endswith((".txt", ".lst", ".csv")):
        folder = os.path.dirname(os.path.abspath(data))  # noqa: PTH100, PTH120
    else:
        return list(keys)  # no separate files
    return [printable(os.path.join(folder, unescape(key))) for key in keys]  # noqa: PTH118 - perhaps a million


def not_files(paths: Sequence[str]) -> str:
    """What to say of a list that `list_paths` made if its images are no files, so that it is not DATA; else ""."""
    if not paths or not os.path.isabs(paths[0]) or os.path.lexists(unescape(paths[0])):  # noqa: PTH117
        return ""
    return f"{paths[0]} is no file: it is a page, a frame, several files or gone, so the list does not work as DATA"


def _expand_user(data: str) -> str:
    return os.path.expanduser(data)  # noqa: PTH111 - pathlib would also tidy the slashes of a URL


def _unusable(data: str) -> UserError:
    """The error for a path that no source can open."""
    path, shown = Path(data), printable(data)
    if not exists(data):
        if os.path.lexists(data):
            return UserError(f"{shown} is a link whose target does not exist", "Fix the link, or give the target")
        return _does_not_exist(path)
    if is_image(data):
        return UserError(f"{shown} is a single image", f"Give the folder it lies in: {printable(str(path.parent))}")
    if found := unsupported.advice_for_suffix(suffix(data)):
        return UserError(f"{shown} is {found[0]}, which is not supported", found[1][0].upper() + found[1][1:])
    return UserError(
        f"{shown} is not a source of images", "Give a folder, a .tar or .zip, a .parquet, or a .txt list of paths"
    )


def _does_not_exist(path: Path) -> UserError:
    """The error for a missing path: its first missing folder, and the existing name most similar to it."""
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
