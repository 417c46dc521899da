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
        UserError: It cannot be downloaded, is no model of opendino, or a file is larger than its description needs.
    """
    return _from_hub(model) if model.startswith(HUB) else _from_server(model.rstrip("/"))


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download  # timm requires it

    match = _REPOSITORY.fullmatch(model.removeprefix(HUB))
    if not match:
        raise UsageError(f"'{model}' is not a repository", "Write hf:USER/NAME or hf:USER/NAME@REVISION")
    where: dict[str, Any] = {"repo_id": match[1], "revision": match[2], "library_name": "opendino"}
    try:
        sizes = _hub_sizes(**where)
        where["local_files_only"] = sizes is None
        _check_size(model, DESCRIPTION, sizes, MAX_BYTES)
        folder = Path(snapshot_download(**where, allow_patterns=[DESCRIPTION]))
        if not (folder / DESCRIPTION).is_file():
            raise UserError(
                f"'{model}' holds no {DESCRIPTION}",
                f"A model of timm is timm:hf-hub:{match[1]}; download one of transformers, and: opendino import FOLDER",
            )
        described = read_description(folder / DESCRIPTION)
        files = _files(described, f"{model}/{DESCRIPTION}")
        for file, most in files.items():
            _check_size(model, file, sizes, most)
        return Path(snapshot_download(**where, allow_patterns=[DESCRIPTION, *files]))
    except UserError:
        raise
    except Exception as error:  # HTTP errors, and network errors that differ between client versions
        raise UserError(
            f"'{model}' could not be downloaded: {first_line(error).rstrip('.')}",
            "Check the name and the network; a private repository needs HF_TOKEN",
        ) from error


def _hub_sizes(repo_id: str, revision: str | None, library_name: str) -> dict[str, int] | None:
    """Bytes of each file of a repository; None if the Hub does not answer, but the files of the last time are here."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        info = HfApi(library_name=library_name).model_info(repo_id, revision=revision, files_metadata=True)
    except Exception:
        if isinstance(try_to_load_from_cache(repo_id, DESCRIPTION, revision=revision), str):
            return None
        raise
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _check_size(model: str, file: str, sizes: dict[str, int] | None, max_bytes: int) -> None:
    if sizes is not None and sizes.get(file, 0) > max_bytes:
        raise _too_large(f"{model}/{file}", download.TooLarge(max_bytes))


def _files(described: dict[str, Any], source: str) -> dict[str, int]:
    """Names of the files of weights of a description, and the most bytes that each may have.

    Each number may be a float64; the header has a limit of its own.
    """
    networks = described["networks"]
    on_meta = build_on_meta(described["name"], described["kwargs"], None, source)
    numbers = {
        weights_file(which, networks): sum(tensor.numel() for tensor in on_meta.state_dict().values())
        for which in networks
    }
    if classes := described.get("classes"):
        numbers[CLASSIFIER] = (on_meta.embed_dim + 1) * len(classes)
    return {file: min(8 * number + MAX_BYTES, MAX_WEIGHTS_BYTES) for file, number in numbers.items()}


def _from_server(url: str) -> Path:
    folder = mmap_table.cache_folder() / "models" / hashlib.sha256(url.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_current(url, folder, DESCRIPTION):
        _download(url, folder, DESCRIPTION, MAX_BYTES)
    described = read_description(folder / DESCRIPTION)
    for file, most in _files(described, f"{url}/{DESCRIPTION}").items():
        if not _is_current(url, folder, file):
            _download(url, folder, file, most)
    return folder


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
        raise _too_large(address, error) from error
    except download.Unreachable as error:
        raise UserError(
            f"'{address}' could not be downloaded: {error}", "Give the address of a folder of `opendino export`"
        ) from error


def _too_large(address: str, error: download.TooLarge) -> UserError:
    return UserError(
        f"'{address}' is not downloaded: {error}",
        f"The limit follows from {DESCRIPTION}. Give a folder that `opendino export` or `opendino push` wrote",
    )
