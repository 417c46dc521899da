"""Read pickles of plain data: no name in the file is imported, and no function of Python or of a library is called.

A pickle is a program for a stack machine. The machine is `pickle._Unpickler`, the one of Python's standard library that
is written in Python, with three changes: it executes only the instructions in `_INSTRUCTIONS`; a name in the file is
never resolved to a Python object; a call is executed only if the name of its function is a key of a dict, such as
`NUMPY`, and then calls the value, our own implementation of that function. Everything else is rejected. The faster
machine in C does not allow these changes, and a small file can make it fill the memory.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT GLOBAL STACK_GLOBAL BINPERSID
"""
"""Instructions that are executed as Python executes them; `_Machine` has its own versions of six more."""
_DAMAGE_ERRORS = (
    pickle.UnpicklingError, EOFError, struct.error, LookupError, TypeError, AttributeError, OverflowError, RuntimeError,
)  # fmt: skip


class _Name(str):
    """The name of a function that the pickle calls; only text, never the function."""


class _Array(list[Any]):
    """A NumPy array as nested lists."""

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self[:] = _numbers(content, dtype, shape, "F" if fortran else "C")


class _Dtype:
    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def set_state(self, state: Any) -> None:
        self.order = str(state[1]).replace("|", "<")


class Forbidden(ValueError):
    """A pickle contains more than plain data; the message is one line."""


def loads(data: bytes) -> Any:
    """Read a pickle of numbers, strings, lists, tuples, dicts and numeric NumPy arrays (returned as nested lists).

    Strings of Python 2 are decoded as Latin-1; a bytearray is returned as bytes.

    Raises:
        ValueError: The pickle is damaged or contains anything else; the message is one line.
    """
    return read(data, NUMPY, len(data))


def read(
    program: bytes | mmap.mmap,
    functions: Mapping[str, Callable[..., Any] | None],
    size: int,
    load_persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read a pickle that may call only the functions in `functions`.

    Args:
        program: The pickle, or a memory-mapped file positioned at its start; afterwards it is positioned at its end.
        functions: "module name" → our implementation, or None for a name that is only passed as an argument. The object
            that a function returns may have a method `set_state(state)`; otherwise a BUILD instruction is rejected.
        size: Size of the file in bytes; limits the work and memory spent on it.
        load_persistent: Converts a persistent id (a reference to data outside the pickle) to a value; None rejects it.

    Returns:
        The content of the pickle.

    Raises:
        Forbidden: The pickle contains anything else.
        ValueError: The pickle is damaged.
    """
    file = io.BytesIO(program) if isinstance(program, bytes) else program
    try:
        return _check_no_names(_Machine(file, functions, size, load_persistent).load())
    except _DAMAGE_ERRORS as error:
        raise ValueError(f"damaged pickle ({type(error).__name__})") from error


class _Machine(pickle._Unpickler):
    """Executes a pickle; for the arguments see `read`."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        file: io.BytesIO | mmap.mmap,
        functions: Mapping[str, Callable[..., Any] | None],
        size: int,
        load_persistent: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(file, encoding="latin-1")
        self._functions, self._load_persistent = functions, load_persistent
        self._budget = 4 * size

    def find_class(self, module: str, name: str) -> _Name:
        written = f"{module} {name}"
        if written not in self._functions:
            raise Forbidden(f"it calls {'.'.join(written.split())[:80]!r}, which is not plain data")
        return _Name(written)

    def persistent_load(self, pid: Any) -> Any:
        if self._load_persistent is None:
            raise Forbidden("it contains more than plain data (a reference to data outside)")
        return self._load_persistent(pid)

    def _spend(self, *parts: Any) -> None:
        """Limit the copied data: a malicious small file can repeat one object until memory is full."""
        self._budget -= sum(len(part) for part in parts if isinstance(part, str | bytes | list | tuple | dict))
        if self._budget < 0:
            raise ValueError("its content is much larger than the file (repeated objects)")

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name):
            raise Forbidden("it contains more than plain data (a call of a value)")
        self._spend(*arguments)
        implementation = self._functions[function]
        if implementation is None:
            raise Forbidden(f"it contains more than plain data (a call of {'.'.join(function.split())})")
        self.stack.append(implementation(*arguments))

    def _set_state(self) -> None:
        state = self.stack.pop()
        self._spend(state, *(state if isinstance(state, tuple) else ()))
        if not hasattr(self.stack[-1], "set_state"):
            raise Forbidden("it contains more than plain data (the state of an object)")
        self.stack[-1].set_state(state)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items_of(self.stack[-1], [key, value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._set_items_of(self.stack[-1], items)

    def _set_items_of(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):  # a tensor, for example, would be written to
            raise TypeError(f"{type(target).__name__} for dict")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _refuse(self) -> None:
        raise Forbidden("it contains more than plain data (an instruction that is not allowed)")

    # BYTEARRAY8 would reserve as much memory as the file claims; BINBYTES8 reads what there is.
    dispatch = (  # pyright: ignore[reportAssignmentType], of this class instead of its base
        dict.fromkeys(range(256), _refuse)
        | {code: pickle._Unpickler.dispatch[code] for name in _INSTRUCTIONS.split() for code in getattr(pickle, name)}
        | {pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]]}
        | {pickle.REDUCE[0]: _call, pickle.NEWOBJ[0]: _call, pickle.BUILD[0]: _set_state}
        | {pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items}
    )


def _check_no_names(content: Any) -> Any:
    """Return the content if it has no leftover names or dtypes, which are only valid as arguments of calls."""
    todo, seen = [content], set[int]()
    while todo:
        value = todo.pop()
        if isinstance(value, _Name | _Dtype):
            raise Forbidden("it contains more than plain data (the name of a function)")
        if isinstance(value, list | tuple | dict) and id(value) not in seen:
            seen.add(id(value))
            todo.extend([*value.keys(), *value.values()] if isinstance(value, dict) else value)
    return content


def _numbers(content: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> list[Any]:
    """The values of an array as nested lists."""
    if not re.fullmatch(r"[biuf][1248]", dtype.code) or dtype.order not in ("<", ">"):
        raise ValueError(f"it contains an array of dtype {dtype.code[:20]!r}, which is not numeric")
    if isinstance(content, str):  # bytes pickled by Python 2
        content = content.encode("latin-1")
    kind = np.dtype(dtype.order + dtype.code)
    if not shape or math.prod(shape) * kind.itemsize != len(content):
        raise ValueError("it contains an array with a shape that does not match its data")
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C").tolist()


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Forbidden("it contains more than plain data (text in another encoding)")
    return text.encode("latin-1")


_ARRAYS: dict[str, Callable[..., Any]] = {
    "multiarray _reconstruct": lambda *_: _Array(),
    "multiarray scalar": lambda dtype, raw: _numbers(raw, dtype, (1,))[0],
    "numeric _frombuffer": lambda raw, dtype, shape, order: _Array(_numbers(raw, dtype, shape, str(order))),
}
NUMPY: dict[str, Callable[..., Any] | None] = {
    **{f"numpy.{core}.{name}": function for core in ("core", "_core") for name, function in _ARRAYS.items()},
    "numpy dtype": lambda code, *_: _Dtype(str(code)),
    "numpy ndarray": None,
    "_codecs encode": _encoded,
    **{f"{module} bytes": lambda: b"" for module in ("builtins", "__builtin__")},
}
"""The functions in pickles of NumPy arrays, NumPy scalars and bytes → our implementations."""
