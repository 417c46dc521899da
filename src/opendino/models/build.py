"""Build backbones by name: `vit_small/16` is our own ViT, other names are models of timm."""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook

from opendino.core import ranges, registry
from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError, first_line, unknown
from opendino.models.conv4 import Conv4
from opendino.models.module_backbone import from_factory
from opendino.models.vit import SIZES, VisionTransformer

_MAX_MODULES_PER_TENSOR = 12
"""Upper bound on modules per tensor of the weights; every model of timm has fewer."""
_MAX_MODULES = 4096
"""Upper bound on modules where the weights are not known yet: more than twice the most of any timm model."""
_MAX_IMAGE_PX = 16_384
_MAX_UNSAVED_BYTES = 2**30
"""Upper bound on non-persistent buffers (they are not in the weights file): five times the most of any timm model."""


def backbone(
    name: str, *, image_px: int = 224, drop_path: float = 0.0, num_registers: int = 0, **kwargs: Any
) -> Backbone:
    """Build a backbone with random initial weights. `backbone(b.name, **b.kwargs)` rebuilds the architecture of `b`.

    Args:
        name: `vit_tiny/16`, `vit_small/8`, `vit_base/14`: our ViT with any patch size in pixels after the slash.
            `vit/4` with `embed_dim`, `depth`, `num_heads`: our ViT of any size. `resnet50`, `timm:convnext_atto`: any
            model of timm. `resnet18/3x3`: a timm ResNet with a 3×3 stem for small images. `conv4`: four
            convolutions, for demos. Or a plug-in's name, see `core.registry`.
        image_px: Image side in pixels that position embeddings are stored for; other sizes work too.
        drop_path: Stochastic depth rate of the last block, in [0, 1).
        num_registers: Number of register tokens, our ViTs only (timm models with registers have their own names).
        **kwargs: Passed to `VisionTransformer` or to `timm.create_model`.

    Raises:
        UsageError: Unknown name or option, or an option with a value of another type.
        UserError: The sizes do not fit together, e.g. `image_px` is not a multiple of the patch size.
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
    if name in registry.names(registry.BACKBONES):
        return from_factory(name, registry.load(registry.BACKBONES, name), kwargs)
    if name.startswith("python:"):
        raise registry.not_here("backbone", name, "Python")
    from opendino.models.timm_backbone import TimmBackbone

    return TimmBackbone(name.removeprefix("timm:"), image_px=image_px, drop_path=drop_path, **kwargs)


def patch_px(name: str) -> int:
    """Patch size in pixels from a backbone's name: image sides must be multiples of it. 16 if the name has none."""
    found = re.search(r"^vit[a-z_]*/(\d+)$|patch(\d+)", name)
    return int(found[1] or found[2]) if found else 16


def backbone_names() -> list[str]:
    """Names of our backbones with the usual patch sizes; every name of `timm.list_models()` works too."""
    return ["conv4", *(f"{family}/{patch}" for family in SIZES for patch in (16, 8))]


def build_on_meta(name: str, kwargs: dict[str, Any], shapes: Mapping[str, Tensor] | None, source: str) -> Backbone:
    """Build an untrusted model description on the device `meta`: shapes without memory for weights.

    Compare the result with the shapes of the weights (`models.weights.check_weights`), then `materialize` it.

    Args:
        name: As for `backbone`.
        kwargs: As for `backbone`.
        shapes: The weights' tensors, possibly on `meta`. Their number limits the depth of the network, their sizes
            limit its width. None if they are not known yet: fixed limits.
        source: Name of the description, for errors.

    Raises:
        UserError: The network cannot be built, or it is deeper or wider than its weights.
    """
    known = shapes or {}
    max_modules = _MAX_MODULES if shapes is None else 100 + _MAX_MODULES_PER_TENSOR * len(known)
    sides = {side for tensor in known.values() if tensor.numel() for side in tensor.shape}
    for option, value in kwargs.items():
        limit = _MAX_IMAGE_PX if option in ("image_px", "img_size") else max(max_modules, 4096)
        if too_large := [number for number in _whole_numbers(value) if abs(number) > limit and number not in sides]:
            raise UserError(
                f"{source}: {option:.60} is {too_large[0]:.6g}, larger than "
                + (f"{limit:,}" if shapes is None else "anything in its weights"),
                "Use the description that was published with the weights",
            )
    try:
        with _max_registrations(max_modules), torch.device("meta"):
            return backbone(name, **kwargs)
    except UserError as error:
        raise UserError(f"{source}: {error.message}", error.hint) from error
    except _TooManyModulesError as error:
        raise UserError(
            f"{source} describes a '{name}' of "
            + (
                f"more than {_MAX_MODULES:,} layers"
                if shapes is None
                else f"many more layers than the {len(known)} tensors of its weights"
            ),
            "Use the description that was published with the weights",
        ) from error
    except Exception as error:  # torch and timm raise many types for invalid sizes
        maker = "opendino" if name == "conv4" or name.partition("/")[0] in ("vit", *SIZES) else "timm"
        raise UserError(
            f"{maker} cannot build '{name}' as {source} describes it: {first_line(error):.200}",
            "Use the description that was published with the weights",
        ) from error


def materialize(on_meta: Backbone) -> Backbone:
    """Build a network of `build_on_meta` with memory, once its shapes are checked against those of its weights.

    Raises:
        UserError: Its non-persistent buffers, which are not among the weights, would fill the memory.
    """
    saved = on_meta.state_dict().keys()
    unsaved = sum(buffer.nbytes for key, buffer in on_meta.named_buffers() if key not in saved)
    if unsaved > _MAX_UNSAVED_BYTES:
        raise UserError(
            f"'{on_meta.name}' at image_px {on_meta.kwargs.get('image_px')} needs {unsaved >> 20:,} MiB of buffers",
            "Set a smaller image_px",
        )
    return backbone(on_meta.name, **on_meta.kwargs)  # pyright: ignore[reportArgumentType]


def _whole_numbers(value: Any) -> list[int]:
    if isinstance(value, list | tuple):
        return [number for each in value for number in _whole_numbers(each)]
    return [value] if isinstance(value, int) else []


class _TooManyModulesError(Exception):
    """The network has more modules than its weights allow."""


@contextlib.contextmanager
def _max_registrations(count: int) -> Iterator[None]:
    """Raise when this thread registers more than `count` submodules: a huge depth stops before it costs memory."""
    left, thread = count, threading.get_ident()

    def count_down(*_: Any) -> None:
        nonlocal left
        if threading.get_ident() == thread:
            left -= 1
            if left < 0:
                raise _TooManyModulesError

    hook = register_module_module_registration_hook(count_down)
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
    known = get_type_hints(built.__init__)
    known = {option: known[option] for option in inspect.signature(built).parameters if option != "patch_px"}
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {name}", option, known)
        value = list(value) if isinstance(value, tuple) else value
        ranges.convert(value, known[option], f"backbone_options.{option}")
