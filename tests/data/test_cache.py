"""Cached images are equal to decoded ones, for every kind of cache."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from opendino.core import machine_memory
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data import cache
from opendino.data.cache import Cache, DecodedImages

AREA = 200


class Counted(Source):
    """Noise of different sizes, the largest above the working area; counts how often it is read."""

    def __init__(self, num: int = 6, refuse: bool = False, seed: int = 0, name: str = "") -> None:
        self.num, self.refuse, self.reads, self.seed, self.name = num, refuse, 0, seed, name

    def __len__(self) -> int:
        return self.num

    def key(self, index: int) -> str:
        return f"{self.name}{index}"

    def label(self, index: int) -> int:
        return -1

    def read(self, index: int) -> np.ndarray:
        self.reads += 1
        if self.refuse or index == 3:
            raise BadImage("torn")
        return self._noise(index)

    def checksum(self, index: int) -> int:  # not a reading, for those who count
        return zlib.crc32(self._noise(index))

    def _noise(self, index: int) -> np.ndarray:
        generator = np.random.default_rng(index + 100 * self.seed)
        return generator.integers(0, 256, (5 + 3 * index, 8 + index, 3), np.uint8)


READABLE = (0, 1, 2, 4, 5)


@pytest.fixture(params=["ram", "disk"])
def kind(request: pytest.FixtureRequest) -> Cache:
    return request.param


def test_all_give_the_same_arrays_at_every_reading(kind: Cache, tmp_path: Path) -> None:
    plain, kept = DecodedImages(Counted(), AREA), DecodedImages(Counted(), AREA, kind, tmp_path)
    for _ in range(3):
        for index in reversed(READABLE):
            image = kept.read(index)
            assert image.dtype == np.uint8
            assert image.shape[0] * image.shape[1] <= AREA
            assert np.array_equal(image, plain.read(index))


def test_each_image_is_decoded_once(kind: Cache, tmp_path: Path) -> None:
    source = Counted()
    images = DecodedImages(source, AREA, kind, tmp_path)
    for _ in range(3):
        for index in READABLE:
            images.read(index)
    assert source.reads == len(READABLE)


def test_what_cannot_be_read_stays_unreadable(kind: Cache, tmp_path: Path) -> None:
    images = DecodedImages(Counted(), AREA, kind, tmp_path)
    for _ in range(2):
        with pytest.raises(BadImage, match="torn"):
            images.read(3)


def test_a_disk_cache_survives_and_can_be_discarded(tmp_path: Path) -> None:
    first = DecodedImages(Counted(), AREA, "disk", tmp_path)
    wanted = [first.read(index).copy() for index in READABLE]
    again = DecodedImages(Counted(refuse=True), AREA, "disk", tmp_path)
    assert all(np.array_equal(again.read(i), image) for i, image in zip(READABLE, wanted, strict=True))
    again.discard()
    again.discard()  # a second time is no error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "area", "why"),
    [
        (Counted(seed=1), AREA, "of other content"),
        (Counted(name="other/"), AREA, "of other content"),
        (Counted(num=9), AREA, "of other content"),
        (Counted(), AREA // 2, "of another working size"),
    ],
)
def test_a_disk_cache_of_something_else_is_discarded_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Counted, area: int, why: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(cache.log, "warn", said.append)
    before = DecodedImages(Counted(), AREA, "disk", tmp_path)
    for index in READABLE:
        before.read(index)
    after = DecodedImages(source, area, "disk", tmp_path)
    before.read(0)
    before._save(1, np.zeros((9, 9, 3), np.uint8))  # a worker that outlived its run
    for _ in range(2):
        for index in READABLE:
            assert np.array_equal(after.read(index), DecodedImages(source, area).read(index))
    assert len(said) == 1 and why in said[0] and "discarded" in said[0]


@pytest.mark.parametrize("left", [b"", b"\0" * 9000, b"\1" * 9000, b'{"format": 0}', b"[1]", b'{"format": 1}'])
def test_a_file_that_is_no_disk_cache_is_replaced(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "cache.bin").write_bytes(left)
    images = DecodedImages(Counted(), AREA, "disk", tmp_path)
    for index in (*READABLE, *READABLE):
        assert np.array_equal(images.read(index), DecodedImages(Counted(), AREA).read(index))


def test_a_disk_cache_of_another_version_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DecodedImages(Counted(), AREA, "disk", tmp_path).read(0)
    said: list[str] = []
    monkeypatch.setattr(cache.log, "warn", said.append)
    monkeypatch.setattr(cache, "version", lambda _: "0.0.9")
    again = Counted()
    DecodedImages(again, AREA, "disk", tmp_path).read(0)
    assert again.reads == 1 and "of another version" in said[0]


def test_of_several_processes_one_makes_the_file(tmp_path: Path) -> None:
    DecodedImages(Counted(seed=1), AREA, "disk", tmp_path).read(0)  # which all of them must replace

    def rank(number: int) -> None:
        images = DecodedImages(Counted(), AREA, "disk", tmp_path)
        images.read(READABLE[number])

    children = [multiprocessing.get_context("fork").Process(target=rank, args=[number]) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    last = Counted()
    images = DecodedImages(last, AREA, "disk", tmp_path)
    for index in READABLE[:4]:
        images.read(index)
    assert last.reads == 0, "what each of them decoded is there"


def test_pickled_copies_read_the_same(kind: Cache, tmp_path: Path) -> None:
    images = DecodedImages(Counted(), AREA, kind, tmp_path)
    wanted = [images.read(index).copy() for index in READABLE]
    copy = pickle.loads(pickle.dumps(images))
    assert all(np.array_equal(copy.read(i), image) for i, image in zip(READABLE, wanted, strict=True))
    assert copy.source.reads == images.source.reads + (len(READABLE) if kind == "ram" else 0)
    assert len(pickle.dumps(images)) < 2000, "the pixels do not travel"


def test_what_a_forked_worker_decoded_is_there_for_all(kind: Cache, tmp_path: Path) -> None:
    images = DecodedImages(Counted(), AREA, kind, tmp_path)
    images.read(0)
    child = multiprocessing.get_context("fork").Process(target=lambda: images.read(5))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert np.array_equal(images.read(5), DecodedImages(Counted(), AREA).read(5))
    assert images.source.reads == 1


@pytest.mark.parametrize("full", ["disk", "nearly"])
def test_a_full_disk_costs_only_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    said: list[str] = []
    monkeypatch.setattr(cache.log, "warn", said.append)
    source = Counted()
    images = DecodedImages(source, AREA, "disk", tmp_path)
    images.read(0)
    if full == "nearly":
        monkeypatch.setattr(cache, "_LEFT_FREE", 2.0)
    else:

        def refused(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(cache.os, "pwrite", refused)
    for _ in range(2):
        for index in READABLE:
            assert np.array_equal(images.read(index), DecodedImages(Counted(), AREA).read(index))
    assert source.reads == 1 + 2 * (len(READABLE) - 1), "the first is still there"
    assert len(said) == 1 and "Disk cache is full" in said[0]
    images.discard()


def test_a_failing_disk_costs_only_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = DecodedImages(Counted(), AREA, "disk", tmp_path)
    images.read(0)

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cache.os, "preadv", failing)
    assert np.array_equal(images.read(0), DecodedImages(Counted(), AREA).read(0))
    images.discard()


def test_without_a_cache_nothing_is_kept(tmp_path: Path) -> None:
    source = Counted()
    images = DecodedImages(source, AREA, "off", tmp_path)
    images.read(0), images.read(0)
    assert source.reads == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "epochs", "bytes_per_image", "decided"),
    [
        ("auto", 1.0, 1, "off"),  # read once: nothing to gain
        ("auto", 1.01, 25, "ram"),  # exactly a quarter of what is free
        ("auto", 100, 26, "off"),
        ("ram", 1.0, 100, "ram"),
        ("disk", 1.0, 10**6, "disk"),
        ("off", 100, 1, "off"),
        ("device", 1.0, 50, "device"),
    ],
)
def test_decisions(
    monkeypatch: pytest.MonkeyPatch, asked: Cache, epochs: float, bytes_per_image: int, decided: str
) -> None:
    monkeypatch.setattr(machine_memory, "free_bytes", lambda: 1000.0)
    monkeypatch.setattr(cache, "_free_disk_bytes", lambda out: 1e9)
    found, why = cache.decide(asked, 10, bytes_per_image, epochs)
    assert found == decided
    assert (why == "as configured") == (asked != "auto")


def test_a_small_set_goes_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "free_bytes", lambda: 1000.0)
    assert cache.decide("auto", 10, 25, 2, gpu_bytes=2500)[0] == "device"
    assert cache.decide("auto", 10, 25, 2, gpu_bytes=2499)[0] == "ram"
    assert cache.decide("auto", 10, 25, 1, gpu_bytes=2500)[0] == "off"
    with pytest.raises(UserError, match="cache=device needs"):  # twice, for a moment
        cache.decide("device", 10, 25, 2, gpu_bytes=499)
    assert cache.decide("device", 10, 25, 2, gpu_bytes=500)[0] == "device"


def test_too_little_ram_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "free_bytes", lambda: 3.0 * 2**30)
    with pytest.raises(UserError, match=r"needs 4\.0 GiB and 3\.0 GiB are free\. Use --cache disk"):
        cache.decide("ram", 4, 2**30, 10)


def test_a_disk_that_can_hold_but_little_of_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []

    def disk(path: Path) -> shutil._ntuple_diskusage:
        asked.append(path)
        return shutil._ntuple_diskusage(10_000, 8_500, 1_500)  # 500 are kept for checkpoints

    monkeypatch.setattr(cache.shutil, "disk_usage", disk)
    out = str(tmp_path / "not/yet")
    assert cache.decide("disk", 10, 100, 2, out=out) == ("disk", "as configured")
    assert cache.decide("disk", 10, 400, 2, out=out)[1].startswith("25% of the images fit on the disk")
    with pytest.raises(UserError, match=r"cache=disk needs 0\.0 GiB and 0\.0 GiB are free\. Use --cache off"):
        cache.decide("disk", 10, 401, 2, out=out)
    assert set(asked) == {tmp_path}
