"""Ranges of settings as type annotations, and the check of a Config against them.

A Config is a frozen subclass of `Checked`. Its fields are annotated with the types below, or with
`Annotated[int, Meta(ge=1)]` of msgspec; its `__post_init__` has only the rules between fields.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from opendino.core.errors import UsageError

_MAX_SHOWN = 60  # characters of a rejected value in an error message


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MOST_PROCESSES = max(16, 4 * cores())
"""Upper limit of processes, four per core: more would only use memory."""


def _divide_by_255_hint(value: Any) -> str:
    """Hint for a mean or std of pixels in 0 … 255 where pixels in [0, 1] are expected; empty if it does not apply."""
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
Channels = Annotated[int, Meta(ge=1, le=1024)]
_PerChannel = Meta(min_length=1, max_length=1024, extra={"hint": _divide_by_255_hint})
Mean = Annotated[tuple[Fraction, ...], _PerChannel]
Std = Annotated[tuple[Spread, ...], _PerChannel]
_DURATION, _DURATION_IS = (
    r"\s*\d{1,12}(\.\d{1,12})?(ep|EP|%|k|K|m|M)?\s*",
    "a duration: epochs as 10ep, a share of the run as 5%, steps as 1500 or 20k",
)
Duration = Annotated[str, Meta(pattern=f"^{_DURATION}$", description=_DURATION_IS)]
DurationOrAuto = Annotated[str, Meta(pattern=f"^(auto|{_DURATION})$", description=f"{_DURATION_IS}, or auto")]


class OutOfRange(UsageError):
    """A setting with a value that is not allowed.

    Args:
        field: Name of the setting, e.g. "method.out_dim".
        value: The rejected value.
        hint: What is allowed.
    """

    def __init__(self, field: str, value: Any, hint: str) -> None:
        super().__init__(f"{field} is {shown(value)}", hint)
        self.field, self.value = field, value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.hint)

    def named(self, field: str) -> OutOfRange:
        """The same error with another name for the setting."""
        return OutOfRange(field, self.value, self.hint)


class Checked:
    """Base of dataclasses that check their fields at construction."""

    def __post_init__(self) -> None:
        check(self)


def check(config: Any) -> None:
    """Check every field of a dataclass, and of nested dataclasses, against its annotation.

    Lists are converted to tuples, and NumPy scalars to Python numbers, where the annotation requires it.

    Raises:
        OutOfRange: A field has a value that its annotation does not allow.
    """
    for name, hint in hints(type(config)).items():
        value = getattr(config, name)
        converted = convert(value, hint, name)
        if converted is not value and (_is_numpy_scalar(value) or converted != value):
            object.__setattr__(config, name, converted)
        if dataclasses.is_dataclass(value):
            try:
                check(value)
            except OutOfRange as error:
                raise error.named(f"{name}.{error.field}") from None


def convert(value: Any, hint: Any, name: str, strict: bool = True) -> Any:
    """Convert a value to the type of an annotation, and check its range.

    Args:
        value: Anything.
        hint: The annotation.
        name: Name of the setting, for the error message.
        strict: False also converts text to numbers.

    Raises:
        OutOfRange: The value has another type or is out of range.
    """
    if _is_numpy_scalar(value):
        value = value.item()
    if dataclasses.is_dataclass(value) and (hint is Any or (isinstance(hint, type) and isinstance(value, hint))):
        return value
    if any("\0" in part for part in (value if isinstance(value, tuple | list) else [value]) if isinstance(part, str)):
        raise OutOfRange(name, value, "Text must not contain a NUL character")
    try:
        converted = msgspec.convert(value, hint, strict=strict)
    except Exception:  # ValidationError, or any error of msgspec on an object that is not plain data
        raise OutOfRange(name, value, advice(value, hint)) from None
    if _extra(hint).get("ascending") and isinstance(converted, tuple) and converted[0] > converted[1]:
        raise OutOfRange(name, value, advice(value, hint))
    return converted


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass, with their ranges: field name → annotation."""
    every = get_type_hints(kind, include_extras=True)
    return {field.name: every[field.name] for field in dataclasses.fields(kind)}


def shown(value: Any) -> str:
    """Format a value for an error message, shortened if it is long."""
    if isinstance(value, int) and abs(value) >= 10**_MAX_SHOWN:
        return f"a number of {int(value.bit_length() * 0.30103) + 1:,} digits"
    if isinstance(value, tuple):
        text = " ".join(map(shown, value)) or "empty"
    elif isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key!r}: {shown(part)}' for key, part in value.items())}}}"
    elif isinstance(value, str) and len(value) > _MAX_SHOWN:
        return f"{value[:_MAX_SHOWN]!r}... ({len(value):,} characters)"
    else:
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 4 * _MAX_SHOWN else f"{text[: 4 * _MAX_SHOWN]}..."


def allowed(hint: Any) -> str:
    """Describe the values that an annotation allows, e.g. "a whole number from 1 to 64"."""
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        found = [note for note in notes if isinstance(note, Meta)]
        described = [note.description for note in found if note.description]
        return described[0] if described else _describe_range(base, found)
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


def advice(value: Any, hint: Any) -> str:
    """What to use instead of a value that an annotation does not allow."""
    offered = _extra(hint).get("hint")
    kinds = [part for part in get_args(hint) if part is not type(None)] if get_origin(hint) is Union else [hint]
    if all(get_origin(part) is Literal for part in kinds):
        return f"Choose from {', '.join(sorted(str(choice) for part in kinds for choice in get_args(part)))}"
    return (offered and offered(value)) or f"Use {allowed(hint)}"


def _is_numpy_scalar(value: Any) -> bool:
    numpy = sys.modules.get("numpy")  # importing it would take half of the time of `opendino VERB --help`
    return numpy is not None and isinstance(value, numpy.generic)


def _extra(hint: Any) -> dict[str, Any]:
    notes = [note for part in (hint, *get_args(hint)) for note in getattr(part, "__metadata__", ())]
    return {key: value for note in notes if isinstance(note, Meta) for key, value in (note.extra or {}).items()}


def _describe_range(base: Any, notes: list[Meta]) -> str:
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
