"""Pushing, against a hub that is a small server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from opendino.core.errors import UsageError, UserError
from opendino.interop.hub_push import push

TOKEN = "hf_secret_of_nobody"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for an upload of small files; keeps what it was told."""

    heard: list[tuple[str, str | None, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.heard.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            self.answer({"url": f"{self.home}/me/net", "id": "me/net"})
        elif self.path.startswith("/api/models/me/net/preupload"):
            files = json.loads(body)["files"]
            self.answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        elif self.path.startswith("/api/models/me/net/commit"):
            self.answer({"commitUrl": f"{self.home}/me/net/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.answer({}, 200 if self.path == "/api/validate-yaml" else 404)

    def do_GET(self) -> None:
        self.answer({"id": "me/net", "sha": "0" * 40, "siblings": []})

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, str | None, bytes]]]]:
    Hub.heard = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", Hub.heard
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "exported"
    home.mkdir()
    for name, content in (("README.md", "# net\n"), ("config.json", "{}"), ("model.safetensors", "weights")):
        (home / name).write_text(content)
    return home


def verb(args: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its surroundings once."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-m", "opendino", "push", *args],
        env={**kept, **quiet, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_folder_goes_to_the_hub_as_one_commit(
    hub: tuple[str, list[tuple[str, str | None, bytes]]], folder: Path, tmp_path: Path
) -> None:
    url, heard = hub
    done = verb([str(folder), "me/net", "--private", "--json"], HF_ENDPOINT=url, HF_TOKEN=TOKEN, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"path": str(folder), "url": f"{url}/me/net"}
    (created,) = [json.loads(body) for path, _, body in heard if path == "/api/repos/create"]
    assert created.get("visibility") == "private" or created.get("private") is True  # newer and older clients
    ((_, authorized, commit),) = [told for told in heard if "/commit/" in told[0]]
    assert authorized == f"Bearer {TOKEN}"
    lines = [json.loads(line) for line in commit.splitlines()]
    assert {line["value"]["path"] for line in lines if line["key"] == "file"} == {
        "README.md", "config.json", "model.safetensors"
    }  # fmt: skip
    assert TOKEN not in done.stdout + done.stderr
    assert not any(TOKEN in file.read_text(errors="ignore") for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.slow
def test_no_token_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    done = verb([str(folder), "me/net"], HF_HOME=str(tmp_path / "home"), HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().splitlines() == [
        "opendino: There is no token for the hub. Set HF_TOKEN, or log in once: hf auth login"
    ]


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    done = verb([str(folder), "me/net"], HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert done.returncode == 1 and "The upload to me/net failed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and TOKEN not in done.stderr


def test_what_is_no_exported_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        push(str(tmp_path / "nowhere"), "me/net", False, "")
    for name in ("net", "a/b/c", "me/", "../x y"):
        with pytest.raises(UsageError, match="not a repository name"):
            push(str(folder), name, False, "")
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match="not an exported folder"):
        push(str(folder), "me/net", False, "")
