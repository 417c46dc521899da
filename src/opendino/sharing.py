"""Share a trained model on the Hugging Face Hub, with a card that says what it was trained on and what came of it."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from opendino import config as configs
from opendino import existing_runs
from opendino.core.errors import UsageError
from opendino.interop import hub_push
from opendino.interop.exporting import export_model, writer
from opendino.models.remote_model import HUB

MESSAGE = "Upload by opendino"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{1,60}")


def push(
    model: str,
    repository: str,
    *,
    license: str | None = None,  # noqa: A002
    which: str | None = None,
    private: bool = False,
    message: str = MESSAGE,
) -> str:
    """Upload a model: `opendino.load("hf:USER/NAME")` gives it back.

    Args:
        model: A folder of `opendino export` is uploaded as it is. Of everything else that `opendino.load` takes the
            network is exported first, with a model card; of a run nothing else leaves this machine, and of the path of
            its images only the last part.
        repository: USER/NAME; created if it does not exist.
        license: Identifier of the Hub, e.g. "cc-by-4.0"; None: the card says that none is stated.
        which: "teacher" or "student"; None for the default network.
        private: Make the repository private if it is created.
        message: Commit message.

    Returns:
        URL of the repository.

    Raises:
        UsageError: The name or the license is not valid, or the folder was exported and has a card already.
        UserError: There is no such model or no token, or the upload failed.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise UsageError(
            f"'{license}' is no identifier of a license", "Write one of the Hub: apache-2.0, cc-by-4.0, other"
        )
    hub_push.check(repository)
    folder = Path(model).expanduser()
    if hub_push.is_exported(folder):
        if license or which:
            raise UsageError(f"'{model}' was exported already", f"State the license in its {hub_push.CARD}")
        return hub_push.push(model, repository, private, message)
    facts = about_run(folder) if (folder / "config.yaml").is_file() else {}
    facts |= {"repository": f"{HUB}{repository}"} | ({"license": license} if license else {})
    with tempfile.TemporaryDirectory() as place:
        out = str(Path(place, "model"))
        export_model(model, "opendino", out, which, writer("opendino").Config(), facts)
        return hub_push.push(out, repository, private, message)


def about_run(folder: Path) -> dict[str, Any]:
    """What a card says of a run: data, number of images, verdict with its evidence, and the command, without paths."""
    settings = existing_runs.read_run_config(folder)
    verdict = existing_runs.verdict_on(folder, configs.to_tree(settings))
    scheme, _, rest = settings.data.rpartition(":")  # folder:/home/me/photos, wds:/home/me/{0..9}.tar
    public = settings.data.startswith(("hf:", "toy:")) or "://" in settings.data
    data = settings.data if public else f"{scheme}{':' * bool(scheme)}{Path(rest).name}"
    words = ["opendino", "train", data, "--method", configs.method_name(settings), "--backbone", settings.backbone]
    words += ["--steps", str(settings.steps), "--batch", str(settings.batch)]
    keys = existing_runs.read_keys(folder)
    return {
        "data": data, **({} if keys is None else {"images": len(keys)}), "verdict": verdict.name,
        "evidence": verdict.evidence, "command": shlex.join(words),
    }  # fmt: skip
