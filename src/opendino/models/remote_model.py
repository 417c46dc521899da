"""Models elsewhere: a repository of the Hugging Face Hub, or a folder of a web server → a folder on this disk."""

from __future__ import annotations

import hashlib
import http.client
import re
import tempfile
from pathlib import Path

from opendino.core import atomic_write
from opendino.core.errors import UsageError, UserError, first_line
from opendino.data import download, mmap_table
from opendino.models.description import CLASSIFIER, DESCRIPTION, read_description, weights_file

HUB = "hf:"
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
        UserError: It cannot be downloaded, or is no model of opendino.
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
    _update(url, folder, DESCRIPTION)
    described = read_description(folder / DESCRIPTION)
    networks = described["networks"]
    for file in [weights_file(which, networks) for which in networks] + [CLASSIFIER] * bool(described.get("classes")):
        _update(url, folder, file)
    return folder


def _update(url: str, folder: Path, file: str) -> None:
    """Download a file unless the server says that the one here is the same, or does not answer."""
    address, path, note = f"{url}/{file}", folder / file, folder / f"{file}.validator"
    try:
        known = note.read_text(encoding="utf-8") if path.is_file() and note.is_file() else ""
        if known and download.current_validator(address, known) == known:
            return
    except (OSError, ValueError, http.client.HTTPException):
        return
    try:
        # In a folder of its own: another process may download the same file.
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            validator = download.download(address, Path(partial, file))
            Path(partial, file).replace(path)
            atomic_write.write(note, validator)
    except download.Unreachable as error:
        raise UserError(
            f"'{address}' could not be downloaded: {error}", "Give the address of a folder of `opendino export`"
        ) from error
