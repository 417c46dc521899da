"""Pickles of plain data, read without unpickling: nothing in the file is ever called.

A pickle is a program for a small stack machine. Here `pickletools.genops` splits it into instructions, and those that
make numbers, strings, lists, tuples and dicts are carried out by us. Instructions that call something are followed only
where they name one of a few words, `NUMPY` for arrays, numbers and bytes: each stands for a function of ours that does
what the one of that name would have done. No name is ever looked up. All else is refused.
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
    """A function that the file wants called; a word, no function."""


class _Array(list[Any]):
    """A numpy array as nested lists."""

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self[:] = _numbers(content, dtype, shape, "F" if fortran else "C")


class _Dtype:
    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def set_state(self, state: Any) -> None:
        self.order = str(state[1]).replace("|", "<")


class Forbidden(ValueError):
    """A pickle holds more than plain data; one line says what."""


def loads(data: bytes) -> Any:
    """The content of a pickle of numbers, strings, lists, tuples, dicts and numeric numpy arrays (as nested lists).

    Strings of Python 2 come as text (Latin-1).

    Raises:
        ValueError: Damaged, or it holds anything else; one line says what.
    """
    return read(data, NUMPY, len(data))


def read(
    program: bytes | mmap.mmap,
    words: Mapping[str, Callable[..., Any] | None],
    size: int,
    pointed: Callable[[Any], Any] | None = None,
) -> Any:
    """The content of a pickle whose calls are spelt with `words`.

    Args:
        program: The pickle, or a mapped file that stands at its beginning and will stand behind its end.
        words: "module name" → a function of ours for it, None for a word that is only handed on to others. What a
            function returns may have `set_state(state)`; without it no state is taken.
        size: Bytes of the file, which bounds the work done for it.
        pointed: What something outside the pickle, to which it points, comes in as; None forbids it.

    Raises:
        Forbidden: It holds anything else.
        ValueError: It is damaged.
    """
    try:
        return _checked(_run(program, words, size, pointed))
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__})") from error


def _run(
    program: bytes | mmap.mmap,
    words: Mapping[str, Callable[..., Any] | None],
    size: int,
    pointed: Callable[[Any], Any] | None,
) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    spent = 0

    def afford(*parts: Any) -> None:
        """A small file may use one piece of itself over and over to fill the memory; an honest one does not."""
        nonlocal spent
        spent += sum(len(part) for part in parts if isinstance(part, str | bytes | bytearray | list | tuple | dict))
        if spent > 4 * size:
            raise ValueError("it repeats itself to far beyond its size")

    def named(written: str) -> None:
        if written not in words:
            raise Forbidden(f"it wants {'.'.join(written.split())[:80]!r} run, which is no plain data")
        stack.append(_Name(written))

    def called() -> None:
        arguments, function = stack.pop(), stack.pop()
        if not isinstance(function, _Name):
            raise Forbidden("it holds more than plain data (a call of a value)")
        afford(*arguments)
        ours = words[function]
        if ours is None:
            raise Forbidden(f"it holds more than plain data (a call of {'.'.join(function.split())})")
        stack.append(ours(*arguments))

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
                _is(list, stack[-1]).append(item)
            case "APPENDS":
                items = since_mark()
                _is(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _is(dict, stack[-1])[key] = value
            case "SETITEMS":
                items = since_mark()
                _is(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                named(str(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                named(f"{module} {name}")
            case "REDUCE" | "NEWOBJ":
                called()
            case "BUILD":
                state = stack.pop()
                afford(state, *(state if isinstance(state, tuple) else ()))
                if not hasattr(stack[-1], "set_state"):
                    raise Forbidden("it holds more than plain data (the state of an object)")
                stack[-1].set_state(state)
            case "BINPERSID" if pointed is not None:
                stack.append(pointed(stack.pop()))
            case name:
                raise Forbidden(f"it holds more than plain data (instruction {name})")
    raise ValueError("damaged pickle (no end)")


def _checked(content: Any) -> Any:
    """The content, if none of the words that spell arrays is left over in it."""
    todo, seen = [content], set[int]()
    while todo:
        value = todo.pop()
        if isinstance(value, _Name | _Dtype):
            raise Forbidden("it holds more than plain data (the name of a function)")
        if isinstance(value, list | tuple | dict) and id(value) not in seen:
            seen.add(id(value))
            todo.extend([*value.keys(), *value.values()] if isinstance(value, dict) else value)
    return content


def _is(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} for {kind.__name__}")
    return value


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


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Forbidden("it holds more than plain data (text in another encoding)")
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
"""The words that spell numpy's arrays and numbers, and bytes."""
