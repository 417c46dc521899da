"""An exported folder to the Hugging Face hub, or one that speaks its language (HF_ENDPOINT)."""

from __future__ import annotations

import re
from pathlib import Path

from opendino.core.errors import UsageError, UserError
from opendino.models.load import DESCRIPTION

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def push(folder: str, name: str, private: bool, message: str) -> str:
    """Upload a folder as one commit.

    Args:
        folder: With a model card and a model; a run's folder is refused, it holds more than anybody wants to publish.
        name: USER/NAME.
        private: Whether a repository that has to be made is private.
        message: Of the commit.

    Returns:
        Where to look at it.

    Raises:
        UsageError: The name is none.
        UserError: No such folder, no token, or the hub refuses.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name on a hub", "Write USER/NAME")
    home = Path(folder).expanduser()
    if not home.is_dir():
        raise UserError(f"There is no folder '{folder}'", "Give what `opendino export` made")
    if not (home / "README.md").is_file() or not any((home / file).is_file() for file in ("config.json", DESCRIPTION)):
        raise UserError(
            f"'{folder}' is no exported folder", "Make one: opendino export MODEL --to huggingface --out FOLDER"
        )
    try:
        from huggingface_hub import HfApi, get_token
    except ModuleNotFoundError as error:
        raise UserError("push needs huggingface_hub", 'pip install "opendino[export]"') from error
    if get_token() is None:
        raise UserError("There is no token for the hub", "Set HF_TOKEN, or log in once: hf auth login")
    api = HfApi(library_name="opendino")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=home, commit_message=message)
    except Exception as error:  # the hub's answers, and whatever the client of the day makes of the network
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"The hub did not take {name}: {reason}", "Check the name, the token and the network"
        ) from error
    return str(commit.repo_url)
