"""Files from elsewhere: whatever is wrong with them is one clear line, and nothing in them is ever run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from opendino.core.errors import UserError
from opendino.interop import checkpoint_files

CONTENT = {
    "float": torch.randn(3, 4), "half": torch.randn(5).half(), "bfloat": torch.randn(2, 2).bfloat16(),
    "double": torch.randn(3, dtype=torch.float64), "long": torch.arange(7), "byte": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4),
    "turned": torch.randn(4, 3).T, "slice": torch.arange(100.0)[10:20:3], "parameter": nn.Parameter(torch.ones(2)),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 2020"])
def test_every_kind_of_tensor_comes_back_equal(tmp_path: Path, zipped: bool) -> None:
    torch.save(CONTENT, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    found = checkpoint_files.read(tmp_path / "file").tree
    assert list(found) == list(CONTENT)
    for key, value in CONTENT.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 2020"])
def test_shared_weights_and_state_dicts(tmp_path: Path, zipped: bool) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    tied = torch.randn(4)
    content = {
        "state_dict": module.state_dict(),
        "a": tied,
        "b": tied,
        "device": torch.device("cpu"),
        "size": tied.shape,
    }
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    checkpoint = checkpoint_files.read(tmp_path / "file")
    assert {key: value.tolist() for key, value in checkpoint.state.items()} == {
        key: value.tolist() for key, value in module.state_dict().items()
    }
    assert checkpoint.tree["a"].data_ptr() == checkpoint.tree["b"].data_ptr()
    assert checkpoint.tree["device"] == "cpu" and checkpoint.tree["size"] == (4,)


def test_safetensors_by_content_whatever_the_name(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.arange(3.0)}, tmp_path / "weights.pth")
    assert checkpoint_files.read(tmp_path / "weights.pth").state["a"].tolist() == [0, 1, 2]


def test_folders_with_one_file_of_weights_or_several(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "x"}')
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert checkpoint_files.read(tmp_path).config == {"architecture": "x"}
    assert checkpoint_files.read(tmp_path / "pytorch_model.bin").config == {"architecture": "x"}
    parts = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    for key, part in parts.items():
        safetensors.torch.save_file({key: torch.ones(2)}, tmp_path / part)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert checkpoint_files.read(tmp_path).state.keys() == {"a", "b"}
    for odd in ("../x.safetensors", "evil.bin"):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": odd}}))
        with pytest.raises(UserError, match=r"lists no \.safetensors files in its folder"):
            checkpoint_files.read(tmp_path)


class Runs:
    """What an attacker sends: unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def in_a_namespace(evil: Runs) -> Any:
    return {"student": {"a": torch.ones(1)}, "args": argparse.Namespace(evil=evil)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 2020"])
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda evil: evil,
        lambda evil: {"norm.weight": evil},
        lambda evil: {"a": torch.ones(2), "b": [({"c": evil},)]},
        lambda evil: collections.OrderedDict(a=evil),
        in_a_namespace,
    ],
    ids=["alone", "for a tensor", "deep", "in an OrderedDict", "in a Namespace"],
)
def test_what_would_run_something_is_refused_and_not_run(tmp_path: Path, wrapped: Any, zipped: bool) -> None:
    mark = tmp_path / "ran"
    torch.save(wrapped(Runs(mark)), tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="holds more than tensors and plain containers: it calls") as told:
        checkpoint_files.read(tmp_path / "file.pth")
    assert "\n" not in str(told.value) and "torch.save(model.state_dict()" in told.value.hint
    assert not mark.exists()
    torch.load(tmp_path / "file.pth", weights_only=False)
    assert mark.exists(), "the same file unpickled does run it"


def test_a_whole_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"it calls 'torch\.nn\.modules\.linear\.Linear', .*model\.state_dict\(\)"):
        checkpoint_files.read(tmp_path / "file.pth")


def saved(content: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["zip", "before 2020", "safetensors"])
def test_cut_short_anywhere_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    tensors = {"a": torch.randn(40), "b": torch.arange(9)}
    whole = safetensors.torch.save(tensors) if kind == "safetensors" else saved(tensors, kind == "zip")
    path = tmp_path / "file"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            checkpoint_files.read(path)
    path.write_bytes(whole)
    assert torch.equal(checkpoint_files.read(path).tree["b"], tensors["b"])


