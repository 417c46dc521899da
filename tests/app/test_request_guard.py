"""What a client of the page can do, asked of a real server over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from starlette.requests import Request
from tests.app.test_training_jobs import TRAINER

from opendino.app import request_guard, upload_store
from opendino.app.upload_store import Quota, UploadStore

BOUNDARY = "----------------------------7f3a"


class Client:
    """One visitor: keeps its cookie, sends what it likes."""

    def __init__(self, address: str) -> None:
        self.server, self.cookie = address.removeprefix("http://").rstrip("/"), ""

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Headers are named with _ for -; Host and the cookie are sent unless given."""
        sent = {"Host": self.server, "Cookie": self.cookie} | {k.replace("_", "-"): v for k, v in headers.items()}
        with contextlib.closing(http.client.HTTPConnection(self.server, timeout=120)) as connection:
            connection.request(method, path, body, sent)
            with connection.getresponse() as answer:
                self.cookie = (answer.headers.get("set-cookie") or self.cookie).partition(";")[0]
                return answer.status, answer.read()

    def upload(self, name: str = "a.png", content: bytes = b"x" * 100, **headers: str) -> tuple[int, bytes]:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + content + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        return self.ask("POST", "/gradio_api/upload?upload_id=1", body, Content_Type=kind, **headers)

    def event(self, sent: bytes, path: str = "/gradio_api/queue/join", **headers: str) -> tuple[int, bytes]:
        return self.ask("POST", path, sent, Content_Type="application/json", **headers)


# Serves a page with small quotas; what it starts as Python is a stand-in.
SERVER = """
import os, sys
from pathlib import Path
import torch
from opendino.app import upload_store, page
upload_store.Quota.__init__.__defaults__ = (5000, 4, 12_000, 7)
runs, out, sys.executable = sys.argv[1:]
with page.serve([runs], device=torch.device("cpu"), port=0, out=Path(out), trainings=9) as address:
    print(address, os.environ["GRADIO_TEMP_DIR"], flush=True)
    sys.stdin.read()
"""


class Site(NamedTuple):
    """A page: where it listens, where its trainings go, and where uploads lie."""

    address: str
    out: Path
    uploads: Path


