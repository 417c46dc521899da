"""Files of `torch.save`, read without unpickling: nothing in the file is ever called.

Such a file is a pickle that points to raw numbers. Since 2020 both are members of an uncompressed .zip; before, the
numbers followed the pickle. The pickle is followed by `data.plain_pickle`, instruction by instruction, and the only
names it may use are the words below, each standing for a function of ours. `torch.load(weights_only=True)` is not used:
it refuses the `argparse.Namespace` and the numpy numbers in every full checkpoint of DINO v1, and before torch 2.10 a
crafted file could corrupt memory through it.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opendino.core import safe_pickle

_DTYPES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
_MAGIC = 0x1950A86A20F9469CFC6C
"""The first number of a file written before 2020."""
_DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, struct.error, LookupError, TypeError, AttributeError, OverflowError,
)  # fmt: skip
"""How zipfile, and a list or dict that is not what it should be, stumble over bytes that are wrong."""
_WAY_OUT = (
    "Only if you trust where it comes from: open it in the program that wrote it and save the weights alone, "
    "torch.save(model.state_dict(), 'weights.pth')"
)


class Refused(ValueError):
    """Why a file is not read; completes the sentence "FILE …"."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


def check(start: bytes) -> None:
    """Tell from the first bytes what is plainly no weights.

    Raises:
        Refused: It is none.
    """
    text = start.lstrip().lower()
    if not start:
        raise Refused("is empty")
    if start.startswith(b"version https://git-lfs"):
        raise Refused("is a pointer of Git LFS, not the weights", "Get the file itself: git lfs pull")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Refused("is a web page, not weights: its download failed", "Download it again")
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise Refused("is neither a .safetensors file nor one of torch.save", "Give a file of weights")


def read(path: Path) -> Any:
    """What was saved: tensors in plain containers.

    Tensors are views of the file, mapped into memory: what is not looked at is not read.

    Raises:
        Refused: Damaged, or it holds anything but tensors and plain containers.
        OSError: It cannot be opened.
    """
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        try:
            return _zipped(zipfile.ZipFile(file), mapped) if mapped[:2] == b"PK" else _old(mapped)
        except _DAMAGE as error:
            raise Refused(f"is damaged or cut short ({str(error) or type(error).__name__})") from error
        except safe_pickle.Forbidden as error:
            raise Refused(f"holds more than tensors and plain containers: {error}", _WAY_OUT) from error
        except Refused:
            raise
        except ValueError as error:
            raise Refused(f"cannot be read: {error}") from error


def _zipped(archive: zipfile.ZipFile, mapped: mmap.mmap) -> Any:
    members = {member.filename: member for member in archive.infolist()}
    root = next((name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")), None)
    if root is None:
        raise Refused("is a .zip, but none of torch.save", "Give a file of weights")
    if f"{root}constants.pkl" in members:
        raise Refused("is a TorchScript program, not weights", _WAY_OUT)

    def place(name: str) -> tuple[int, int]:
        """Where the bytes of a member begin, and how many there are."""
        member = members.get(root + name)
        if member is None:
            raise Refused(f"is damaged: it lacks its member {name!r:.60}")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Refused("is compressed, which torch.save never does", "Unpack and save it again")
        header = mapped[member.header_offset : member.header_offset + 30]
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise Refused(f"is damaged: its member {name!r:.60} is not where it should be")
        begin = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if begin + member.file_size > len(mapped):
            raise Refused(f"is cut short: its member {name!r:.60} lies beyond its end")
        return begin, member.file_size

    if f"{root}byteorder" in members:
        begin, size = place("byteorder")
        if mapped[begin : begin + size] != b"little":
            raise Refused("was written by a big-endian machine", "Save it again on one of today's")

    @functools.cache
    def raw(key: str) -> Tensor:
        begin, size = place(f"data/{key}")
        if begin % 8:
            return torch.frombuffer(bytearray(mapped[begin : begin + size]), dtype=torch.uint8)
        return torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=begin)

    def numbers(dtype: torch.dtype, key: str, count: int) -> Tensor:
        if not count:
            return torch.empty(0, dtype=dtype)
        held = raw(key)
        if count * dtype.itemsize > len(held):
            raise Refused(f"is damaged: it claims {count} numbers where it holds {len(held)} bytes")
        return held[: count * dtype.itemsize].view(dtype)

    begin, size = place("data.pkl")
    return _tree(mapped[begin : begin + size], size, numbers)


def _old(mapped: mmap.mmap) -> Any:
    """Five pickles in a row (a magic number, a version, facts of the machine, the content, the order of storages)."""
    size = len(mapped)
    if safe_pickle.read(mapped, {}, size) != _MAGIC:
        raise Refused("is a pickle, but none of torch.save", _WAY_OUT)
    if safe_pickle.read(mapped, {}, size) != 1001 or not safe_pickle.read(mapped, {}, size)["little_endian"]:
        raise Refused("was written by a version of torch.save that nobody uses", "Save it again with today's")
    storages: dict[str, Tensor] = {}
    promised = 0

    def numbers(dtype: torch.dtype, key: str, count: int) -> Tensor:
        nonlocal promised
        if key not in storages:
            promised += count * dtype.itemsize
            if promised > size:
                raise Refused("is cut short, or claims more numbers than it holds")
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    tree = _tree(mapped, size, numbers)
    for key in safe_pickle.read(mapped, {}, size):
        content = storages[key].view(torch.uint8).numpy()
        held = mapped.read(8)
        raw = mapped.read(content.nbytes)
        if len(raw) < content.nbytes or int.from_bytes(held, "little") != len(storages.pop(key)):
            raise Refused("is damaged or cut short")
        content[:] = memoryview(raw)
    if storages:
        raise Refused("is damaged: it lacks numbers that it names")
    return tree


class _Ordered(dict[Any, Any]):
    """An OrderedDict; its attributes (`_metadata` of a state dict) are of no use here."""

    def set_state(self, state: Any) -> None:
        pass


class _Namespace(dict[Any, Any]):
    """An `argparse.Namespace` as a dict of its attributes."""

    def set_state(self, state: Any) -> None:
        self.update(state)


def _tree(program: bytes | mmap.mmap, size: int, numbers: Callable[[torch.dtype, str, int], Tensor]) -> Any:
    def storage(pointer: Any) -> Tensor:
        kind, dtype, key, _, count = pointer[:5]
        if kind != "storage" or pointer[5:] not in ((), (None,)) or dtype not in _DTYPES:
            raise safe_pickle.Forbidden(f"numbers of the kind {str(dtype)[:40]!r}")
        if not isinstance(count, int) or count < 0:
            raise ValueError("damaged pickle (a storage without a size)")
        return numbers(_DTYPES[dtype], str(key), count)

    return safe_pickle.read(program, _WORDS, size, storage)


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of a storage, within its bounds."""
    if min((offset, *shape, *stride)) < 0 or len(shape) != len(stride):
        raise ValueError("damaged pickle (a tensor of impossible shape)")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    if count > len(storage) or (count and last >= len(storage)):
        raise ValueError("a tensor claims more numbers than it holds")
    stride = tuple(step if side > 1 else 1 for side, step in zip(shape, stride, strict=True))
    return storage.as_strided(shape, stride, offset) if count else storage.new_empty(shape)


_WORDS: dict[str, Callable[..., Any] | None] = {
    **safe_pickle.NUMPY,
    **dict.fromkeys(_DTYPES, None),
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "torch Size": tuple,
    "torch device": lambda *place: ":".join(map(str, place)),
    "collections OrderedDict": _Ordered,
    "argparse Namespace": _Namespace,
}
