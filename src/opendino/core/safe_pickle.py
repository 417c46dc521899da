"""Read pickles of plain data without unpickling: no name in the file is imported or called.

A pickle is a program for a stack machine. `pickletools.genops` splits it into instructions, and the interpreter below
executes those that build numbers, strings, lists, tuples and dicts. A call is executed only if the name of its function
is a key of a dict, such as `NUMPY`; the value is our own implementation of that function. Names are never resolved to
Python objects. Everything else is rejected.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# fmt: off
_PUSH = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
})
# fmt: on
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


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

    Strings of Python 2 are decoded as Latin-1.

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
    try:
        return _check_no_names(_run(program, functions, size, load_persistent))
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__})") from error


def _run(
    program: bytes | mmap.mmap,
    functions: Mapping[str, Callable[..., Any] | None],
    size: int,
    load_persistent: Callable[[Any], Any] | None,
) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    spent = 0

    def check_size(*parts: Any) -> None:
        """Limit the copied data: a malicious small file can repeat one object until memory is full."""
        nonlocal spent
        spent += sum(len(part) for part in parts if isinstance(part, str | bytes | bytearray | list | tuple | dict))
        if spent > 4 * size:
            raise ValueError("its content is much larger than the file (repeated objects)")

    def push_name(written: str) -> None:
        if written not in functions:
            raise Forbidden(f"it calls {'.'.join(written.split())[:80]!r}, which is not plain data")
        stack.append(_Name(written))

    def call() -> None:
        arguments, function = stack.pop(), stack.pop()
        if not isinstance(function, _Name):
            raise Forbidden("it contains more than plain data (a call of a value)")
        check_size(*arguments)
        implementation = functions[function]
        if implementation is None:
            raise Forbidden(f"it contains more than plain data (a call of {'.'.join(function.split())})")
        stack.append(implementation(*arguments))

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    instructions = pickletools.genops(program)  # pyright: ignore[reportArgumentType], a mapped file reads like any other
    for instruction, argument, _ in instructions:
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case name if name in _PUSH:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "LIST":
                stack.append(since_mark())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(instruction.name[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "DICT":
                items = since_mark()
                stack.append(dict(zip(items[::2], items[1::2], strict=True)))
            case "APPEND":
                item = stack.pop()
                _require_type(list, stack[-1]).append(item)
            case "APPENDS":
                items = since_mark()
                _require_type(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _require_type(dict, stack[-1])[key] = value
            case "SETITEMS":
                items = since_mark()
                _require_type(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                push_name(str(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                push_name(f"{module} {name}")
            case "REDUCE" | "NEWOBJ":
                call()
            case "BUILD":
                state = stack.pop()
                check_size(state, *(state if isinstance(state, tuple) else ()))
                if not hasattr(stack[-1], "set_state"):
                    raise Forbidden("it contains more than plain data (the state of an object)")
                stack[-1].set_state(state)
            case "BINPERSID" if load_persistent is not None:
                stack.append(load_persistent(stack.pop()))
            case name:
                raise Forbidden(f"it contains more than plain data (instruction {name})")
    raise ValueError("damaged pickle (no end)")


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


def _require_type(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} for {kind.__name__}")
    return value


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


NUMPY: dict[str, Callable[..., Any] | None] = {
    **{f"numpy.{core}.multiarray _reconstruct": lambda *_: _Array() for core in ("core", "_core")},
    **{
        f"numpy.{core}.multiarray scalar": lambda dtype, raw: _numbers(raw, dtype, (1,))[0]
        for core in ("core", "_core")
    },
    **{
        f"numpy.{core}.numeric _frombuffer": lambda raw, dtype, shape, order: _Array(
            _numbers(raw, dtype, shape, str(order))
        )
        for core in ("core", "_core")
    },
    "numpy dtype": lambda code, *_: _Dtype(str(code)),
    "numpy ndarray": None,
    "_codecs encode": _encoded,
    **{f"{module} bytes": lambda: b"" for module in ("builtins", "__builtin__")},
}
"""The functions in pickles of NumPy arrays, NumPy scalars and bytes → our implementations."""
