"""A model folder on a web server: only its files are asked for, once; without a connection the last ones are used."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tests.factories import model_folder, noise_image, small_vit

from opendino.core.errors import UserError
from opendino.data import download
from opendino.models.load import load


class Server(SimpleHTTPRequestHandler):
    """Hands out files, and keeps what it answered; `endless` is a file that has no length and no end."""

    answered: list[tuple[str, int]]
    endless = ""

    def do_GET(self) -> None:
        if not self.endless or not self.path.endswith(self.endless):
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for _ in range(2**14):  # a GiB
                self.wfile.write(bytes(2**16))

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.answered.append((self.path.rpartition("/")[2], int(code)))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    (tmp_path / "www").mkdir()
    Server.answered = []
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(tmp_path / "www"))) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def test_a_folder_by_its_address(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    url, home = f"http://127.0.0.1:{server.server_address[1]}/net/", tmp_path / "www/net"
    model_folder(home, small_vit(), student=small_vit(seed=1))
    images = noise_image()
    for which in ("teacher", "student"):
        assert torch.equal(load(url, which).embed(images), load(home, which).embed(images))
    files = ["backbone.json", "backbone.safetensors", "backbone_student.safetensors"]
    assert Server.answered == [*((file, 200) for file in files), *((file, 304) for file in files)]

    model_folder(home, small_vit(seed=2))
    for file in home.iterdir():
        os.utime(file, (4e9, 4e9))
    assert torch.equal(load(url).embed(images), load(home).embed(images))
    server.shutdown()
    server.server_close()
    assert torch.equal(load(url).embed(images), load(home).embed(images))  # from the cache


def test_what_is_no_model_is_one_line(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.raises(UserError, match=r"/gone/backbone\.json' could not be downloaded: the server answers 404"):
        load(f"{url}/gone")
    (tmp_path / "www/backbone.json").write_text('{"name": "../../secret", "kwargs": {}}')
    with pytest.raises(UserError, match=r"backbone\.json lacks"):
        load(url)


def test_weights_larger_than_described_are_refused(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, home = f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "www"
    model_folder(home, small_vit())
    for file, limit in (("backbone.json", "16.0"), ("backbone.safetensors", "16.1")):
        monkeypatch.setattr(Server, "endless", file)
        with pytest.raises(UserError, match=rf"/{file}' is not downloaded: it is larger than the limit of {limit} MiB"):
            load(url)
    monkeypatch.setattr(Server, "endless", "")
    described = json.loads((home / "backbone.json").read_text())
    for day, (kwargs, wrong) in enumerate([({"embed_dim": 10**6}, "larger than 4,096"), ({"depth": 2000}, "layers")]):
        (home / "backbone.json").write_text(json.dumps(described | {"kwargs": described["kwargs"] | kwargs}))
        os.utime(home / "backbone.json", (4e9 + day, 4e9 + day))
        with pytest.raises(UserError, match=wrong):
            load(url)
    folders = list((tmp_path / "cache/opendino/models").iterdir())
    assert [sorted(file.name for file in folder.iterdir()) for folder in folders] == [
        ["backbone.json", "backbone.json.validator"]
    ]


def test_torch_hub_loads_a_model(tmp_path: Path) -> None:
    home = model_folder(tmp_path / "net", small_vit())
    root = str(Path(__file__).parents[2])
    found = torch.hub.load(root, "load", home, source="local")
    assert torch.equal(found.embed(noise_image()), load(home).embed(noise_image()))
