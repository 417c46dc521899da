"""Files from a server that fails, stalls, is slow, breaks off, or has no range requests."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from opendino.data import download
from opendino.data.download import TooLarge, Unreachable


def fetched(server: Any, tmp_path: Path) -> bytes:
    download.download(f"{server.url}/a", tmp_path / "out", 300_000)
    return (tmp_path / "out").read_bytes()


@pytest.fixture
def content(tmp_path: Path, server: Any) -> bytes:
    content = os.urandom(300_000)
    (tmp_path / "www/a").write_bytes(content)
    return content


@pytest.mark.parametrize("trouble", [500, 503, 429, "truncate", "stall", "trickle"])
@pytest.mark.parametrize("honors_ranges", [True, False])
def test_passing_trouble(tmp_path: Path, server: Any, content: bytes, trouble: int | str, honors_ranges: bool) -> None:
    server.honors_ranges = honors_ranges
    server.trouble["/a"] = [trouble, trouble]
    assert fetched(server, tmp_path) == content
    assert server.asked["/a"] == 3
    if isinstance(trouble, int):
        assert server.ranges == []
    elif trouble != "trickle":  # of which more arrives, nobody knows how much
        assert server.ranges == ["bytes=150000-", f"bytes={225000 if honors_ranges else 150000}-"]
    else:
        assert len(server.ranges) == 2


def test_lasting_trouble(tmp_path: Path, server: Any, content: bytes) -> None:
    server.trouble["/a"] = [500] * 99
    with pytest.raises(Unreachable, match=r"500 .*6 attempts"):
        fetched(server, tmp_path)
    assert server.asked["/a"] == download.ATTEMPTS
    server.trouble["/a"] = [403]
    with pytest.raises(Unreachable, match="403"):
        fetched(server, tmp_path)
    assert server.asked["/a"] == download.ATTEMPTS + 1, "what is forbidden is not tried again"
    server.close()
    with pytest.raises(Unreachable, match="refused"):
        fetched(server, tmp_path)
    for url in ("http://", "http://a b/c", "ftp://a/b", "file:///etc/passwd"):
        with pytest.raises(Unreachable):
            download.download(url, tmp_path / "out", 300_000)


def test_redirects_lead_to_web_servers_only(tmp_path: Path, server: Any, content: bytes) -> None:
    server.trouble["/old"] = [f"{server.url}/a", "ftp://127.0.0.1:9/a", "file:///etc/passwd"]
    download.download(f"{server.url}/old", tmp_path / "out", 300_000)
    assert server.sent < 2**24, "the body of a redirect is not read"
    assert (tmp_path / "out").read_bytes() == content
    for _ in range(2):
        with pytest.raises(Unreachable, match="the server answers 302"):
            download.download(f"{server.url}/old", tmp_path / "out", 300_000)
    assert server.asked == {"/old": 3, "/a": 1}


def test_no_more_is_read_than_allowed(tmp_path: Path, server: Any, content: bytes) -> None:
    out = tmp_path / "out"
    for lie in ("endless", "overstate", ""):
        server.trouble["/a"] = [lie]
        with pytest.raises(TooLarge, match=r"^it is larger than the limit of 0\.2 MiB$"):
            download.download(f"{server.url}/a", out, 200_000)
        assert out.stat().st_size == 0 if lie != "endless" else out.stat().st_size <= 200_000
        server.trouble["/a"] = [lie]
        assert download.download_optional(f"{server.url}/a", 200_000) is None
    assert server.asked["/a"] == 6, "what is too large is not tried again"
    assert server.sent < 2**24
    server.trouble["/a"] = ["truncate", ""]  # the limit is for the whole file, not for what is left of it
    with pytest.raises(TooLarge):
        download.download(f"{server.url}/a", out, 299_999)
    server.trouble["/a"] = ["understate"]
    assert fetched(server, tmp_path) == content[:150_000], "the stated length ends it"
    assert download.download_optional(f"{server.url}/a", 300_000) == content


def test_pauses_grow(server: Any, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.trouble["/a"] = [500] * 99
    with pytest.raises(Unreachable):
        fetched(server, tmp_path)
    for number, pause in enumerate(pauses):
        assert 0.5 <= pause / (download.FIRST_WAIT_S * 2**number) <= 1.5
