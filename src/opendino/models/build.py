"""Backbones by name: our ViTs as `vit_small/16`, anything else is timm's."""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError, first_line, unknown
from opendino.models.conv4 import Conv4
from opendino.models.vit import SIZES, VisionTransformer

_MODULES_A_TENSOR = 12
"""More modules for each tensor of a file than any network of timm has."""
_MOST_PIXELS = 16_384
_MOST_UNSAVED_BYTES = 2**30
"""Of a network's tables that are not in its file of weights: five times what any network of timm has."""


def backbone(
    name: str, *, image_px: int = 224, drop_path: float = 0.0, num_registers: int = 0, **kwargs: Any
) -> Backbone:
    """Build a backbone with fresh weights. `backbone(b.name, **b.kwargs)` rebuilds the architecture of any `b`.

    Args:
        name: `vit_tiny/16`, `vit_small/8`, `vit_base/14`: ours, any patch size after the slash. `vit/4` with
            `embed_dim`, `depth`, `num_heads`: ours, any size. `resnet50`, `timm:convnext_atto`: any model of timm.
            `resnet18/3x3`: a timm ResNet with a stem for small images. `conv4`: four convolutions, for demos.
        image_px: Side of the images the network is made for; others work too.
        drop_path: Stochastic depth of the last block.
        num_registers: Register tokens (ours only; timm's have them by name).
        **kwargs: Passed to `VisionTransformer` or to `timm.create_model`.

    Raises:
        UsageError: No such name or option.
        UserError: The sizes do not fit together.
    """
    family = name.partition("/")[0]
    if family == "vit" or family in SIZES:
        return _vit(name, dict(kwargs, image_px=image_px, drop_path=drop_path, num_registers=num_registers))
    if num_registers:
        raise UsageError(
            f"num_registers {num_registers} cannot be added to '{name}'",
            f"Choose one of ours ({', '.join(backbone_names())}) or a timm model with registers by name (*_reg4_*)",
        )
    if name == "conv4":
        _check_options(name, kwargs, Conv4)
        return Conv4(**kwargs)
    from opendino.models.timm_backbone import TimmBackbone

    return TimmBackbone(name.removeprefix("timm:"), image_px=image_px, drop_path=drop_path, **kwargs)


def patch_px(name: str) -> int:
    """What the sides of its images must be multiples of, by its name; 16 for networks that do not mind."""
    found = re.search(r"^vit[a-z_]*/(\d+)$|patch(\d+)", name)
    return int(found[1] or found[2]) if found else 16


def backbone_names() -> list[str]:
    """Our backbones with the usual patch sizes; every name of `timm.list_models()` works as well."""
    return ["conv4", *(f"{family}/{patch}" for family in SIZES for patch in (16, 8))]


def plan(name: str, kwargs: dict[str, Any], shapes: Mapping[str, Tensor], source: str) -> Backbone:
    """Build on the device `meta` what the description of a stranger asks for: shapes alone, whatever their size.

    Compare it with the shapes of the weights (`models.weights.check_weights`), then `make` it.

    Args:
        name: As for `backbone`.
        kwargs: As for `backbone`.
        shapes: The weights' tensors, perhaps on `meta`. Their number bounds how deep the network may be, and their
            sides how wide.
        source: What described it, for messages.

    Raises:
        UserError: There is no such network, or it is deeper or wider than its weights.
    """
    most_modules = 100 + _MODULES_A_TENSOR * len(shapes)
    sides = {side for tensor in shapes.values() if tensor.numel() for side in tensor.shape}
    for option, value in kwargs.items():
        most = _MOST_PIXELS if option in ("image_px", "img_size") else max(most_modules, 4096)
        if too_large := [number for number in _whole_numbers(value) if abs(number) > most and number not in sides]:
            raise UserError(
                f"{source}: {option:.60} is {too_large[0]:.6g}, larger than anything in its weights",
                "Take its description from where the weights are from",
            )
    try:
        with _at_most(most_modules), torch.device("meta"):
            return backbone(name, **kwargs)
    except UserError as error:
        raise UserError(f"{source}: {error.message}", error.hint) from error
    except _TooManyError as error:
        raise UserError(
            f"{source} describes a '{name}' of many more layers than the {len(shapes)} tensors of its weights",
            "Take its description from where the weights are from",
        ) from error
    except Exception as error:  # whatever torch and timm say of numbers that make no network
        maker = "opendino" if name == "conv4" or name.partition("/")[0] in ("vit", *SIZES) else "timm"
        raise UserError(
            f"{maker} cannot build '{name}' as {source} describes it: {first_line(error):.200}",
            "Take its description from where the weights are from",
        ) from error


def make(planned: Backbone) -> Backbone:
    """Build a planned network, whose shapes are known to be those of its weights, for real.

    Raises:
        UserError: Its tables that are not among the weights would fill the memory.
    """
    saved = planned.state_dict().keys()
    unsaved = sum(table.nbytes for key, table in planned.named_buffers() if key not in saved)
    if unsaved > _MOST_UNSAVED_BYTES:
        raise UserError(
            f"'{planned.name}' for images of {planned.kwargs.get('image_px')} px needs {unsaved >> 20:,} MiB of tables",
            "Describe it for smaller images",
        )
    return backbone(planned.name, **planned.kwargs)  # pyright: ignore[reportArgumentType]


def _whole_numbers(value: Any) -> list[int]:
    if isinstance(value, list | tuple):
        return [number for each in value for number in _whole_numbers(each)]
    return [value] if isinstance(value, int) else []


class _TooManyError(Exception):
    """More modules than there can be."""


@contextlib.contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Stop this thread from putting more modules than that into others."""
    left, thread = count, threading.get_ident()

    def counted(*_: Any) -> None:
        nonlocal left
        if threading.get_ident() == thread:
            left -= 1
            if left < 0:
                raise _TooManyError

    hook = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def _vit(name: str, options: dict[str, Any]) -> VisionTransformer:
    family, _, patch = name.partition("/")
    if not (patch.isascii() and patch.isdecimal() and int(patch) > 0):
        raise UsageError(f"'{name}' lacks a patch size in pixels", f"Write {family}/16 for patches of 16×16 px")
    _check_options(name, options, VisionTransformer)
    built = VisionTransformer(patch_px=int(patch), **{**SIZES.get(family, {}), **options})
    built.name, built.kwargs = name, options
    return built


def _check_options(name: str, options: dict[str, Any], built: type[Backbone]) -> None:
    known = set(inspect.signature(built).parameters) - {"patch_px"}
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
