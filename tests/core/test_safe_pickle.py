"""Pickles of plain data are read; nothing that a pickle calls is ever run."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opendino.core import safe_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_comes_back_equal(protocol: int) -> None:
    shared = ["all_souls_000013", "ü", b"raw \xff"]
    content = {
        "names": shared, "again": shared, "numbers": [0, -1, 255, 65536, 2**40, -(2**70), 1.5, -1e300],
        "empty": [[], (), {}, "", b""], "constants": [None, True, False], "tuples": [(1,), (1, 2), (1, 2, 3), (1,) * 4],
        "many": list(range(3000)), "map": {str(i): i for i in range(1500)}, "nested": [[{"a": ([1], {})}]],
    }  # fmt: skip
    assert safe_pickle.loads(pickle.dumps(content, protocol)) == content


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.array([136.5, 34.1, 648.5, 955.7]),
        np.arange(12, dtype=np.int64).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
        np.array([1.5, -2], ">f4"),
        np.array([True, False]),
        np.array([], np.int64),
        np.array([3, 200], np.uint8),
    ],
    ids=str,
)
def test_arrays_come_back_as_lists(protocol: int, array: np.ndarray) -> None:
    assert safe_pickle.loads(pickle.dumps({"bbx": array, "more": [array]}, protocol)) == {
        "bbx": array.tolist(),
        "more": [array.tolist()],
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_of_numpy_come_back_as_numbers(protocol: int) -> None:
    content = [np.int64(7), np.float32(0.5), np.bool_(True)]
    assert safe_pickle.loads(pickle.dumps(content, protocol)) == [7, 0.5, True]


def test_strings_and_arrays_of_python_2() -> None:
    assert safe_pickle.loads(b"\x80\x02}q\x00U\x03bbxq\x01]q\x02(G?\xf0\x00\x00\x00\x00\x00\x00K\x02es.") == {
        "bbx": [1.0, 2]
    }
    assert safe_pickle.loads(b"(lp0\nS'\\xff'\na.") == safe_pickle.loads(b"\x80\x02]U\x01\xffa.") == ["ÿ"]
    array = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\n"
        b"dtype\nU\x02i4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x01\x00\x00\x00"
        b"\xff\xff\xff\xfftb."
    )
    assert safe_pickle.loads(array) == [1, -1]


class Runs:
    """What an attacker sends: unpickling it makes a folder."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


class WithState:
    def __init__(self) -> None:
        self.secret = 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_calls_are_rejected_in_one_line_and_not_run(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = pickle.dumps({"gnd": [Runs(os.mkdir, str(mark))]}, protocol)
    with pytest.raises(ValueError, match=r"it calls '\w+\.mkdir', which is not plain data") as told:
        safe_pickle.loads(evil)
    assert "\n" not in str(told.value)
    assert not mark.exists()
    pickle.loads(evil)
    assert mark.exists(), "the same file unpickled does run it"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "content",
    [
        Runs(eval, "1"), Runs(getattr, "", "join"), Runs(np.load, "x", None, True), WithState(), {1, 2}, frozenset({1}),
        collections.OrderedDict(), np.array([{}], object), np.array(["text"]), np.array([("a", 1)], "U1,i4"), np.dtype,
        len, np.array(3.5), 1j, bytes, np.datetime64("2020"),
    ],
    ids=lambda content: type(content).__name__ + str(content)[:20],
)  # fmt: skip
def test_everything_but_plain_data_is_rejected(protocol: int, content: Any) -> None:
    with pytest.raises(ValueError, match=r"^it (calls|contains) .*$"):
        safe_pickle.loads(pickle.dumps([content], protocol))


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\ndtype\n}(U\x08__call__U\x01xu\x86b.",  # the state of a name
        b"U\x02os(U\x06systemtR.",  # a call of a word
        b"ccodecs\nencode\n.",
        b"c_codecs\nencode\n(U\x01aU\x05utf-7tR.",
        b"cbuiltins\nbytes\n(KctR.",  # bytes of a length, which could be any
        b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.",  # allowed as a word, of no use
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02O8tRU\x08aaaaaaaatR.",
        b"(ios\nsystem\nU\x02lsbo.",
        b"Pobject\n.",
        b"\x82\x01.",
        b"cnumpy.core.numeric\n_frombuffer\n(U\x01acnumpy\ndtype\n(U\x02i4tRK\x09\x85U\x01CtR.",
        b"r\xff\xff\xff\xff.",
        b".", b"", b"0.", b"}a.", b"](s.", b"K\x01K\x02a.", b"t.", b"h\x05.", b"not a pickle", b"\x80\x04\x95\xff",
    ],
)  # fmt: skip
def test_malicious_and_damaged_pickles_are_rejected(program: bytes) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        safe_pickle.loads(program)


def test_a_small_file_that_would_fill_memory_is_rejected() -> None:
    length = b"\xa0\x86\x01\x00"  # 100,000 bytes, written once and used a thousand times
    content = [b"B" + length + bytes(100_000) + b"q\x01", *[b"h\x01"] * 1000]
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J" + length + b"\x85cnumpy\ndtype\n(U\x02u1tR\x89"
    program = b"](" + b"".join(array + each + b"tb" for each in content) + b"e."
    with pytest.raises(ValueError, match="repeated objects"):
        safe_pickle.loads(program)


def test_every_truncation_is_rejected() -> None:
    stored = pickle.dumps({"imlist": ["a", "b"], "gnd": [{"bbx": np.ones(4), "easy": [0]}]}, 2)
    for length in range(len(stored)):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            safe_pickle.loads(stored[:length])


def test_every_instruction_is_executed_or_rejected() -> None:
    """A new one in a later Python is refused like these."""
    refused = {"INST", "OBJ", "NEWOBJ_EX", "PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    refused |= {"DUP", "EMPTY_SET", "ADDITEMS", "FROZENSET"}
    for opcode in pickletools.opcodes:
        program = b"}" + opcode.code.encode("latin-1") + b"."
        if opcode.name in refused:
            with pytest.raises(ValueError, match="an instruction that is not allowed"):
                safe_pickle.loads(program)
        else:
            with contextlib.suppress(ValueError):
                safe_pickle.loads(program)


def test_an_instruction_that_reserves_memory_reserves_what_the_file_holds() -> None:
    with pytest.raises(ValueError, match="damaged"):
        safe_pickle.loads(b"\x96" + (2**62).to_bytes(8, "little") + b"few bytes")
    assert safe_pickle.loads(b"]r\xff\xff\xff\xff.") == [], "the C version would make room for four billion objects"
