"""What a step asks of a GPU, found without one: `python -m tests.cuda` runs in its own process, once for all tests.

After a change that is worth more launches: python -m tests.cuda --renew
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cuda import fake_device
from tests.cuda.__main__ import BUDGET

ROOT = Path(__file__).parents[2]
LAUNCHES: dict[str, int] = json.loads(BUDGET.read_text())
MOST = 1.03  # times the launches of the budget
MOST_REGISTERS = 255
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if why := fake_device.missing():
        pytest.skip(why)
    out = tmp_path_factory.mktemp("cuda") / "found.json"
    command = [sys.executable, "-W", "ignore", "-m", "tests.cuda", "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"})
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(out.read_text())


def test_the_budget_is_of_these_steps(found: dict[str, Any]) -> None:
    assert LAUNCHES.keys() == found["launches"].keys(), "python -m tests.cuda --renew"


@pytest.mark.parametrize("name", LAUNCHES)
def test_no_more_launches_than_the_budget(name: str, found: dict[str, Any]) -> None:
    launches = found["launches"][name]
    most = found["steps"].get(name, {}).get("most")
    assert launches <= MOST * LAUNCHES[name], f"{launches}, {most}; worth it? python -m tests.cuda --renew"


@pytest.mark.parametrize("name", [name for name in LAUNCHES if not name.startswith("compiled")])
def test_the_host_never_waits_for_the_device(name: str, found: dict[str, Any]) -> None:
    assert found["steps"][name]["faults"] == []


def test_a_whole_step_copies_its_batch(found: dict[str, Any]) -> None:
    whole = [name for name in LAUNCHES if "crops" in name]
    assert whole and all(found["steps"][name]["copies"] > 5 for name in whole)


def test_a_step_that_waits_would_be_seen(found: dict[str, Any]) -> None:
    expected = {
        "a step that asks for its norm": "wait: _local_scalar_dense",
        "a value": "wait: _local_scalar_dense",
        "values": "copy to the host: (4,)",
        "a constant": "blocking copy: (2,)",
        "a blocking copy": "blocking copy: (4,)",
        "an unpinned copy": "copy from unpinned memory: (4,)",
        "two devices": "mixed devices: index_select",
        "a shape": "wait: index",
    }
    assert found["mistakes"].keys() == expected.keys()
    for name, start in expected.items():
        said = found["mistakes"][name]
        assert len(said) == 1 and said[0].startswith(start), f"{name}: {said}"


def test_compiled_parts_pass_through_triton_and_ptxas(found: dict[str, Any]) -> None:
    assert found["failed"] == []
    parts = {name.split()[0] + name.split()[1] for name in found["kernels"]}
    assert {"Block._forwardforward", "Block._forwardbackward", "Block._forwardinference"} <= parts
    assert len(found["kernels"]) > 30
    assert max(kernel["registers"] for kernel in found["kernels"].values()) < MOST_REGISTERS
    assert not {name: each for name, each in found["kernels"].items() if each["spilled"]}
