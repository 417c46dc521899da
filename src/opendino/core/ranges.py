"""What a setting may be, stated where it is declared, and the one function that checks it.

A Config is a frozen dataclass below `Checked`. Its fields are annotated with the types below, or with
`Annotated[int, Meta(ge=1)]` of msgspec; its `__post_init__` holds only rules between fields.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
from msgspec import Meta

from opendino.core.errors import UsageError

_SHOWN = 60  # characters of a refused value


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MOST_PROCESSES = max(16, 4 * cores())
"""More workers or devices than this only fill memory: four for each core."""


def _divided(value: Any) -> str:
    """The hint for statistics of pixels in 0 to 255 where those of pixels in [0, 1] are meant."""
    if not isinstance(value, Sequence) or not all(isinstance(x, int | float) and 0 <= x <= 255 for x in value):
        return ""
    if max(value, default=0) <= 1:
        return ""
    return f"Pixels lie in [0, 1]. Divided by 255: {' '.join(f'{x / 255:.4g}' for x in value)}"


Count = Annotated[int, Meta(ge=1, le=10**9)]
CountOrZero = Annotated[int, Meta(ge=0, le=10**9)]
PixelSize = Annotated[int, Meta(ge=1, le=16_384)]
Width = Annotated[int, Meta(ge=1, le=65_536)]
Batch = Annotated[int, Meta(ge=1, le=2**20)]
Repeats = Annotated[int, Meta(ge=1, le=10_000)]
Workers = Annotated[int, Meta(ge=1, le=MOST_PROCESSES)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
FractionAboveZero = Annotated[float, Meta(gt=0, le=1)]
Cosine = Annotated[float, Meta(gt=-1, le=1)]
Temperature = Annotated[float, Meta(ge=1e-4, le=1e4)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
NotNegative = Annotated[float, Meta(ge=0, le=1e6)]
Strength = Annotated[float, Meta(ge=0, le=10)]
Hue = Annotated[float, Meta(ge=0, le=0.5)]
ASCENDING = Meta(extra={"ascending": True})
FractionRange = Annotated[tuple[FractionAboveZero, FractionAboveZero], ASCENDING]
Spread = Annotated[float, Meta(ge=1e-6, le=1)]
Mean = Annotated[tuple[Fraction, Fraction, Fraction], Meta(extra={"hint": _divided})]
Std = Annotated[tuple[Spread, Spread, Spread], Meta(extra={"hint": _divided})]
Duration = Annotated[
    str,
    Meta(
        pattern=r"^\s*\d{1,12}(\.\d{1,12})?(ep|EP|%|k|K|m|M)?\s*$",
        description="a duration: epochs as 10ep, a share of the run as 5%, steps as 1500 or 20k",
    ),
]


class OutOfRange(UsageError):
    """A setting that cannot have its value.

    Args:
        field: Its name, e.g. "method.out_dim".
        value: What it was to be.
        hint: What is allowed.
    """

    def __init__(self, field: str, value: Any, hint: str) -> None:
        super().__init__(f"{field} is {shown(value)}", hint)
        self.field, self.value = field, value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.hint)

    def named(self, field: str) -> OutOfRange:
        """The same under the name that the user wrote."""
        return OutOfRange(field, self.value, self.hint)


class Checked:
    """A dataclass below this one checks each of its fields whenever one is made."""

    def __post_init__(self) -> None:
        check(self)


def check(config: Any) -> None:
    """Every field of a dataclass, and of the dataclasses in it, is what its annotation allows.

    Lists become tuples and NumPy's scalars Python's where the annotation asks for these.

    Raises:
        OutOfRange: One is not.
    """
    for name, hint in hints(type(config)).items():
        value = getattr(config, name)
        converted = convert(value, hint, name)
        if converted is not value and (isinstance(value, np.generic) or converted != value):
            object.__setattr__(config, name, converted)
        if dataclasses.is_dataclass(value):
            try:
                check(value)
            except OutOfRange as error:
                raise error.named(f"{name}.{error.field}") from None


def convert(value: Any, hint: Any, name: str, strict: bool = True) -> Any:
    """A value as its annotation asks for it.

    Args:
        value: Anything.
        hint: The annotation.
        name: Of the setting, for the error.
        strict: False also reads numbers from text.

    Raises:
        OutOfRange: It is of another type or outside the range.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if dataclasses.is_dataclass(value) and (hint is Any or type(value) is hint):
        return value
    if any("\0" in part for part in (value if isinstance(value, tuple | list) else [value]) if isinstance(part, str)):
        raise OutOfRange(name, value, "Text must not hold a NUL character")
    try:
        converted = msgspec.convert(value, hint, strict=strict)
    except Exception:  # ValidationError, and what msgspec runs into with objects that are no data
        raise OutOfRange(name, value, _hint(value, hint)) from None
    if _extra(hint).get("ascending") and isinstance(converted, tuple) and converted[0] > converted[1]:
        raise OutOfRange(name, value, _hint(value, hint))
    return converted


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """Field → annotation, with its range."""
    every = get_type_hints(kind, include_extras=True)
    return {field.name: every[field.name] for field in dataclasses.fields(kind)}


