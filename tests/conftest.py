"""What all tests share."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
import torch

from opendino.views import kernels

os.environ["OMP_NUM_THREADS"] = "1"  # tests are small, and processes they start must compute as they do: bit by bit
torch.set_num_threads(1)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # they would compile our modules again, each of them
sys.dont_write_bytecode = False

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that what several processes end with is short."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is imported and collected stays: the garbage collector need not go through it again and again."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Otherwise Triton takes what is frozen at the exit for leaks, and prints it."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def golden_file() -> Path:
    path = Path(os.environ.get("OPENDINO_GOLDEN", ROOT / "../shared/golden/dino_v1_golden.npz"))
    if not path.is_file():
        pytest.skip(f"no golden recording at {path}; set OPENDINO_GOLDEN")
    return path


@pytest.fixture(scope="session")
def data_folder() -> Path:
    path = Path(os.environ.get("OPENDINO_DATA", ROOT / "../shared/data"))
    if not path.is_dir():
        pytest.skip(f"no image packs at {path}; set OPENDINO_DATA")
    return path


@pytest.fixture(autouse=True)
def _same_chance_for_every_test() -> None:
    torch.manual_seed(0)


@pytest.fixture
def dense_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU computes views as other devices do."""
    monkeypatch.setattr(kernels, "by_index", lambda x: False)


@pytest.fixture(params=["by index", "dense"])
def both_kernels(request: pytest.FixtureRequest) -> None:
    """The test runs with the kernels of a CPU, and with those of other devices."""
    if request.param == "dense":
        request.getfixturevalue("dense_kernels")
