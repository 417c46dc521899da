"""A model folder on a web server: only its files are asked for, once; without a connection the last ones are used."""

from __future__ import annotations

import functools
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
    """Hands out files, and keeps what it answered."""

    answered: list[tuple[str, int]]

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


def test_torch_hub_loads_a_model(tmp_path: Path) -> None:
    home = model_folder(tmp_path / "net", small_vit())
    root = str(Path(__file__).parents[2])
    found = torch.hub.load(root, "load", home, source="local")
    assert torch.equal(found.embed(noise_image()), load(home).embed(noise_image()))
