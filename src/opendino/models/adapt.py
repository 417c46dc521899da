"""Initialize a network from the weights of another with a different image size, patch size, channels or registers."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from opendino.core.contracts import Backbone
from opendino.models.weights import load_weights


def adapt(weights: Backbone, network: Backbone, source: str) -> list[str]:
    """Copy weights into a network of the same width and depth.

    - *Image size*: position embeddings are resampled to the network's grid (bicubic, antialiased).
    - *Patch size*: the patch projection is resampled so that its output on resized patches equals the old output on
      the original patches (pseudo-inverse of the resizing; Beyer et al. 2023, FlexiViT, section 3.4).
    - *Channels*: filters are repeated cyclically and scaled, then shifted by a constant so that their sum is kept: a
      gray image gives the same output as before. With one channel this is the sum of the filters.
    - *Registers* missing from the weights keep their random initialization.

    Args:
        weights: The network to copy from.
        network: The network to change, in place.
        source: Name of the weights, for errors.

    Returns:
        The changes made, one line each.

    Raises:
        UserError: The networks differ in anything else; names the keys and shapes.
    """
    state, own, changed = weights.state_dict(), network.state_dict(), []
    for key, wanted in own.items():
        if key not in state and key.endswith("reg_token"):
            state[key] = wanted
            changed.append(f"{wanted.shape[1]} registers start from random weights")
            continue
        found = state.get(key)
        if found is None or found.shape == wanted.shape or found.ndim != wanted.ndim:
            continue
        if found.ndim == 4 and len(found) == len(wanted):
            if found.shape[1] != wanted.shape[1]:
                found = _channels(found, wanted.shape[1])
                changed.append(f"{key}: {state[key].shape[1]} channels became {wanted.shape[1]}")
            if found.shape[2:] != wanted.shape[2:] and key.endswith("patch_embed.proj.weight"):
                changed.append(f"{key}: patches of {found.shape[-1]} px became {wanted.shape[-1]} px")
                found = _patches(found, wanted.shape[2:])
        elif key.endswith("pos_embed") and found.shape[2] == wanted.shape[2]:
            prefix = _prefix(network)
            old, new = (math.isqrt(each.shape[1] - prefix) for each in (found, wanted))
            if old**2 + prefix == found.shape[1] and new**2 + prefix == wanted.shape[1]:
                changed.append(f"{key}: a grid of {old} × {old} became {new} × {new}")
                found = _positions(found, old, new, prefix)
        state[key] = found
    load_weights(network, state, source)
    return changed


def _channels(filters: Tensor, num_channels: int) -> Tensor:
    """Convolution weights `[D C h w]` → `[D num_channels h w]` with the same sum over channels."""
    before = filters.shape[1]
    repeated = filters.repeat(1, -(-num_channels // before), 1, 1)[:, :num_channels] * (before / num_channels)
    return repeated + (filters.sum(1, keepdim=True) - repeated.sum(1, keepdim=True)) / num_channels


def _patches(filters: Tensor, size: Any) -> Tensor:
    from timm.layers.patch_embed import resample_patch_embed  # timm takes seconds to import

    return resample_patch_embed(filters, list(size))


def _positions(positions: Tensor, old: int, new: int, prefix: int) -> Tensor:
    from timm.layers.pos_embed import resample_abs_pos_embed

    return resample_abs_pos_embed(positions, [new, new], [old, old], num_prefix_tokens=prefix)


def _prefix(network: Backbone) -> int:
    """Number of position embeddings before those of the patches."""
    model: Any = getattr(network, "model", None)
    if model is None:
        return 1  # ours: CLS
    return 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 0))