@pytest.fixture(scope="module")
def site(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    out = tmp_path_factory.mktemp("out") / "deep/down"
    trainer = tmp_path_factory.mktemp("bin") / "trainer"
    trainer.write_text(TRAINER)
    trainer.chmod(0o755)
    words = [sys.executable, "-c", SERVER, str(place / "runs"), str(out), str(trainer)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        address, folder = server.stdout.readline().split()
        yield Site(address, out, Path(folder) / "uploads")
        server.stdin.close()
    assert not Path(folder).exists()


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    found = Client(site.address)
    assert found.ask("GET", "/")[0] == 200
    yield found
    heartbeat(found).close()  # its page closes, and with it go its uploads
    waited(lambda: not uploads(site))


def heartbeat(client: Client) -> http.client.HTTPConnection:
    """What an open page holds open."""
    connection = http.client.HTTPConnection(client.server, timeout=120)
    connection.request("GET", "/gradio_api/heartbeat/abc", headers={"Cookie": client.cookie})
    connection.sock.recv(20)
    return connection


def uploads(site: Site) -> list[Path]:
    return [*site.uploads.glob("*")]


def waited(until: Callable[[], bool]) -> None:
    last = time.monotonic() + 60
    while not until():
        assert time.monotonic() < last
        time.sleep(0.05)


@pytest.mark.parametrize("session", ["../../../evil", "/../../evil", "..", "a/../../../b", "\\..\\..", "%2e%2e%2f"])
def test_a_session_id_never_becomes_part_of_a_path(site: Site, client: Client, session: str) -> None:
    out = site.out
    bystander = out.parent.parent / "bystander.txt"
    bystander.write_text("mine")
    before = set(out.parent.parent.rglob("*"))
    config = json.loads(client.ask("GET", "/config")[1])
    (button,) = (each["id"] for each in config["components"] if each["props"].get("value") == "Train")
    (index,) = (each["id"] for each in config["dependencies"] if [button, "click"] in each["targets"])
    chosen = {"Images": "Gray shapes", "Network": "Four convolutions (fast)", "Steps (64 images each)": 20}
    inputs = next(each["inputs"] for each in config["dependencies"] if [button, "click"] in each["targets"])
    labels = {each["id"]: each["props"].get("label") for each in config["components"]}
    data = [chosen.get(labels[number]) for number in inputs]
    sent = {"data": data, "fn_index": index, "trigger_id": button, "session_hash": session, "event_data": None}
    runs = set(out.glob("visitors/*"))
    status, said = client.event(json.dumps(sent).encode())
    assert status == 200, said
    waited(lambda: any((run / "metrics.jsonl").exists() for run in set(out.glob("visitors/*")) - runs))
    made = set(out.parent.parent.rglob("*")) - before - {out.parent, out}
    assert made and all(path.is_relative_to(out) for path in made)
    assert not any("evil" in path.name or ".." in path.name or "%" in path.name for path in made)
    assert bystander.read_text() == "mine"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another server on this machine
        {"Origin": "http://localhost"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_nothing_is_changed_for_other_sites(site: Site, client: Client, headers: dict[str, str]) -> None:
    assert client.upload(**headers)[0] == 403
    assert client.event(b"{}", **headers)[0] == 403
    assert client.event(b"{}", "/gradio_api/cancel", **headers)[0] == 403
    assert client.ask("GET", "/gradio_api/heartbeat/abc", **headers)[0] == 403
    assert uploads(site) == []


def test_the_page_itself_may_be_linked_to_and_may_upload(site: Site, client: Client) -> None:
    assert client.ask("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    status, said = client.upload(Origin=f"http://{client.server}", Sec_Fetch_Site="same-origin")
    assert status == 200, said
    (path,) = uploads(site)
    assert json.loads(said) == [str(path)] and path.read_bytes() == b"x" * 100


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "127.0.0.1@evil"]
)
def test_only_this_machine_is_answered_for(client: Client, host: str) -> None:
    assert client.ask("GET", "/", Host=host)[0] == 400
    assert client.upload(Host=host)[0] == 400


@pytest.mark.parametrize(
    ("listens", "host", "own"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True), ("127.0.0.1", "LOCALHOST", True), ("127.0.0.1", "[::1]:7860", True),
        ("127.0.0.1", "10.0.0.5:7860", False), ("0.0.0.0", "10.0.0.5:7860", True), ("0.0.0.0", "[fd00::1]:1", True),
        ("0.0.0.0", "evil.example:7860", False), ("lab.example", "lab.example:7860", True),
    ],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_not_ours(tmp_path: Path, listens: str, host: str, own: bool) -> None:
    guard = request_guard.Guard(lambda *_: None, listens, UploadStore(tmp_path))  # pyright: ignore[reportArgumentType]
    assert guard._is_own(host) == own


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("../../../evil.png", ".png"), ("/etc/passwd", ""), ("a.PNG", ".png"), ("a.py", ""), ("a.png.sh", ""),
        (".zip", ".zip"), ("scan.NII.GZ", ".nii.gz"), ("a.gz", ""), ("x" * 300 + ".zip", ".zip"),
        ("%d.mp4", ".mp4"), ("", None),
    ],
)  # fmt: skip
def test_an_upload_gets_a_name_of_the_servers_own(site: Site, client: Client, name: str, ending: str | None) -> None:
    status, said = client.upload(name)
    if ending is None:
        assert status in (200, 400) and json.loads(said or b"[]") in ([], [str(path) for path in uploads(site)])
        return
    assert status == 200, said
    (path,) = uploads(site)
    stem = path.name.removesuffix(ending)
    assert path.name == stem + ending and len(stem) == 32 and set(stem) <= set("0123456789abcdef")


def test_a_visitor_has_a_quota_of_files_and_of_bytes(client: Client, site: Site) -> None:
    for _ in range(4):
        assert client.upload(content=b"")[0] == 200
    status, said = client.upload(content=b"")
    assert status == 413 and b"You have uploaded too much" in said and len(uploads(site)) == 4
    other = Client(site.address)
    other.ask("GET", "/")
    assert other.cookie != client.cookie
    assert other.upload(content=b"x" * 3000)[0] == 200
    assert other.upload(content=b"x" * 3000)[0] == 413
    assert sum(path.stat().st_size for path in uploads(site)) == 3000  # nothing of what was refused is left
    heartbeat(other).close()
    waited(lambda: len(uploads(site)) == 4)


