"""Every module of `data/sources` keeps the contract of `core.contracts.Source`.

A new source is tested as soon as one of the places made in `places` is its own; add a place where none is.
"""

from __future__ import annotations

import csv
import inspect
import multiprocessing
import pickle
import tarfile
import zipfile
from fractions import Fraction
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from opendino.core import registry
from opendino.core.contracts import Source
from opendino.core.errors import BadImage
from opendino.data.decode import decode
from opendino.data.open_source import open_source
from opendino.data.sources import python
from opendino.datasets import video_frames

PACKAGE = "opendino.data.sources"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """DATA strings with at least two classes and one damaged file, where the place is made of files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = tmp_path / "images"
    for number, name in enumerate(["cats/0.jpg", "cats/1.png", "dogs/2.jpg", "dogs/ünï\n3.png", "dogs/deep/4.webp"]):
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9 + number, 7), (40 * number, 90, 200)).save(path)
    (images / "dogs/damaged.jpg").write_bytes((images / "cats/0.jpg").read_bytes()[:200])
    with tarfile.open(tmp_path / "a.tar", "w") as tar, zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(images.rglob("*.*")):
            tar.add(path, path.relative_to(tmp_path))
            archive.write(path, path.relative_to(tmp_path))
    (tmp_path / "shards").mkdir()
    for number, folder in enumerate(("cats", "dogs")):
        with tarfile.open(tmp_path / f"shards/{number}.tar", "w") as tar:
            for path in sorted((images / folder).rglob("*.*")):
                tar.add(path, path.name)
                (tmp_path / "label").write_text(folder)
                tar.add(tmp_path / "label", f"{path.stem}.cls")
    (tmp_path / "tables").mkdir()
    table = {"image": [], "label": []}
    for path in sorted(images.rglob("*.*")):
        table["image"].append({"bytes": path.read_bytes(), "path": path.name})
        table["label"].append(path.relative_to(images).parts[0])
    parquet.write_table(pyarrow.table(table), tmp_path / "tables/a.parquet")
    fsspec.filesystem("memory").put(str(images), f"/{tmp_path.name}", recursive=True)
    lines = [f"images/{name}\t{name[:4]}" for name in ("cats/0.jpg", "dogs/2.jpg", "dogs/damaged.jpg", "gone.png")]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    files = (str(tmp_path / name) for name in ("a.tar", "a.zip", "list.txt", "shards", "tables"))
    addresses = (f"{tmp_path}/tables?label=label", f"memory://{tmp_path.name}")
    given = python.register([(np.full((9, 7, 3), 40 * number, np.uint8), number % 2) for number in range(5)])
    film = tmp_path / "film.mp4"
    video_frames.write(film, (np.full((32, 32, 3), 40 * number, np.uint8) for number in range(5)), Fraction(1))
    return [str(images), *files, *addresses, given, str(film), "toy:", "toy:forms?n=20"]


@pytest.mark.parametrize("name", registry.names(PACKAGE))
def test_contract(name: str, places: list[str]) -> None:
    module = registry.load(PACKAGE, name)
    classes = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Source) and kind.__module__ == module.__name__
    ]
    assert len(classes) == 1, "a source's file has one class of Source"
    assert getattr(classes[0], "__final__", False), "and it is final"
    mine = [data for data in places if module.matches(data)]
    assert mine, f"no place here is one of {name}'s: add one to `places`"
    for data in mine:
        source = open_source(data)
        assert type(source) is classes[0]
        check(source)
        check_same(source, open_source(data))
        check_same(source, pickle.loads(pickle.dumps(source)))
        check_in_another_process(source)


def check(source: Source) -> None:
    keys = [source.key(index) for index in range(len(source))]
    assert 0 < len(keys) == len(set(keys))
    assert len(source.classes) == len(set(source.classes))
    assert list(csv.reader([",".join(source.classes)])), "names are text"
    assert all(key and key.encode("utf-8") for key in keys)
    labels = {source.label(index) for index in range(len(source))}
    assert labels <= {-1, *range(len(source.classes))}
    assert labels - {-1} == set(range(len(source.classes))), "every class has an image"
    good, reasons = 0, []
    for index in range(min(len(source), 20)):
        try:
            image = decode(source.read(index))
        except BadImage as error:
            reasons.append(str(error))
            continue
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        good += 1
    assert good >= 2
    assert all(reason and "\n" not in reason for reason in reasons)


def check_same(one: Source, other: Source) -> None:
    assert (len(one), one.classes) == (len(other), other.classes)
    for index in range(min(len(one), 20)):
        assert (one.key(index), one.label(index)) == (other.key(index), other.label(index))
        assert digest(one, index) == digest(other, index)


def digest(source: Source, index: int) -> bytes | str:
    try:
        data = source.read(index)
    except BadImage as error:
        return str(error)
    return data.tobytes() if isinstance(data, np.ndarray) else data


def check_in_another_process(source: Source) -> None:
    """A forked loader worker inherits a source that has been read from, and both go on reading."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    indices = range(min(len(source), 5))
    child = context.Process(target=lambda: send.send([digest(source, index) for index in indices]))
    child.start()
    assert receive.poll(20), "the child did not answer"
    assert receive.recv() == [digest(source, index) for index in indices]
    child.join()
    receive.close(), send.close()
