"""Start a network from the weights of another: other image size, patch size, number of channels, added registers."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from opendino.core.contracts import Backbone
from opendino.models.weights import load_weights


def adapt(weights: Backbone, network: Backbone, source: str) -> list[str]:
    """Copy weights into a network of the same widths and depth.

    - *Image size*: position embeddings are resampled to the network's grid (bicubic, antialiased).
    - *Patch size*: the patch projection is resampled so that it answers to enlarged patches as the old one did to the
      old ones (pseudo-inverse of the resizing; Beyer et al. 2023, FlexiViT, section 3.4).
    - *Channels*: the filters in turn, scaled, and what is lacking spread evenly, so that a gray image gives the same
      answer as before; to one channel that is their sum.
    - *Registers* that the weights lack start fresh.

    Args:
        weights: Where they come from.
        network: Changed in place.
        source: What the weights are called, for messages.

    Returns:
        What was changed on the way, one line each.

    Raises:
        UserError: The two differ in anything else; says in which keys and shapes.
    """
    state, own, changed = weights.state_dict(), network.state_dict(), []
    for key, wanted in own.items():
        if key not in state and key.endswith("reg_token"):
            state[key] = wanted
            changed.append(f"{wanted.shape[1]} registers start fresh")
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


def _channels(filters: Tensor, number: int) -> Tensor:
    before = filters.shape[1]
    turns = filters.repeat(1, -(-number // before), 1, 1)[:, :number] * (before / number)
    return turns + (filters.sum(1, keepdim=True) - turns.sum(1, keepdim=True)) / number


def _patches(filters: Tensor, size: Any) -> Tensor:
    from timm.layers.patch_embed import resample_patch_embed  # timm takes seconds to import

    return resample_patch_embed(filters, list(size))


def _positions(positions: Tensor, old: int, new: int, prefix: int) -> Tensor:
    from timm.layers.pos_embed import resample_abs_pos_embed

    return resample_abs_pos_embed(positions, [new, new], [old, old], num_prefix_tokens=prefix)


def _prefix(network: Backbone) -> int:
    """Positions that belong to no patch."""
    model: Any = getattr(network, "model", None)
    if model is None:
        return 1  # ours: CLS
    return 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 0))
