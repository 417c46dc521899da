"""Layers of a vision transformer that process several batches of different image sizes in one pass.

The tokens of all batches are packed in one tensor `[T D]`, sample after sample; `Shapes` says which tokens belong to
which sample. Norms and linear layers run on the packed tensor; only attention (which must not mix samples) and drop
path need the shapes. So a step with global and local crops is one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from opendino.core.compilation import compiled
from opendino.core.errors import UserError

Shapes = Sequence[tuple[int, int]]
"""(number of samples, tokens per sample) of each packed batch."""

DropMask = Tensor | list[Tensor] | None
"""How drop path changes a residual branch. Tensor `[T 1]`: the branch is multiplied by it. List of int64 `[K_i]`, one
per batch: the branch is computed only for these samples and scaled by B_i / K_i. None: no change."""

_Branch = Callable[[Tensor, Shapes], Tensor]
_WRITTEN_OUT = 512  # tokens up to which the attention weights may be kept for the backward pass


def pack(batches: Sequence[Tensor]) -> tuple[Tensor, Shapes]:
    """Batches `[B_i T_i D]` → packed tokens `[ΣB_i·T_i D]` and their shapes."""
    return torch.cat([batch.flatten(0, 1) for batch in batches]), [
        (batch.shape[0], batch.shape[1]) for batch in batches
    ]


def unpack(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """Inverse of `pack`: batches `[B_i T_i D]`, as views."""
    pieces = tokens.split([samples * length for samples, length in shapes])
    return [piece.unflatten(0, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def masked(patches: Tensor, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
    """Patch tokens with the masked ones replaced by the mask token `[1 1 D]`.

    Args:
        patches: `[B N D]` or `[B rows columns D]`, before position embeddings.
        mask: bool `[B N]`, True for masked patches; None for no change.
        mask_token: None is allowed only without a mask.
    """
    if mask is None:
        return patches
    assert mask_token is not None, "call learn_mask_token() first"
    flat = patches.flatten(1, -2)  # [B N D]
    assert mask.shape == flat.shape[:2], f"mask {tuple(mask.shape)} for patches {tuple(flat.shape[:2])}"
    return torch.where(mask.unsqueeze(-1), mask_token.to(flat.dtype), flat).view_as(patches)


def leading(tokens: Tensor, shapes: Shapes, count: int) -> tuple[Tensor, Shapes]:
    """Only the first `count` tokens of every sample, packed again."""
    return pack([batch[:, :count] for batch in unpack(tokens, shapes)])


def packed_indices(samples: Sequence[Tensor], shapes: Shapes) -> list[Tensor]:
    """Indices into the packed tensor of the tokens of some samples, int64 `[K_i]` per batch → `[K_i·T_i]` per batch."""
    indices, start = [], 0
    for chosen, (num_samples, length) in zip(samples, shapes, strict=True):
        within = torch.arange(length, device=chosen.device)
        indices.append((start + chosen.unsqueeze(1) * length + within).flatten())
        start += num_samples * length
    return indices


def bicubic_matrix(size: int, scale: Tensor, stored: int) -> Tensor:
    """Bicubic interpolation along one side as a matrix `[size stored]`, equal to PyTorch's `interpolate`.

    Args:
        size: Number of output values.
        scale: Output values per input value, scalar tensor. At 1 the matrix is exactly the identity.
        stored: Number of input values; the border value is repeated beyond the ends.
    """
    a = -0.75  # coefficient of the cubic convolution kernel (Keys 1981), the value PyTorch uses
    position = (torch.arange(size, dtype=scale.dtype, device=scale.device) + 0.5) / scale - 0.5
    taps = position.floor().unsqueeze(1) + torch.arange(-1, 3, dtype=scale.dtype, device=scale.device)
    x = (position.unsqueeze(1) - taps).abs()
    weights = torch.where(x <= 1, ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a)
    columns = torch.arange(stored, dtype=scale.dtype, device=scale.device)
    return (weights.unsqueeze(2) * (taps.clamp(0, stored - 1).unsqueeze(2) == columns)).sum(1)  # [size stored]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, a sample skips the branch with probability `rate`.

    Kept samples are scaled by 1 / (1 - rate), so the expected value is preserved.

    Attributes:
        on_subset: Compute the branch only for the kept samples, whose number is fixed (as in DINOv2). This saves the
            fraction `rate` of the computation.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.on_subset = rate, False

    def forward(self, tokens: Tensor, shapes: Shapes) -> DropMask:
        """Sample a `DropMask` for packed tokens `[T D]`, on their device."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        if self.on_subset:
            return [
                torch.rand(samples, device=tokens.device).argsort()[: max(1, round(samples * keep))]
                for samples, _ in shapes
            ]
        masks = [tokens.new_empty(samples, 1).bernoulli_(keep).expand(samples, length) for samples, length in shapes]
        return torch.cat([mask.flatten() for mask in masks]).div_(keep).unsqueeze(1)

    def extra_repr(self) -> str:
        """Text in the printed module."""
        return f"rate={self.rate:.3g}"


def drop_on_subset(network: nn.Module) -> None:
    """Set all `DropPath` modules of a network to compute branches for the kept samples only (`on_subset`).

    Raises:
        UserError: The network has no such modules.
    """
    modules = [module for module in network.modules() if isinstance(module, DropPath)]
    if not modules:
        raise UserError(
            "This backbone cannot compute its branches for a subset of the samples",
            "Turn --drop-path-on-subset off, or use vit_tiny, vit_small or vit_base",
        )
    for module in modules:
        module.on_subset = True


