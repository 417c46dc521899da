"""Models elsewhere: a repository of the Hugging Face Hub, or a folder of a web server → a folder on this disk."""

from __future__ import annotations

import hashlib
import http.client
import re
import tempfile
from pathlib import Path
from typing import Any

from opendino.core import atomic_write
from opendino.core.errors import UsageError, UserError, first_line
from opendino.data import download, mmap_table
from opendino.models.build import build_on_meta
from opendino.models.description import CLASSIFIER, DESCRIPTION, MAX_BYTES, read_description, weights_file

HUB = "hf:"
MAX_WEIGHTS_BYTES = 64 * 2**30
"""Limit of any file of weights: twice the largest network of timm, of 6.7 billion float32 numbers."""
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def is_remote(model: str) -> bool:
    """Whether a model's name is `hf:USER/NAME`, or the address of a folder."""
    return model.startswith(HUB) or download.is_remote(model)


def local_folder(model: str) -> Path:
    """Download a model folder, or what of it has changed. Only backbone.json and .safetensors files are asked for.

    Args:
        model: `hf:USER/NAME`, `hf:USER/NAME@REVISION`, or the http(s) address below which the files of an exported
            folder are. Without a connection the files of the last time are used.

    Returns:
        A folder in the cache of huggingface_hub, or below `$XDG_CACHE_HOME/opendino/models`.

    Raises:
        UsageError: The name is not of this form.
        UserError: It cannot be downloaded, is no model of opendino, or a file of an address is larger than its
            description needs.
    """
    return _from_hub(model) if model.startswith(HUB) else _from_server(model.rstrip("/"))


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download  # timm requires it

    match = _REPOSITORY.fullmatch(model.removeprefix(HUB))
    if not match:
        raise UsageError(f"'{model}' is not a repository", "Write hf:USER/NAME or hf:USER/NAME@REVISION")
    files = [DESCRIPTION, "backbone*.safetensors", CLASSIFIER]
    try:
        folder = Path(snapshot_download(match[1], revision=match[2], allow_patterns=files, library_name="opendino"))
    except Exception as error:  # HTTP errors, and network errors that differ between client versions
        raise UserError(
            f"'{model}' could not be downloaded: {first_line(error).rstrip('.')}",
            "Check the name and the network; a private repository needs HF_TOKEN",
        ) from error
    if not (folder / DESCRIPTION).is_file():
        raise UserError(
            f"'{model}' holds no {DESCRIPTION}",
            f"A model of timm is timm:hf-hub:{match[1]}; download one of transformers, then: opendino import FOLDER",
        )
    return folder


def _from_server(url: str) -> Path:
    folder = mmap_table.cache_folder() / "models" / hashlib.sha256(url.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_current(url, folder, DESCRIPTION):
        _download(url, folder, DESCRIPTION, MAX_BYTES)
    described = read_description(folder / DESCRIPTION)
    networks = described["networks"]
    for file in [weights_file(which, networks) for which in networks] + [CLASSIFIER] * bool(described.get("classes")):
        if not _is_current(url, folder, file):
            _download(url, folder, file, _max_weights_bytes(described, file == CLASSIFIER, f"{url}/{DESCRIPTION}"))
    return folder


def _max_weights_bytes(described: dict[str, Any], classifier: bool, source: str) -> int:
    """The most that a file of the described weights may have: each number as float64, and the header."""
    on_meta = build_on_meta(described["name"], described["kwargs"], None, source)
    if classifier:
        numbers = (on_meta.embed_dim + 1) * len(described["classes"])
    else:
        numbers = sum(tensor.numel() for tensor in on_meta.state_dict().values())
    return min(8 * numbers + MAX_BYTES, MAX_WEIGHTS_BYTES)


def _is_current(url: str, folder: Path, file: str) -> bool:
    """Whether the server says that the file here is the same, or does not answer."""
    address, path, note = f"{url}/{file}", folder / file, folder / f"{file}.validator"
    try:
        known = note.read_text(encoding="utf-8") if path.is_file() and note.is_file() else ""
        return bool(known) and download.current_validator(address, known) == known
    except (OSError, ValueError, http.client.HTTPException):
        return True


def _download(url: str, folder: Path, file: str, max_bytes: int) -> None:
    address = f"{url}/{file}"
    try:
        # In a folder of its own: another process may download the same file.
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            validator = download.download(address, Path(partial, file), max_bytes)
            Path(partial, file).replace(folder / file)
            atomic_write.write(folder / f"{file}.validator", validator)
    except download.TooLarge as error:
        raise UserError(
            f"'{address}' is not downloaded: {error}",
            f"The limit follows from {DESCRIPTION}. Give the address of a folder of `opendino export`",
        ) from error
    except download.Unreachable as error:
        raise UserError(
            f"'{address}' could not be downloaded: {error}", "Give the address of a folder of `opendino export`"
        ) from error
