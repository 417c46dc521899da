"""Fixtures: shards, a cache folder per test, and a web server that fails on demand."""

from __future__ import annotations

import gc
import importlib
import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opendino.data import download


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder for indexes and downloaded shards."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "opendino"


class Make:
    """Makes small images and shards."""

    @staticmethod
    def png(value: int, side: int = 4) -> bytes:
        """A small image, different for every value."""
        file = io.BytesIO()
        Image.new("RGB", (side, side), (value % 256, value // 256, 9)).save(file, "PNG")
        return file.getvalue()

    @staticmethod
    def shard(path: Path, members: dict[str, bytes], layout: int = tarfile.PAX_FORMAT) -> Path:
        """Write a .tar with these members, in this order."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=layout) as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    @classmethod
    def shards(cls, folder: Path, num: int, each: int) -> list[Path]:
        """`num` shards of `each` images with two classes, in the format of img2dataset."""
        made = []
        for number in range(num):
            members: dict[str, bytes] = {}
            for i in range(each):
                name, value = f"{number:05d}{i:04d}", number * each + i
                members[f"{name}.png"] = cls.png(value)
                members |= {f"{name}.cls": str(value % 2).encode(), f"{name}.json": b'{"caption": "x"}'}
            made.append(cls.shard(folder / f"{number:05d}.tar", members))
        return made


@pytest.fixture
def make() -> type[Make]:
    """Images and shards."""
    return Make


@pytest.fixture
def webdataset() -> Iterator[Any]:
    """The real library. It leaves files open: they are closed here, not in another test."""
    yield importlib.import_module("webdataset")
    gc.collect()


class Server:
    """A web server for a folder.

    Attributes:
        url: Its address.
        asked: How often each path was asked for.
        ranges: The Range headers that came.
        trouble: Path → what to do the first times it is asked for: an HTTP code, "truncate", "stall", "trickle",
            "endless" (no length, and no end), "overstate" (a length of a terabyte), "understate" (half of the length),
            or the address to redirect to, with a body that never ends.
        etag: What it calls the content of every file.
        sent: Bytes of bodies that never end.
        honors_ranges: Whether it answers with a part where asked for one.
    """

    def __init__(self, root: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.trouble: dict[str, list[int | str]] = {}
        self.honors_ranges, self.etag = True, '"1"'
        self.closing, self.sent = threading.Event(), 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def write_endlessly(self) -> None:
                self.close_connection = True
                while not outer.closing.is_set():  # until the client hangs up
                    outer.sent += self.wfile.write(bytes(2**16))

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                outer.asked[path] += 1
                left = outer.trouble.get(path, [])
                trouble = left.pop(0) if left else ""
                file = root / path.lstrip("/")
                if isinstance(trouble, str) and ":" in trouble:
                    self.send_response(302)
                    self.send_header("Location", trouble)
                    self.end_headers()
                    self.write_endlessly()
                    return
                if isinstance(trouble, int) or not file.is_file():
                    self.send_error(trouble or 404)
                    return
                content, start = file.read_bytes(), 0
                wanted = self.headers.get("Range")
                if wanted:
                    outer.ranges.append(wanted)
                if wanted and outer.honors_ranges:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("ETag", outer.etag)
                length = {"overstate": 10**12, "understate": len(content) // 2}.get(str(trouble), len(content) - start)
                if trouble != "endless":
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                content = content[start:]
                if trouble == "endless":
                    self.write_endlessly()
                if trouble in ("", "understate"):
                    self.wfile.write(content)
                    return
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                if trouble == "stall":
                    outer.closing.wait(20)
                for byte in content[len(content) // 2 :] if trouble == "trickle" else b"":
                    if outer.closing.wait(0.02):
                        break
                    self.wfile.write(bytes([byte]))
                self.close_connection = True

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None: ...  # a client that hung up

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02])
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves `tmp_path / "www"`; waits between attempts are short."""
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    (tmp_path / "www").mkdir()
    server = Server(tmp_path / "www")
    yield server
    server.close()