def test_all_visitors_together_have_a_quota(client: Client, site: Site) -> None:
    others = [Client(site.address) for _ in range(4)]
    statuses = []
    for other in others:
        other.ask("GET", "/")
        statuses.append(other.upload(content=b"x" * 4000)[0])
    assert statuses == [200, 200, 413, 413]
    for other in others:
        heartbeat(other).close()
    waited(lambda: uploads(site) == [])
    assert client.upload(content=b"x" * 4000)[0] == 200  # there is room again


def test_uploads_go_with_the_last_page_of_their_visitor(site: Site, client: Client) -> None:
    one, two = heartbeat(client), heartbeat(client)
    assert client.upload()[0] == 200
    one.close()
    time.sleep(0.5)
    assert len(uploads(site)) == 1
    two.close()
    waited(lambda: uploads(site) == [])


def sent(store: UploadStore, name: str) -> int:
    """The status of an upload to a store itself."""
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = {"type": "http.request", "body": head.encode() + b"x\r\n--b--\r\n", "more_body": False}
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]

    async def receive() -> dict[str, Any]:
        return body

    request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)
    return asyncio.run(store.take(request, "me")).status_code


def test_an_old_upload_goes_when_another_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = UploadStore(tmp_path / "uploads")
    assert sent(store, "old.zip") == 200
    monkeypatch.setattr(upload_store, "_MAX_SECONDS", -1)
    assert sent(store, "new.png") == 200
    assert [path.suffix for path in (tmp_path / "uploads").iterdir()] == [".png"]


def test_pictures_that_were_looked_at_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_store, "_MAX_IMAGE_SECONDS", -1)
    store = UploadStore(tmp_path / "uploads", Quota(files=4))
    assert [sent(store, name) for name in ("a.zip", "b.png", "c.png")] == [200] * 3
    assert len([*(tmp_path / "uploads").iterdir()]) == 3  # half the quota was not used before the last
    assert sent(store, "d.png") == 200
    assert sorted(path.suffix for path in (tmp_path / "uploads").iterdir()) == [".png", ".zip"]


def test_a_nearly_full_disk_takes_no_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert sent(UploadStore(tmp_path / "uploads"), "a.png") == 413


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no boundary at all"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        ("application/json", b"{}"),
        ("", b""),
    ],
)
def test_what_is_no_upload_is_refused(site: Site, client: Client, kind: str, body: bytes) -> None:
    assert client.ask("POST", "/gradio_api/upload", body, Content_Type=kind)[0] == 400
    assert uploads(site) == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (b'{"data": ' + b"[" * 40 + b"]" * 40 + b"}", 400),
        (b'{"data": [' + b"0," * 30_000 + b"0]}", 400),
        (b'{"data": [NaN], "fn_index": 0, "session_hash": "x"}', 400),
        (b'{"data": [' + b"9" * 5000 + b"]}", 400),
        (b'{"data": [{"path": "http://example.com/a.png", "meta": {"_type": "gradio.FileData"}}]}', 400),
        (b'{"data": "' + b"x" * 2**20 + b'"}', 413),
        (b"\xff", 400),
        (b"", 400),
    ],
)
def test_events_are_small_and_plain(client: Client, sent: bytes, status: int) -> None:
    assert client.event(sent)[0] == status
    assert client.event(sent, "/gradio_api/run/predict")[0] == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=http://example.com/a.png"),  # the server would fetch it
        ("GET", "/gradio_api/file/https://example.com/a.png"),
        ("GET", "/gradio_api/proxy=http://example.com/"),
        ("GET", "/gradio_api/deep_link?session_hash=abc"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/run-history/connect"),
        ("POST", "/"),
        ("PUT", "/gradio_api/upload"),
        ("DELETE", "/gradio_api/upload"),
    ],
)
def test_what_the_page_does_not_need_is_not_there(client: Client, method: str, path: str) -> None:
    assert client.ask(method, path, b"{}")[0] == 404
