"""`backbone.json`, the description of a model folder: every field is validated before a network is built."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from opendino.core import ranges
from opendino.core.errors import UserError
from opendino.core.ranges import Channels, Count, CountOrZero, Mean, PixelSize, Std
from opendino.models.image_reading import ImageReading
from opendino.models.vit import SIZES

DESCRIPTION = "backbone.json"
CLASSIFIER = "classifier.safetensors"
NETWORKS = ("teacher", "student")
MAX_BYTES = 2**24
"""Limit of backbone.json, and of the header of a .safetensors file."""

NetworkName = Annotated[str, Meta(pattern=r"^(timm:|python:)?[A-Za-z0-9_.-]{1,150}(/[0-9]{1,5}(x[0-9]{1,5})?)?$")]
DropRate = Annotated[float, Meta(ge=0, lt=1)]


class Preprocessing(msgspec.Struct, forbid_unknown_fields=True):
    """Preprocessing of images, see `models.load.Model.preprocess`."""

    image_px: PixelSize
    resize_px: PixelSize
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    mean: Mean
    std: Std
    images: ImageReading = ImageReading()


class _Network(msgspec.Struct):
    name: NetworkName
    kwargs: dict[str, Any]


class Description(msgspec.Struct, forbid_unknown_fields=True):
    """All fields of `backbone.json`."""

    name: NetworkName
    kwargs: dict[str, Any]
    preprocessing: Preprocessing
    networks: Annotated[list[Literal["teacher", "student"]], Meta(min_length=1, max_length=2)]
    format: Literal[1] = 1
    embed_dim: Count | None = None
    classes: list[str] = []
    versions: dict[str, str] = {}
    extra: dict[str, Any] = {}


class _Vit(msgspec.Struct, forbid_unknown_fields=True):
    image_px: PixelSize = 224
    in_chans: Channels = 3
    embed_dim: Count = 384
    depth: Count = 12
    num_heads: Count = 6
    mlp_ratio: Annotated[float, Meta(gt=0, le=1000)] = 4.0
    num_registers: CountOrZero = 0
    drop_path: DropRate = 0.0


class _Conv4(msgspec.Struct, forbid_unknown_fields=True):
    width: Count = 32
    in_chans: Channels = 3


class _Timm(msgspec.Struct):
    """Options that every model of timm accepts; other options must be scalars or lists of them."""

    image_px: PixelSize = 224
    in_chans: Channels = 3
    drop_path: DropRate = 0.0


_Scalar = bool | int | float | str | None
_TimmOption = _Scalar | Annotated[list[_Scalar | list[_Scalar]], Meta(max_length=64)]
_REFUSED_OPTIONS = {
    "name", "model_name", "pretrained", "pretrained_strict", "pretrained_cfg", "pretrained_cfg_overlay",
    "checkpoint_path", "cache_dir", "features_only", "scriptable", "exportable", "num_classes",
}  # fmt: skip
"""Arguments of `timm.create_model` that download or read files, or build something other than a feature extractor."""


def weights_file(which: str, networks: Iterable[str]) -> str:
    """File name of a network in a model folder; the first, the default, has the plain name."""
    return "backbone.safetensors" if which == next(iter(networks)) else f"backbone_{which}.safetensors"


def read_description(path: Path) -> dict[str, Any]:
    """Read the file and validate every field.

    Raises:
        UserError: A field is missing, unknown, of another type or out of range; names the field.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MiB and not a model's description")
        found = msgspec.json.decode(content)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a model's description: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a model's description: it is not a JSON object")
    if missing := {"name", "kwargs", "preprocessing", "networks"} - found.keys():
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}", "Export or import the model again")
    if not found["networks"] or not isinstance(found["networks"], list):
        raise UserError(f"{path} names the networks {found['networks']!s:.60}", f"Known are {', '.join(NETWORKS)}")
    described = convert(found, Description, "", str(path))
    if len(set(described.networks)) < len(described.networks):
        raise UserError(f"{path} names a network twice: {', '.join(described.networks)}", "Name each once")
    check_kwargs(described.name, described.kwargs, str(path))
    data = described.extra.get("data")
    if data is not None and not isinstance(data, str):
        raise UserError(f"{path}: extra.data is {data!s:.60}", "Give the training DATA as text, or leave it out")
    return found


