"""Images and shards in buckets, with the fsspec file systems that need no server."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data import remote_files
from opendino.data.open_source import absolute, open_source
from opendino.data.sources.bucket import BucketSource
from opendino.data.sources.wds import WdsSource


@pytest.fixture(params=["memory", "file"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty bucket at this address."""
    root = f"/{tmp_path.name}" if request.param == "memory" else str(tmp_path / "bucket")
    yield f"{request.param}://{root}"
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()


def put(bucket: str, name: str, content: bytes) -> None:
    files = fsspec.filesystem(bucket.partition("://")[0])
    path = f"{files._strip_protocol(bucket)}/{name}"
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    files.pipe_file(path, content)


def contents(source: Source) -> dict[str, bytes]:
    return {source.key(i): source.read(i) for i in range(len(source))}


def test_images_below_a_prefix(make: Any, bucket: str) -> None:
    for name in ("cat/1.png", "dog/2.PNG", "dog/old/3.png", "dog/.hidden.png", "__MACOSX/4.png", "notes.txt"):
        put(bucket, f"photos/{name}", make.png(len(name)))
    put(bucket, "photos2/5.png", make.png(5))
    source = open_source(f"{bucket}/photos/")
    assert type(source) is BucketSource and absolute(f"{bucket}/photos") == f"{bucket}/photos"
    assert contents(source) == {name: make.png(len(name)) for name in ("cat/1.png", "dog/2.PNG", "dog/old/3.png")}
    assert [source.classes[source.label(i)] for i in range(3)] == ["cat", "dog", "dog"]
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)
    assert len(open_source(f"bucket:{bucket}")) == 4


def test_what_changes_or_goes_after_it_was_listed(make: Any, bucket: str) -> None:
    for name in ("1.png", "2.png", "3.png"):
        put(bucket, name, make.png(1))
    source = open_source(bucket)
    put(bucket, "1.png", make.png(1) + bytes(10**6))
    put(bucket, "2.png", b"x")
    fsspec.filesystem(bucket.partition("://")[0]).rm(f"{bucket}/3.png")
    for index, reason in enumerate(("has changed", "has changed", ".")):
        with pytest.raises(BadImage, match=reason):
            source.read(index)


def test_no_more_is_read_than_was_listed(make: Any, bucket: str) -> None:
    put(bucket, "1.png", bytes(10**6))
    assert len(remote_files.read(f"{bucket}/1.png", 1000)) == 1001


def test_shards_in_a_bucket(make: Any, bucket: str, tmp_path: Path, cache: Path) -> None:
    for path in make.shards(tmp_path / "made", 3, 4):
        put(bucket, f"s/{path.name}", path.read_bytes())
    put(bucket, "s/classes.txt", b"cat\ndog\n")
    for data in (f"{bucket}/s/{{00000..00002}}.tar", f"wds:{bucket}/s/{{00000..00002}}.tar", f"wds:{bucket}/s"):
        source = open_source(data)
        assert type(source) is WdsSource
        assert (len(source), source.classes) == (12, ("cat", "dog"))
        assert source.key(5) == "00001.tar/000010001" and source.read(5) == make.png(5)
    assert len(open_source(f"{bucket}/s/00001.tar")) == 4
    with pytest.raises(UserError, match=r"holds shards\. Give them as wds:"):
        open_source(f"{bucket}/s")
    with pytest.raises(UserError, match="None of 1 shards can be used"):
        open_source(f"wds:{bucket}/gone.tar")


def test_missing_images_are_named(bucket: str) -> None:
    with pytest.raises(UserError, match="No files in"):
        open_source(f"{bucket}/nothing")
    put(bucket, "a.czi", b"x")
    with pytest.raises(UserError, match=r"No images in .*Zeiss"):
        open_source(bucket)
    with pytest.raises(UserError, match="names no shards"):
        open_source(f"wds:{bucket}")


@pytest.mark.parametrize("data", ["s3://bucket/prefix", "gs://bucket/prefix", "wds:az://bucket/{0..3}.tar"])
def test_a_missing_driver_is_named_with_its_extra(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError(f"Install the driver to access {protocol}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r"needs a library \(Install the driver.*pip install \"opendino\[remote\]\""):
        open_source(data)


def test_what_a_driver_says_is_passed_on_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        _strip_protocol = staticmethod(str)

        def find(self, *_: object, **__: object) -> None:
            raise PermissionError("Forbidden\nrequest 123")

    monkeypatch.setattr(fsspec, "filesystem", lambda _: Refusing())
    with pytest.raises(UserError, match=r"^Cannot list s3://b/x: Forbidden\. .*credentials.*FSSPEC_S3_ANON=true$"):
        open_source("s3://b/x")


def test_other_file_systems_of_fsspec_are_not_opened(tmp_path: Path) -> None:
    for data in ("github://a:b@c/d", "reference://x", "simplecache::s3://b/x", "zip://a::file:///b.zip"):
        assert not remote_files.is_bucket(data)
    with pytest.raises(UserError, match="not the address of a bucket"):
        open_source(f"bucket:{tmp_path}")
