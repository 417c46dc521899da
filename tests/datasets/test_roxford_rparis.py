"""The ground truth of revisited Oxford and Paris, as pickle and as JSON."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opendino.core.errors import UserError
from opendino.datasets.roxford_rparis import Query, read

EXPECTED = (
    Query("q1", (1.0, 2.0, 30.5, 40.0), (0, 2), (1,), ()),
    Query("q2", (0.0, 0.0, 5.0, 5.0), (), (2,), (0,)),
)


def tree(**changes: Any) -> dict[str, Any]:
    gnd = [
        {"bbx": [1, 2, 30.5, 40], "easy": [0, 2], "hard": [1], "junk": []},
        {"bbx": [0, 0, 5, 5], "easy": [], "hard": [2], "junk": [0]},
    ]
    return {"imlist": ["a", "b", "c"], "qimlist": ["q1", "q2"], "gnd": gnd} | changes


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_official_pickle_of_lists_and_arrays(tmp_path: Path, protocol: int) -> None:
    official = tree(gnd=[{key: np.array(value) for key, value in entry.items()} for entry in tree()["gnd"]])
    official["gnd"][1]["easy"] = []
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(official, protocol))
    truth = read(tmp_path / "gnd.pkl")
    assert truth.images == ("a", "b", "c")
    assert truth.queries == EXPECTED


def test_the_same_as_json(tmp_path: Path) -> None:
    (tmp_path / "gnd.json").write_text(json.dumps(tree()))
    assert read(tmp_path / "gnd.json").queries == EXPECTED


def test_a_malicious_pickle_is_one_clear_line_and_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(tree(gnd=Evil())))
    with pytest.raises(UserError, match=r"gnd.pkl is not a valid ground truth.* calls '\w+.mkdir'") as told:
        read(tmp_path / "gnd.pkl")
    assert "\n" not in str(told.value) and told.value.hint
    assert not (tmp_path / "ran").exists()


WRONG = {
    "lacks": {"imlist": ["a"], "qimlist": []},
    "lacks imlist": [1, 2],
    "is empty": tree(qimlist=[], gnd=[]),
    "2 names in qimlist, 1 entries": tree(gnd=tree()["gnd"][:1]),
    "must hold names": tree(imlist=["a", "b", 3]),
    "twice": tree(imlist=["a", "b", "a"]),
    "entry of q1 in gnd is not a mapping": tree(gnd=[[], []]),
    "positions in imlist, 0 to 2": tree(qimlist=["q"], gnd=[{"easy": [3]}]),
    "hard of q must hold": tree(qimlist=["q"], gnd=[{"hard": [0.5]}]),
    "junk of q must hold": tree(qimlist=["q"], gnd=[{"junk": [True]}]),
    "easy of q must hold": tree(qimlist=["q"], gnd=[{"easy": ["0"]}]),
    "easy of q is not a list": tree(qimlist=["q"], gnd=[{"easy": 0}]),
    "not a box": tree(qimlist=["q"], gnd=[{"bbx": [5, 0, 1, 9]}]),
    "bbx of q is not a box": tree(qimlist=["q"], gnd=[{"bbx": [0, 0, 9]}]),
    "too large": tree(qimlist=["q"], gnd=[{"bbx": [0, 0, 9, 10**400]}]),
}


@pytest.mark.parametrize("said", WRONG)
def test_inconsistent_ground_truth_is_named(tmp_path: Path, said: str) -> None:
    (tmp_path / "gnd.json").write_text(json.dumps(WRONG[said]))
    with pytest.raises(UserError, match=said):
        read(tmp_path / "gnd.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("name", ["gnd.json", "gnd.pkl"])
def test_damage_is_one_clear_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not a valid ground truth"):
        read(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read .*gone.pkl: No such file"):
        read(tmp_path / "gone.pkl")
    with pytest.raises(UserError, match="Cannot read"):
        read(tmp_path)


def test_an_image_without_a_box_is_whole(tmp_path: Path) -> None:
    (tmp_path / "gnd.json").write_text(json.dumps(tree(qimlist=["q"], gnd=[{"easy": [1]}])))
    assert read(tmp_path / "gnd.json").queries == (Query("q", None, (1,), (), ()),)