def check_network(name: Any, kwargs: Any, source: str) -> tuple[str, dict[str, Any]]:
    """Validate name and options of a network.

    Raises:
        UserError: The name is a path, a hub address or no string, or the backbone does not accept these options.
    """
    convert({"name": name, "kwargs": kwargs}, _Network, "", source)
    check_kwargs(name, kwargs, source)
    return name, kwargs


def check_kwargs(name: str, kwargs: dict[str, Any], source: str) -> None:
    """Validate the options of a backbone.

    Raises:
        UserError: An option is unknown, of another type or out of range, or would download or read a file.
    """
    family = name.partition("/")[0]
    if family == "vit" or family in SIZES:
        convert(kwargs, _Vit, "kwargs.", source)
        return
    if name == "conv4":
        convert(kwargs, _Conv4, "kwargs.", source)
        return
    if refused := sorted(_REFUSED_OPTIONS & kwargs.keys()):
        raise UserError(
            f"{source}: a network takes no option '{refused[0]}', which is for downloading one", "Remove it"
        )
    convert(kwargs, _Timm, "kwargs.", source)
    for key, value in kwargs.items():
        convert(value, _TimmOption, f"kwargs.{key:.60}", source)


def check_preprocessing(wanted: dict[str, Any], source: str) -> None:
    """Validate a preprocessing.

    Raises:
        UserError: A field is missing, unknown, of another type or out of range.
    """
    convert(wanted, Preprocessing, "preprocessing.", source)


def convert(value: Any, kind: Any, prefix: str, source: str) -> Any:
    """Convert a decoded JSON value to a type with msgspec.

    Args:
        value: The decoded JSON value.
        kind: The type or annotation to convert to.
        prefix: Prefix of field names in errors, "" or "kwargs.".
        source: Name of the file, for errors.

    Raises:
        UserError: The value has another type or is out of range; names the field, its value and what is allowed.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UserError(*_message_and_hint(str(error), value, prefix, source)) from error


def _message_and_hint(error: str, value: Any, prefix: str, source: str) -> tuple[str, str]:
    """Message and hint from an error of msgspec, such as "Expected `int` >= 1, got `str` - at `$.a.b[0]`"."""
    wrong, _, path = error.partition(" - at `$")
    path = path.rstrip("`")
    found: Any = value
    for key, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
        found = found[int(index)] if index else found.get(key)
    field = (prefix + path.removeprefix(".")).strip(".") or "it"
    wrong = wrong[:120].replace("`", "'")
    if field == "name":
        return (
            f"{source}: name is {found!r:.80}",
            "Use a name of `opendino list backbones` or of timm, not a path or a hub address",
        )
    shown = field if isinstance(found, dict | list) or found is None else f"{field} is {found!r:.60}"
    return f"{source}: {shown}: {wrong[0].lower()}{wrong[1:]}", _statistics_hint(value, field)


def _statistics_hint(value: Any, field: str) -> str:
    """The hint of `core.ranges` for a mean or std outside its range, e.g. one of pixels in 0 to 255; else nothing."""
    if not (match := re.match(r"preprocessing\.(mean|std)\b", field)):
        return ""
    name = match[1]
    statistics = value.get("preprocessing", value)[name]
    if not isinstance(statistics, list):
        return f"Use {ranges.allowed(Mean if name == 'mean' else Std)}"
    try:
        ranges.convert(statistics, Mean if name == "mean" else Std, name)
    except ranges.OutOfRange as error:
        return error.hint
    return ""
