"""Read files of `torch.save`: no code of the file is ever executed.

Such a file is a pickle that refers to raw storages. Since PyTorch 1.6 (2020) both are members of an uncompressed .zip;
before, the storages followed the pickle. `core.safe_pickle` executes the pickle; the only globals it may use are those
in `_GLOBALS`, each mapped to a function of ours. Why not `torch.load(weights_only=True)`: docs/decisions/0018.
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
"""Magic number of the legacy format, before PyTorch 1.6."""
_DAMAGE_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, struct.error, LookupError, TypeError, AttributeError, OverflowError,
)  # fmt: skip
"""Errors raised by zipfile and by unexpected containers when bytes are damaged."""
_RESAVE = (
    "If you trust the file, open it in the program that wrote it and save only the weights: "
    "torch.save(model.state_dict(), 'weights.pth')"
)


class Refused(ValueError):
    """The file is refused; the message completes the sentence "FILE …"."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


def check(start: bytes) -> None:
    """Check the first bytes of a file for common mistakes.

    Raises:
        Refused: The file is empty, a Git LFS pointer, a web page or not a file of `torch.save`.
    """
    text = start.lstrip().lower()
    if not start:
        raise Refused("is empty")
    if start.startswith(b"version https://git-lfs"):
        raise Refused("is a pointer of Git LFS, not the weights", "Get the file itself: git lfs pull")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Refused("is a web page, not weights: its download failed", "Download it again")
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise Refused("is neither a .safetensors file nor one of torch.save", "Give a weights file")


def read(path: Path) -> Any:
    """Read the saved object: tensors in plain containers.

    Tensors are views of the memory-mapped file, so unused ones are never read.

    Raises:
        Refused: The file is damaged, or holds more than tensors and plain containers.
        OSError: The file cannot be opened.
    """
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        try:
            return _read_zip(zipfile.ZipFile(file), mapped) if mapped[:2] == b"PK" else _read_legacy(mapped)
        except _DAMAGE_ERRORS as error:
            raise Refused(f"is damaged or cut short ({str(error) or type(error).__name__})") from error
        except safe_pickle.Forbidden as error:
            raise Refused(f"holds more than tensors and plain containers: {error}", _RESAVE) from error
        except Refused:
            raise
        except ValueError as error:
            raise Refused(f"cannot be read: {error}") from error


def _read_zip(archive: zipfile.ZipFile, mapped: mmap.mmap) -> Any:
    members = {member.filename: member for member in archive.infolist()}
    root = next((name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")), None)
    if root is None:
        raise Refused("is a .zip, but none of torch.save", "Give a weights file")
    if f"{root}constants.pkl" in members:
        raise Refused("is a TorchScript program, not weights", _RESAVE)

    def locate(name: str) -> tuple[int, int]:
        """(offset, size) of the content of a member, in bytes."""
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
        begin, size = locate("byteorder")
        if mapped[begin : begin + size] != b"little":
            raise Refused("was written on a big-endian machine", "Save it again on a little-endian one")

    @functools.cache
    def storage_bytes(key: str) -> Tensor:
        begin, size = locate(f"data/{key}")
        if begin % 8:  # views of wider dtypes need aligned memory: copy
            return torch.frombuffer(bytearray(mapped[begin : begin + size]), dtype=torch.uint8)
        return torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=begin)

    def numbers(dtype: torch.dtype, key: str, count: int) -> Tensor:
        if not count:
            return torch.empty(0, dtype=dtype)
        stored = storage_bytes(key)
        if count * dtype.itemsize > len(stored):
            raise Refused(f"is damaged: it claims {count} numbers, but holds {len(stored)} bytes")
        return stored[: count * dtype.itemsize].view(dtype)

    begin, size = locate("data.pkl")
    return _interpret(mapped[begin : begin + size], size, numbers)


def _read_legacy(mapped: mmap.mmap) -> Any:
    """Legacy format: five pickles (magic number, version, system info, content, storage keys), then the storages."""
    size = len(mapped)
    if safe_pickle.read(mapped, {}, size) != _MAGIC:
        raise Refused("is a pickle, but none of torch.save", _RESAVE)
    if safe_pickle.read(mapped, {}, size) != 1001 or not safe_pickle.read(mapped, {}, size)["little_endian"]:
        raise Refused("was written by an unsupported version of torch.save", "Save it again with a current PyTorch")
    storages: dict[str, Tensor] = {}
    claimed_bytes = 0

    def numbers(dtype: torch.dtype, key: str, count: int) -> Tensor:
        nonlocal claimed_bytes
        if key not in storages:
            claimed_bytes += count * dtype.itemsize
            if claimed_bytes > size:
                raise Refused("is cut short, or claims more numbers than it holds")
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    tree = _interpret(mapped, size, numbers)
    for key in safe_pickle.read(mapped, {}, size):
        content = storages[key].view(torch.uint8).numpy()
        length = mapped.read(8)
        raw = mapped.read(content.nbytes)
        if len(raw) < content.nbytes or int.from_bytes(length, "little") != len(storages.pop(key)):
            raise Refused("is damaged or cut short")
        content[:] = memoryview(raw)
    if storages:
        raise Refused("is damaged: it lacks numbers that it names")
    return tree


class _Ordered(dict[Any, Any]):
    """An OrderedDict; its attributes (`_metadata` of a state dict) are ignored."""

    def set_state(self, state: Any) -> None:
        pass


class _Namespace(dict[Any, Any]):
    """An `argparse.Namespace` as a dict of its attributes."""

    def set_state(self, state: Any) -> None:
        self.update(state)


def _interpret(program: bytes | mmap.mmap, size: int, numbers: Callable[[torch.dtype, str, int], Tensor]) -> Any:
    def storage(pointer: Any) -> Tensor:
        kind, dtype, key, _, count = pointer[:5]
        if kind != "storage" or pointer[5:] not in ((), (None,)) or dtype not in _DTYPES:
            raise safe_pickle.Forbidden(f"numbers of the kind {str(dtype)[:40]!r}")
        if not isinstance(count, int) or count < 0:
            raise ValueError("damaged pickle (a storage without a size)")
        return numbers(_DTYPES[dtype], str(key), count)

    return safe_pickle.read(program, _GLOBALS, size, storage)


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A strided view of a storage, checked against its bounds: a crafted file must not read other memory."""
    if min((offset, *shape, *stride)) < 0 or len(shape) != len(stride):
        raise ValueError("damaged pickle (a tensor of impossible shape)")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    if count > len(storage) or (count and last >= len(storage)):
        raise ValueError("a tensor claims more numbers than it holds")
    stride = tuple(step if side > 1 else 1 for side, step in zip(shape, stride, strict=True))
    return storage.as_strided(shape, stride, offset) if count else storage.new_empty(shape)


_GLOBALS: dict[str, Callable[..., Any] | None] = {
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
