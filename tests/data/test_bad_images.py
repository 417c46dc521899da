"""Training on a folder full of bad images; for any bytes, `decode` returns pixels or raises `BadImage`."""

# ruff: noqa: PT017 - either outcome is right here, each in its way

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opendino.core.errors import BadImage
from opendino.data.decode import decode
from opendino.data.open_source import open_source

sys.path.append(str(Path(__file__).parent))
import bad_images

SEEDS = Path(__file__).parents[1] / "seeds" / "decode"
WHOLE = bad_images.seeds()


def check(data: bytes) -> None:
    """`decode` returns pixels or raises a one-line `BadImage`, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pixels = decode(data, 10_000)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
            assert pixels.shape[0] * pixels.shape[1] <= 10_000
        except BadImage as error:
            assert 0 < len(str(error)) <= 250 and "\n" not in str(error)


@pytest.mark.parametrize("name", sorted(bad_images.good()))
def test_unusual_images_are_used(name: str) -> None:
    assert decode(bad_images.good()[name], 10_000).size


@pytest.mark.parametrize("name", sorted(bad_images.bombs()))
def test_a_bomb_takes_neither_memory_nor_time(name: str) -> None:
    data = bad_images.bombs()[name]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadImage):
        decode(data, 10_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "KiB"
    assert time.process_time() - began < 5


damage = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "drop"]), st.floats(0, 1, exclude_max=True), st.integers(0, 255)
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(WHOLE)), damage, st.booleans())
def test_fuzzed_files_give_pixels_or_a_reason(name: str, changes: list[tuple[str, float, int]], early: bool) -> None:
    data = bytearray(WHOLE[name])
    for kind, share, value in changes:
        place = int(share * (min(len(data), 120) if early else len(data)))
        if kind == "flip" and data:
            data[place] = value
        elif kind == "cut":
            del data[max(place, 20) :]
        elif kind == "insert":
            data[place:place] = bytes([value]) * (1 + value % 9)
        elif kind == "drop":
            del data[place : place + 1 + value % 9]
    check(bytes(data))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([data[:16] for data in WHOLE.values()]), st.binary(max_size=200))
def test_rubbish_after_a_good_beginning(head: bytes, tail: bytes) -> None:
    check(head + tail)


@pytest.mark.parametrize("path", sorted(SEEDS.glob("*")), ids=lambda path: path.name)
def test_what_once_was_a_problem(path: Path) -> None:
    check(path.read_bytes())


def test_every_file_of_a_folder_is_used_or_has_a_reason(tmp_path: Path) -> None:
    fine, wrong, either = bad_images.write(tmp_path / "photos", count=150)
    source = open_source(tmp_path / "photos")
    keys = {source.key(i): i for i in range(len(source))}
    assert set(keys) == fine | wrong | either
    assert len(keys) > 300
    for key, index in keys.items():
        try:
            decode(source.read(index), 10_000)
            assert key not in wrong, key
        except BadImage as error:
            assert key not in fine, (key, error)
            assert str(error)


@pytest.mark.slow
def test_a_run_over_many_bad_files_completes(tmp_path: Path) -> None:
    fine, wrong, either = bad_images.write(tmp_path / "photos", count=60)
    os.chmod(tmp_path / "photos" / "good-1x1.png", 0)  # noqa: PTH101, binds everybody but root
    words = (
        f"train {tmp_path / 'photos'} --backbone conv4 --views.global.size 32 --views.local.size 16 "
        f"--views.local.number 1 --method.out-dim 16 --method.hidden-dim 16 --epochs 2 --batch 8 --workers 1 "
        f"--device cpu --max-bad-frac 0.95 --eval-images 20 --report False --precision float32 --out {tmp_path / 'run'}"
    )
    command = [sys.executable, "-m", "opendino", *words.split()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr
    with open(tmp_path / "run" / "bad_files.csv", newline="", encoding="utf-8") as file:
        listed = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert all(listed.values())
    assert wrong <= set(listed) <= wrong | either | {"good-1x1.png"}