class PatchEmbed(nn.Module):
    """Patch embedding: one token per patch, row by row."""

    def __init__(self, patch_px: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_px, stride=patch_px)

    def forward(self, images: Tensor) -> Tensor:
        """`[B C H W]` → `[B N D]`; image sides must be multiples of `patch_px` (callers check this)."""
        return self.proj(images).flatten(2).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v for `[B heads T D]`.

    Written out where it is trained in 16 bits on a CPU: torch's fused backward pass takes five times as long there.
    """
    if q.device.type == "cpu" and q.dtype.itemsize == 2 and q.requires_grad and k.shape[-2] <= _WRITTEN_OUT:
        return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1).to(v.dtype) @ v
    return scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) within each sample of the packed tokens."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, shapes: Shapes, num_queries: int | None = None) -> Tensor:
        """Packed `[T D]` → `[T D]`.

        Args:
            tokens: Packed, after the norm.
            shapes: Shapes of the packed batches.
            num_queries: Use only the first `num_queries` tokens of each sample as queries (keys and values are all
                tokens) and return only these; None for all.
        """
        if num_queries is None:
            heads = [self._heads(batch) for batch in unpack(self.qkv(tokens), shapes)]
        else:
            heads = self._heads_of_leading(tokens, shapes, num_queries)
        mixed = [attention(q, k, v).transpose(1, 2).flatten(2) for q, k, v in heads]
        return self.proj(pack(mixed)[0])

    def weights(self, tokens: Tensor, shapes: Shapes) -> list[Tensor]:
        """Attention weights of each batch, `[B_i heads T_i T_i]`; rows (queries) sum to 1."""
        heads = [self._heads(batch) for batch in unpack(self.qkv(tokens), shapes)]
        return [(q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) for q, k, _ in heads]

    def _heads(self, batch: Tensor) -> tuple[Tensor, ...]:
        """`[B T n·D]` → n tensors `[B heads T D/heads]`."""
        count = batch.shape[-1] // self.embed_dim
        return batch.unflatten(-1, (count, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def _heads_of_leading(self, tokens: Tensor, shapes: Shapes, num_queries: int) -> list[tuple[Tensor, ...]]:
        """Queries of the first `num_queries` tokens, keys and values of all tokens."""
        if type(self.qkv) is not nn.Linear:  # with an adapter (models/lora.py) it is more than its weight
            qkv = [self._heads(batch) for batch in unpack(self.qkv(tokens), shapes)]
            return [(q[:, :, :num_queries], k, v) for q, k, v in qkv]
        sizes = [self.embed_dim, 2 * self.embed_dim]
        (weight_q, weight_kv), (bias_q, bias_kv) = self.qkv.weight.split(sizes), self.qkv.bias.split(sizes)
        few, few_shapes = leading(tokens, shapes, num_queries)
        queries = unpack(linear(few, weight_q, bias_q), few_shapes)
        keys_values = unpack(linear(tokens, weight_kv, bias_kv), shapes)
        return [(*self._heads(q), *self._heads(kv)) for q, kv in zip(queries, keys_values, strict=True)]


class Mlp(nn.Module):
    """MLP of a block: linear, exact GELU, linear, for each token."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[T D]` → `[T D]`."""
        return self.fc2(gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each with a residual connection."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, shapes: Shapes, num_queries: int | None = None) -> Tensor:
        """Packed `[T D]` → `[T D]`, or with `num_queries` only the first `num_queries` tokens of each sample.

        The other tokens are not computed. In a last block of which only CLS is used, this saves five sixths of the
        computation.
        """
        out_shapes = shapes if num_queries is None else [(samples, num_queries) for samples, _ in shapes]
        # Random numbers are drawn outside the compiled function, so that all blocks share one compiled function.
        return self._forward(
            tokens,
            shapes,
            out_shapes,
            num_queries,
            self.drop_path(tokens, out_shapes),
            self.drop_path(tokens, out_shapes),
        )

    @compiled
    def _forward(
        self,
        tokens: Tensor,
        shapes: Shapes,
        out_shapes: Shapes,
        num_queries: int | None,
        first: DropMask,
        second: DropMask,
    ) -> Tensor:
        residual = tokens if num_queries is None else leading(tokens, shapes, num_queries)[0]
        residual = _add(
            residual, out_shapes, tokens, shapes, lambda x, kept: self.attn(self.norm1(x), kept, num_queries), first
        )
        return _add(residual, out_shapes, residual, out_shapes, lambda x, _: self.mlp(self.norm2(x)), second)


def _add(
    residual: Tensor, out_shapes: Shapes, tokens: Tensor, shapes: Shapes, branch: _Branch, drop_mask: DropMask
) -> Tensor:
    """Packed residual `[T' D]` + branch of packed tokens `[T D]`, with drop path applied to the branch."""
    if drop_mask is None:
        return residual + branch(tokens, shapes)
    if isinstance(drop_mask, Tensor):
        return residual + branch(tokens, shapes) * drop_mask
    # A subset of samples: gather their tokens, compute the branch, scatter-add the result.
    counts = [samples.shape[0] for samples in drop_mask]
    kept_shapes = [(count, length) for count, (_, length) in zip(counts, shapes, strict=True)]
    indices = packed_indices(drop_mask, shapes)
    output = branch(tokens.index_select(0, torch.cat(indices)), kept_shapes).to(residual.dtype)  # [ΣK_i·T'_i D]
    if out_shapes != shapes:
        indices = packed_indices(drop_mask, out_shapes)
    pieces = output.split([count * length for count, (_, length) in zip(counts, out_shapes, strict=True)])
    residual = residual.clone()
    for index, piece, count, (samples, _) in zip(indices, pieces, counts, shapes, strict=True):
        residual.index_add_(0, index, piece, alpha=samples / count)
    return residual