@pytest.mark.parametrize("kind", ["zip", "before 2020"])
def test_damaged_anywhere_is_read_or_refused_never_a_crash(tmp_path: Path, kind: str) -> None:
    whole = saved({"a": torch.randn(4), "args": argparse.Namespace(b=1)}, kind == "zip")
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place, value in torch.randint(0, 2**31, (3, 2), generator=generator).tolist():
            damaged[place % len(whole)] = value % 256
        (tmp_path / "file").write_bytes(damaged)
        with contextlib.suppress(UserError):
            checkpoint_files.read(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404", "is a web page"),
        (b"\n <html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS.*git lfs pull"),
        (b"\x89PNG\r\n\x1a\n0000", "neither a .safetensors file nor one of torch.save"),
        (pickle.dumps({"a": 1}, 2), "a pickle, but none of torch.save"),
        (saved([torch.ones(1)]), "holds a list, not a dict"),
        (saved({1: torch.ones(1)}), "holds a dict, not a dict of weights"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(UserError, match=said) as told:
        checkpoint_files.read(tmp_path / "model.pth")
    assert "\n" not in str(told.value)


def test_places_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no 'https:/.*Download it first"):
        checkpoint_files.read("https://example.org/model.pth")
    with pytest.raises(UserError, match="There is no"):
        checkpoint_files.read(tmp_path / "missing.pth")
    with pytest.raises(UserError, match=r"is a folder without model\.safetensors"):
        checkpoint_files.read(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no config\.json. Give the weights file itself"):
        checkpoint_files.read(tmp_path)
    for config in ("{", "[]"):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(UserError, match=r"config\.json' (cannot be read|is not a model description)"):
            checkpoint_files.read(tmp_path)
    (tmp_path / "backbone.json").write_text("{}")
    with pytest.raises(UserError, match="is a model of opendino already"):
        checkpoint_files.read(tmp_path)


def crafted(path: Path, program: bytes, content: bytes = bytes(16), compressed: bool = False) -> Path:
    """A .zip as torch.save writes it, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/data/0", content)
    return path


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def tensor(count: int, offset: int, shape: list[int], stride: list[int], kind: bytes = b"FloatStorage") -> bytes:
    """The program of {"a": a tensor} in four float32 (16 bytes)."""
    storage = b"(U\x07storagectorch\n" + kind + b"\nU\x010U\x03cpu" + number(count) + b"tQ"
    sizes = [b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, stride)]
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + b"".join(sizes) + b"\x89}tR"
    return b"\x80\x02}U\x01a" + rebuilt + b"s."


@pytest.mark.parametrize("begin", range(4))
def test_a_crafted_file_that_is_honest_is_read_wherever_its_numbers_lie(tmp_path: Path, begin: int) -> None:
    program = tensor(4, 1, [3], [1]) + b" " * begin  # behind the end, to shift what follows
    path = crafted(tmp_path / "file", program, torch.arange(4.0).numpy().tobytes())
    assert checkpoint_files.read(path).tree["a"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "program",
    [
        tensor(5, 0, [5], [1]),
        tensor(2**60, 0, [2**60], [1]),
        tensor(-1, 0, [1], [1]),
        tensor(4, 0, [5], [1]),
        tensor(4, 4, [1], [1]),
        tensor(4, -1, [1], [1]),
        tensor(4, 0, [2], [4]),
        tensor(4, 0, [2], [-1]),
        tensor(4, 0, [-2], [1]),
        tensor(4, 0, [2**40], [0]),
        tensor(4, 0, [0, 2**62, 2**62], [1, 1, 1]),
        tensor(4, 0, [2], []),
        tensor(4, 0, [4], [1], b"DoubleStorage"),
        tensor(4, 0, [4], [1], b"QInt8Storage"),
        tensor(4, 0, [4], [1]).replace(b"U\x010", b"U\x011"),
        tensor(4, 0, [4], [1]).replace(b"U\x07storage", b"U\x07strange"),
        tensor(4, 0, [4], [1])[:-2] + b"K\x00K\x00ss.",  # writes into the tensor
        b"\x80\x02}U\x01actorch\nSize\n(" + number(10**12) + b"tRs.",
        b"\x80\x02cargparse\nNamespace\n)\x81K\x01b.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
    ],
)
def test_a_file_that_claims_more_than_it_holds_or_what_cannot_be_is_refused(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        checkpoint_files.read(crafted(tmp_path / "file", program))


def test_small_files_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    bomb = crafted(tmp_path / "zip", tensor(2**28, 0, [2**28], [1]), bytes(2**24), compressed=True)
    with pytest.raises(UserError, match="is compressed"):
        checkpoint_files.read(bomb)
    many = b"](" + b"K\x00" * 100_000 + b"eq\x01"
    copies = b"ctorch\nSize\nq\x02" + b"h\x02h\x01\x85R" * 1000
    with pytest.raises(UserError, match="repeated objects"):
        checkpoint_files.read(crafted(tmp_path / "copies", b"\x80\x02" + many + copies + b"."))
    honest = saved({"a": torch.ones(4)}, zipped=False)
    (tmp_path / "old").write_bytes(honest.replace(b"K\x04Nt", b"J\xff\xff\xff\x7fNt"))
    with pytest.raises(UserError, match="claims more numbers than it holds"):
        checkpoint_files.read(tmp_path / "old")


def test_other_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"program/{name}", b"\x80\x02}.")
    with pytest.raises(UserError, match="is a TorchScript program"):
        checkpoint_files.read(tmp_path / "program.pt")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", b"x")
    with pytest.raises(UserError, match=r"is a \.zip, but none of torch\.save"):
        checkpoint_files.read(tmp_path / "photos.zip")


def test_reading_leaves_the_file_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    found: Tensor = checkpoint_files.read(tmp_path / "file").tree["a"]
    found.zero_()
    assert (tmp_path / "file").read_bytes() == before
