"""Pickles of plain data, read without unpickling: nothing in the file is ever called.

A pickle is a program for a small stack machine. Here `pickletools.genops` splits it into instructions, and those that
make numbers, strings, lists, tuples and dicts are carried out by us. Instructions that call something are followed only
where they spell a numpy array or number, or bytes, by one of the names in `_CALLS`; what numpy's own functions would
have done is done by `_call` and `_set_array`, and no name is ever looked up. All else is refused.
"""

from __future__ import annotations

import math
import pickletools
import re
from typing import Any

import numpy as np

_CALLS = {
    **dict.fromkeys(("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"), "array"),
    **dict.fromkeys(("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"), "frombuffer"),
    **dict.fromkeys(("numpy.core.multiarray scalar", "numpy._core.multiarray scalar"), "number"),
    "numpy dtype": "dtype",
    "numpy ndarray": "type",
    "_codecs encode": "encode",
    **dict.fromkeys(("builtins bytes", "__builtin__ bytes"), "bytes"),
}
# fmt: off
_PUSH = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
})
# fmt: on
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Name(str):
    """A function that the file wants called; a word, no function."""


class _Array(list[Any]):
    """A numpy array as nested lists."""


class _Dtype:
    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"


def loads(data: bytes) -> Any:
    """The content of a pickle of numbers, strings, lists, tuples, dicts and numeric numpy arrays (as nested lists).

    Strings of Python 2 come as text (Latin-1).

    Raises:
        ValueError: Damaged, or it holds anything else; one line says what.
    """
    try:
        return _checked(_run(data))
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__})") from error


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    spent = 0

    def afford(parts: tuple[Any, ...]) -> None:
        """A small file may use one piece of itself over and over to fill the memory; an honest one does not."""
        nonlocal spent
        spent += sum(len(part) for part in parts if isinstance(part, str | bytes | bytearray))
        if spent > 4 * len(data):
            raise ValueError("it repeats itself to far beyond its size")

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for instruction, argument, _ in pickletools.genops(data):
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
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_name(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(f"{module} {name}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                afford(arguments)
                stack.append(_call(function, arguments))
            case "BUILD":
                state = stack.pop()
                afford(state)
                _set(stack[-1], state)
            case name:
                raise ValueError(f"it holds more than plain data (instruction {name})")
    raise ValueError("damaged pickle (no end)")


def _checked(content: Any) -> Any:
    """The content, if none of the words that spell arrays is left over in it."""
    todo, seen = [content], set[int]()
    while todo:
        value = todo.pop()
        if isinstance(value, _Name | _Dtype):
            raise ValueError("it holds more than plain data (the name of a function)")
        if isinstance(value, list | tuple | dict) and id(value) not in seen:
            seen.add(id(value))
            todo.extend([*value.keys(), *value.values()] if isinstance(value, dict) else value)
    return content


def _name(written: Any) -> _Name:
    if written not in _CALLS:
        raise ValueError(f"it wants {'.'.join(str(written).split())[:80]!r} run, which is no plain data")
    return _Name(written)


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(function, _Name):
        raise ValueError("it holds more than plain data (a call of a value)")
    match _CALLS[function]:
        case "array":
            return _Array()
        case "dtype":
            return _Dtype(str(arguments[0]))
        case "number":
            return _numbers(arguments[1], arguments[0], (1,))[0]
        case "frombuffer":
            buffer, dtype, shape, order = arguments
            return _Array(_numbers(buffer, dtype, shape, str(order)))
        case "encode" if arguments[1:] in (("latin1",), ("latin-1",)):
            return arguments[0].encode("latin-1")
        case "bytes" if not arguments:
            return b""
    raise ValueError(f"it holds more than plain data ({'.'.join(function.split())} of unknown arguments)")


def _set(value: Any, state: tuple[Any, ...]) -> None:
    if isinstance(value, _Dtype):
        value.order = str(state[1]).replace("|", "<")
    elif isinstance(value, _Array):
        _, shape, dtype, fortran, content = state
        value[:] = _numbers(content, dtype, shape, "F" if fortran else "C")
    else:
        raise ValueError("it holds more than plain data (the state of an object)")


def _numbers(content: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> list[Any]:
    """The content of an array as nested lists."""
    if not re.fullmatch(r"[biuf][1248]", dtype.code) or dtype.order not in ("<", ">"):
        raise ValueError(f"it holds an array of {dtype.code[:20]!r}, not of numbers")
    if isinstance(content, str):  # bytes of Python 2
        content = content.encode("latin-1")
    kind = np.dtype(dtype.order + dtype.code)
    if not shape or math.prod(shape) * kind.itemsize != len(content):
        raise ValueError("it holds an array whose content does not fill its shape")
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C").tolist()