def shown(value: Any) -> str:
    """A value in an error: shortened where it is long."""
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return f"a number of {int(value.bit_length() * 0.30103) + 1:,} digits"
    if isinstance(value, tuple):
        text = " ".join(map(shown, value)) or "empty"
    elif isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key!r}: {shown(part)}' for key, part in value.items())}}}"
    elif isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!r}... ({len(value):,} characters)"
    else:
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 4 * _SHOWN else f"{text[: 4 * _SHOWN]}..."


def allowed(hint: Any) -> str:
    """What an annotation allows, in words."""
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        found = [note for note in notes if isinstance(note, Meta)]
        described = [note.description for note in found if note.description]
        return described[0] if described else _limited(base, found)
    if get_origin(hint) in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(allowed(part) for part in get_args(hint) if part is not type(None)))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        parts = [part for part in get_args(hint) if part is not ...]
        each = list(dict.fromkeys(map(allowed, parts)))
        number = "values" if ... in get_args(hint) else f"{len(parts)} values"
        return f"{number}, each {each[0]}" if len(each) == 1 else f"{number}: {'; '.join(each)}"
    if get_origin(hint) is dict:
        return f"names with values, each {allowed(get_args(hint)[1])}"
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _hint(value: Any, hint: Any) -> str:
    offered = _extra(hint).get("hint")
    kinds = [part for part in get_args(hint) if part is not type(None)] if get_origin(hint) is Union else [hint]
    if all(get_origin(part) is Literal for part in kinds):
        return f"Choose from {', '.join(str(choice) for part in kinds for choice in get_args(part))}"
    return (offered and offered(value)) or f"Use {allowed(hint)}"


def _extra(hint: Any) -> dict[str, Any]:
    notes = [note for part in (hint, *get_args(hint)) for note in getattr(part, "__metadata__", ())]
    return {key: value for note in notes if isinstance(note, Meta) for key, value in (note.extra or {}).items()}


def _limited(base: Any, notes: list[Meta]) -> str:
    text, limits = allowed(base), {}
    for note in notes:
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if (limit := getattr(note, name)) is not None:
                limits[name] = "2^63 - 1" if limit == 2**63 - 1 else f"{limit:,g}" if limit < 1e5 else f"{int(limit):,}"
    if "min_length" in limits or "max_length" in limits:
        many = f"{limits.get('min_length', 0)} " + (
            f"to {limits['max_length']} " if "max_length" in limits else "or more "
        )
        text = many + text
    low = f"from {limits['ge']}" if "ge" in limits else f"above {limits['gt']}" if "gt" in limits else ""
    joint = "to" if "ge" in limits else "and at most" if "gt" in limits else "up to"
    high = f"{joint} {limits['le']}" if "le" in limits else f"to below {limits['lt']}" if "lt" in limits else ""
    ordered = "the smaller first" if any((note.extra or {}).get("ascending") for note in notes) else ""
    return ", ".join(part for part in (" ".join(filter(None, (text, low, high))), ordered) if part)
