"""Pushing an exported folder, against a hub that is a small server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from tests import fake_hub

from opendino.cli import main
from opendino.core.errors import UsageError, UserError
from opendino.interop.hub_push import check, push


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[fake_hub.Request]]:
    with fake_hub.running(tmp_path / "cache", monkeypatch) as heard:
        yield heard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "exported"
    home.mkdir()
    for name, content in (("README.md", "# net\n"), ("config.json", "{}"), ("model.safetensors", "weights")):
        (home / name).write_text(content)
    return home


def test_a_folder_goes_to_the_hub_as_one_commit(
    hub: list[fake_hub.Request], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), "me/net", "--private", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"path": str(folder), "url": f"{constants.ENDPOINT}/me/net"}
    (created,) = [json.loads(body) for path, _, body in hub if path == "/api/repos/create"]
    assert created.get("visibility") == "private" or created.get("private") is True  # newer and older clients
    ((_, authorized, _),) = [told for told in hub if "/commit/" in told[0]]
    assert authorized == f"Bearer {fake_hub.TOKEN}"
    assert set(fake_hub.Hub.files) == {"README.md", "config.json", "model.safetensors"}
    assert fake_hub.TOKEN not in said.out + said.err
    assert not any(fake_hub.TOKEN in file.read_text(errors="ignore") for file in tmp_path.rglob("*") if file.is_file())


def test_no_token_is_one_clear_line(
    hub: list[fake_hub.Request], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(folder), "me/net"]) == 1
    assert capsys.readouterr() == (
        "", "opendino: There is no token for the hub. Set HF_TOKEN, or log in once: hf auth login\n"
    )  # fmt: skip
    assert hub == []


def test_a_hub_that_is_not_there_is_one_clear_line(
    hub: list[fake_hub.Request], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(folder), "me/net"]) == 1
    said = capsys.readouterr().err
    assert "The upload to me/net failed" in said and len(said.splitlines()) == 1 and fake_hub.TOKEN not in said


def test_what_is_no_exported_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        push(str(tmp_path / "nowhere"), "me/net", False, "")
    for name in ("net", "a/b/c", "me/", "../x y"):
        with pytest.raises(UsageError, match="not a repository name"):
            check(name)
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match="not an exported folder"):
        push(str(folder), "me/net", False, "")
