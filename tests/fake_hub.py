"""A Hugging Face Hub on this machine: takes commits of small files and hands them out again."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

SHA = "1" * 40
TOKEN = "hf_secret_of_nobody"
Request = tuple[str, str | None, bytes]
"""Path, authorization, body."""


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for; keeps what it was told, and the files of the last commit."""

    heard: list[Request]
    files: dict[str, bytes]
    claimed: dict[str, int]
    """Sizes that are said of files, instead of theirs."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.heard.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            self.answer({"url": f"{self.home}/me/net", "id": "me/net"})
        elif self.path.startswith("/api/models/me/net/preupload"):
            files = json.loads(body)["files"]
            self.answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        elif self.path.startswith("/api/models/me/net/commit"):
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            self.files.update({value["path"]: base64.b64decode(value["content"]) for value in values})
            self.answer({"commitUrl": f"{self.home}/me/net/commit/{SHA}", "commitOid": SHA, "success": True})
        else:
            self.answer({}, 200 if self.path == "/api/validate-yaml" else 404)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.heard.append((path, self.headers.get("Authorization"), b""))
        if "/resolve/" in path:
            self.send_file(self.files.get(path.partition("/resolve/")[2].partition("/")[2]))
        elif "/tree/" in path:
            entries = [{"type": "file", "path": name, "size": len(b), "oid": SHA} for name, b in self.files.items()]
            self.answer(entries)
        elif path.startswith("/api/models/me/net"):
            sizes = {name: len(content) for name, content in self.files.items()} | self.claimed
            siblings = [{"rfilename": name, "size": sizes[name]} for name in self.files]
            self.answer({"id": "me/net", "sha": SHA, "siblings": siblings})
        else:
            self.answer({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def send_file(self, content: bytes | None) -> None:
        if content is None:
            return self.answer({}, 404)
        self.send_response(200)
        self.send_header("ETag", f'"{hash(content) & (2**64 - 1):032x}"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def running(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Request]]:
    """Let huggingface_hub use an empty hub and an empty cache, with a token; what the hub is asked."""
    Hub.heard, Hub.files, Hub.claimed = [], {}, {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + path)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield Hub.heard
        server.shutdown()
