"""Downloaded shards: kept within a limit, fetched again when they change, left out when they cannot be had."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opendino.core.errors import BadImage, UsageError
from opendino.core.types import ViewGroup, ViewSpec
from opendino.data import download, download_cache
from opendino.data.cache import DecodedImages
from opendino.data.loader import Batches, batches
from opendino.data.open_source import open_source
from opendino.views.settings import view


def test_a_source_on_a_server(make: Any, tmp_path: Path, server: Any, cache: Path) -> None:
    make.shards(tmp_path / "www/s", 3, 4)
    (tmp_path / "www/s/classes.txt").write_text("cat\ndog\n")
    source = open_source(f"{server.url}/s/{{00000..00002}}.tar")
    assert [source.read(i) for i in (11, 0, 5)] == [make.png(11), make.png(0), make.png(5)]
    assert source.classes == ("cat", "dog")
    assert source.key(11) == "00002.tar/000020003"
    again = open_source(f"wds:{server.url}/s/{{00000..00002}}.tar")
    assert again.read(7) == make.png(7)
    assert all(server.asked[f"/s/{number:05d}.tar"] == 1 for number in range(3)), "kept"
    assert len([path for path in (cache / "shards").iterdir() if not path.name.startswith(".")]) == 3


def test_what_is_kept_is_bounded(
    make: Any, tmp_path: Path, server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = make.shards(tmp_path / "www/s", 4, 4)[0].stat().st_size
    monkeypatch.setenv("OPENDINO_CACHE_GB", str(2.5 * size / 1e9))
    source = open_source(f"wds:{server.url}/s/{{00000..00003}}.tar")
    kept = [path for path in (cache / "shards").iterdir() if not path.suffix and not path.name.startswith(".")]
    assert len(kept) == 2
    assert [source.read(4 * shard) for shard in range(4)] == [make.png(4 * shard) for shard in range(4)]
    monkeypatch.setenv("OPENDINO_CACHE_GB", "much")
    with pytest.raises(UsageError, match="OPENDINO_CACHE_GB"):
        open_source(f"wds:{server.url}/s/{{00000..00002}}.tar")


def test_a_lost_shard_is_skipped_and_logged(
    make: Any, tmp_path: Path, server: Any, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make.shards(tmp_path / "www/s", 4, 6)
    data = f"wds:{server.url}/s/{{00000..00003}}.tar"
    source = open_source(data)
    for path in (cache / "shards").iterdir():
        path.unlink()
    server.trouble["/s/00002.tar"] = [500] * 99
    server.asked.clear()
    spec = ViewSpec((ViewGroup("global", 8, (view({"crop.scale": (0.4, 1.0)}),)),))
    taken = list(batches(Batches(DecodedImages(source, 400), spec, 0, 6), 0, 8, 0, pin=False))
    bad = dict(pair for batch in taken for pair in batch.bad)
    assert set(bad) == {f"00002.tar/00002{i:04d}" for i in range(6)}
    assert all("500" in reason and "\n" not in reason for reason in bad.values())
    seen = set(torch.cat([batch.indices for batch in taken]).tolist())
    assert seen == set(range(24)) - set(range(12, 18))
    assert server.asked["/s/00002.tar"] == download.ATTEMPTS, "and left alone for a while"
    assert capsys.readouterr().err.count("is left out") == 1


def test_a_shard_that_changed_on_the_server(make: Any, tmp_path: Path, server: Any, cache: Path) -> None:
    make.shards(tmp_path / "www/s", 1, 3)
    data = f"wds:{server.url}/s/00000.tar"
    source = open_source(data)
    for path in (cache / "shards").iterdir():
        path.unlink()
    make.shards(tmp_path / "www/s", 1, 9)
    with pytest.raises(BadImage, match="changed"):
        source.read(0)
    assert len(open_source(data)) == 9


def test_a_kept_shard_of_old_is_compared_with_the_server_when_a_run_starts(
    make: Any, tmp_path: Path, server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(download_cache.log, "say", said.append)
    (path,) = make.shards(tmp_path / "www/s", 1, 3)
    data = f"wds:{server.url}/s/00000.tar"
    assert open_source(data).read(0) == make.png(0)
    make.shard(path, {f"00000{i:04d}.png": make.png(9 - i) for i in range(3)})  # of the same names and size
    server.etag = '"2"'
    assert open_source(data).read(0) == make.png(0), "a day has not passed"
    assert server.asked["/s/00000.tar"] == 1
    monkeypatch.setattr(download_cache, "ASK_AGAIN_S", -1.0)
    assert open_source(data).read(0) == make.png(9)
    assert len(said) == 1 and "has changed on the server" in said[0]
    fetched = server.asked["/s/00000.tar"]
    for number in range(2):
        assert open_source(data).read(0) == make.png(9)
        assert server.asked["/s/00000.tar"] == fetched + number + 1, "asked, not fetched"
    assert len(said) == 1
    server.close()
    assert open_source(data).read(0) == make.png(9), "without an answer what was fetched is good enough"


@pytest.mark.parametrize("spoilt", ["cut", "other", "none"])
def test_a_kept_file_that_is_not_what_its_note_says_is_fetched_again(
    make: Any, tmp_path: Path, server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(download_cache.log, "warn", said.append)
    make.shards(tmp_path / "www/s", 1, 3)
    data = f"wds:{server.url}/s/00000.tar"
    open_source(data)
    (path,) = [path for path in (cache / "shards").iterdir() if path.name[0] != "."]
    (note,) = (cache / "shards").glob(".*.note")
    if spoilt == "cut":
        path.write_bytes(path.read_bytes()[:700])
    elif spoilt == "other":
        note.write_text(note.read_text().replace("00000.tar", "00001.tar"))
    else:
        note.unlink()
    assert open_source(data).read(2) == make.png(2)
    assert len(said) == 1 and "discarded" in said[0]


def test_shards_are_fetched_ahead(make: Any, tmp_path: Path, server: Any, cache: Path) -> None:
    make.shards(tmp_path / "www/s", 2, 3)
    source = open_source(f"wds:{server.url}/s/{{00000..00001}}.tar")
    for path in (cache / "shards").iterdir():
        path.unlink()
    server.asked.clear()
    source.prefetch(np.array([4, 5]))
    until = time.monotonic() + 10
    while not [path for path in (cache / "shards").iterdir() if not path.suffix and path.name[0] != "."]:
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)
    assert source.read(4) == make.png(4)
    assert server.asked == {"/s/00001.tar": 1}


def test_a_file_that_is_evicted_at_once_has_not_failed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(path: Path) -> str:
        path.write_bytes(b"shard")
        return "1"

    def evicted(self: Path, target: Path) -> Path:  # by another process
        self.unlink()
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", evicted)
        assert not download_cache.cached_file("a", make).exists()
    assert download_cache.cached_file("a", make).read_bytes() == b"shard"
