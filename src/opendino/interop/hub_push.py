"""Upload an exported folder to the Hugging Face Hub, or to a compatible server (HF_ENDPOINT)."""

from __future__ import annotations

import re
from pathlib import Path

from opendino.core.errors import UsageError, UserError
from opendino.models.load import DESCRIPTION

CARD = "README.md"
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def check(name: str) -> None:
    """Check the name of a repository, and that there is a token.

    Raises:
        UsageError: The name is not USER/NAME.
        UserError: There is no token.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not a repository name", "Write USER/NAME")
    from huggingface_hub import get_token  # timm requires it

    if get_token() is None:
        raise UserError("There is no token for the hub", "Set HF_TOKEN, or log in once: hf auth login")


def is_exported(folder: Path) -> bool:
    """Whether a folder was written by `opendino export` and has a model card; a run may have a README.md too."""
    return (folder / CARD).is_file() and not (folder / "config.yaml").exists()


def push(folder: str, name: str, private: bool, message: str) -> str:
    """Upload a folder as one commit.

    Args:
        folder: An exported folder, with model card and model. Others are refused: a run also holds checkpoints.
        name: Repository, as USER/NAME, see `check`.
        private: Make the repository private if it is created.
        message: Commit message.

    Returns:
        URL of the repository.

    Raises:
        UserError: There is no such folder, or the upload failed.
    """
    home = Path(folder).expanduser()
    if not home.is_dir():
        raise UserError(f"There is no folder '{folder}'", "Give a folder written by `opendino export`")
    if not is_exported(home) or not any((home / file).is_file() for file in ("config.json", DESCRIPTION)):
        raise UserError(
            f"'{folder}' is not an exported folder", "Make one: opendino export MODEL --to huggingface --out FOLDER"
        )
    from huggingface_hub import HfApi

    api = HfApi(library_name="opendino")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=home, commit_message=message)
    except Exception as error:  # HTTP errors, and network errors that differ between client versions
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"The upload to {name} failed: {reason}", "Check the name, the token and the network"
        ) from error
    return str(commit.repo_url)
