"""The parts of a vision transformer, written for several batches of different sizes at once.

All tokens of all batches lie packed in one tensor `[T D]`, sample after sample, and `Shapes` says whose they are.
Norms and linear layers never ask; only attention (which must not cross samples) and drop path do. So a step with
global and local crops is one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from opendino.core.compilation import compiled
from opendino.core.errors import UserError

Shapes = Sequence[tuple[int, int]]
"""(samples, tokens per sample) of each packed batch."""

Draw = Tensor | list[Tensor] | None
"""What drop path does to a branch: factors `[T 1]` to multiply it with; of each batch the samples int64 `[K_i]` for
which alone it is worked out, scaled by B_i / K_i; or nothing."""

_Branch = Callable[[Tensor, Shapes], Tensor]


def pack(batches: Sequence[Tensor]) -> tuple[Tensor, Shapes]:
    """Batches `[B_i T_i D]` → all their tokens `[ΣB_i·T_i D]`, and whose they are."""
    return torch.cat([batch.flatten(0, 1) for batch in batches]), [
        (batch.shape[0], batch.shape[1]) for batch in batches
    ]


def unpack(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """The inverse of `pack`, as views."""
    pieces = tokens.split([samples * length for samples, length in shapes])
    return [piece.unflatten(0, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def leading(tokens: Tensor, shapes: Shapes, count: int) -> tuple[Tensor, Shapes]:
    """Only the first `count` tokens of every sample, packed again."""
    return pack([batch[:, :count] for batch in unpack(tokens, shapes)])


def rows(samples: Sequence[Tensor], shapes: Shapes) -> list[Tensor]:
    """Where the tokens of some samples of each batch, int64 `[K_i]`, lie in the packed tensor: `[K_i·T_i]` each."""
    found, start = [], 0
    for chosen, (number, length) in zip(samples, shapes, strict=True):
        within = torch.arange(length, device=chosen.device)
        found.append((start + chosen.unsqueeze(1) * length + within).flatten())
        start += number * length
    return found


def bicubic(size: int, scale: Tensor, stored: int) -> Tensor:
    """`torch.nn.functional.interpolate(mode="bicubic")` along one side, as a matrix `[size stored]` to multiply with.

    Args:
        size: How many samples to take.
        scale: Samples per stored value, scalar. At 1 the matrix is exactly the identity.
        stored: How many values there are; beyond the ends the last one goes on.
    """
    a = -0.75  # of the cubic convolution (Keys 1981), as PyTorch has it
    position = (torch.arange(size, dtype=scale.dtype, device=scale.device) + 0.5) / scale - 0.5
    taps = position.floor().unsqueeze(1) + torch.arange(-1, 3, dtype=scale.dtype, device=scale.device)
    x = (position.unsqueeze(1) - taps).abs()
    weights = torch.where(x <= 1, ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a)
    places = torch.arange(stored, dtype=scale.dtype, device=scale.device)
    return (weights.unsqueeze(2) * (taps.clamp(0, stored - 1).unsqueeze(2) == places)).sum(1)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, a sample skips the branch with probability `rate`.

    Survivors are scaled by 1 / (1 - rate), so the mean is preserved.

    Attributes:
        on_subset: The branch is worked out for the survivors alone, whose number is fixed (as DINOv2 does): a share
            `rate` of its work is saved.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.on_subset = rate, False

    def forward(self, tokens: Tensor, shapes: Shapes) -> Draw:
        """A fresh draw for the samples of packed `[T D]`, on their device: see `Draw`."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        if self.on_subset:
            return [
                torch.rand(samples, device=tokens.device).argsort()[: max(1, round(samples * keep))]
                for samples, _ in shapes
            ]
        draws = [tokens.new_empty(samples, 1).bernoulli_(keep).expand(samples, length) for samples, length in shapes]
        return torch.cat([draw.flatten() for draw in draws]).div_(keep).unsqueeze(1)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"rate={self.rate:.3g}"


def drop_on_subset(network: nn.Module) -> None:
    """From now on its blocks work out each branch for the samples that drop path leaves alone.

    Raises:
        UserError: It has no blocks that can.
    """
    found = [module for module in network.modules() if isinstance(module, DropPath)]
    if not found:
        raise UserError(
            "This backbone cannot work out its branches for a part of the samples",
            "Leave --drop-path-on-subset off, or use vit_tiny, vit_small or vit_base",
        )
    for each in found:
        each.on_subset = True


class PatchEmbed(nn.Module):
    """One token a patch, row by row."""

    def __init__(self, patch_px: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_px, stride=patch_px)

    def forward(self, images: Tensor) -> Tensor:
        """`[B C H W]` → `[B N D]`; rows and columns that fill no patch would be cut off, so callers refuse them."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) within each sample of the packed tokens."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, shapes: Shapes, asking: int | None = None) -> Tensor:
        """Packed `[T D]` → `[T D]`.

        Args:
            tokens: Packed, normed.
            shapes: Whose they are.
            asking: Only the first so many tokens of each sample attend (to all of them); None for all. The result
                then holds just those.
        """
        if asking is None:
            heads = [self._heads(batch) for batch in unpack(self.qkv(tokens), shapes)]
        else:
            heads = self._heads_of_few(tokens, shapes, asking)
        mixed = [scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) for q, k, v in heads]
        return self.proj(pack(mixed)[0])

    def weights(self, tokens: Tensor, shapes: Shapes) -> list[Tensor]:
        """How much each token (row) takes from each: `[B heads T_i T_i]` a batch, rows summing to 1."""
        heads = [self._heads(batch) for batch in unpack(self.qkv(tokens), shapes)]
        return [(q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) for q, k, _ in heads]

    def _heads(self, batch: Tensor) -> tuple[Tensor, ...]:
        """`[B T n·D]` → n tensors `[B heads T D/heads]`."""
        count = batch.shape[-1] // self.embed_dim
        return batch.unflatten(-1, (count, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def _heads_of_few(self, tokens: Tensor, shapes: Shapes, asking: int) -> list[tuple[Tensor, ...]]:
        """Queries of the leading tokens, keys and values of all."""
        sizes = [self.embed_dim, 2 * self.embed_dim]
        (weight_q, weight_kv), (bias_q, bias_kv) = self.qkv.weight.split(sizes), self.qkv.bias.split(sizes)
        few, few_shapes = leading(tokens, shapes, asking)
        queries = unpack(linear(few, weight_q, bias_q), few_shapes)
        keys_values = unpack(linear(tokens, weight_kv, bias_kv), shapes)
        return [(*self._heads(q), *self._heads(kv)) for q, kv in zip(queries, keys_values, strict=True)]


class Mlp(nn.Module):
    """Linear, exact GELU, linear, token by token."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[T D]` → `[T D]`."""
        return self.fc2(gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to what came in."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, shapes: Shapes, asking: int | None = None) -> Tensor:
        """Packed `[T D]` → `[T D]`; with `asking`, only the first so many tokens of each sample come out.

        What the others would have become is then never computed: in a last block of which only CLS is used, five
        sixths of the work.
        """
        few = shapes if asking is None else [(samples, asking) for samples, _ in shapes]
        # Chance is drawn outside of what is compiled: every block then is the same function.
        return self._forward(tokens, shapes, few, asking, self.drop_path(tokens, few), self.drop_path(tokens, few))

    @compiled
    def _forward(
        self, tokens: Tensor, shapes: Shapes, few: Shapes, asking: int | None, first: Draw, second: Draw
    ) -> Tensor:
        residual = tokens if asking is None else leading(tokens, shapes, asking)[0]
        residual = _add(residual, few, tokens, shapes, lambda x, of: self.attn(self.norm1(x), of, asking), first)
        return _add(residual, few, residual, few, lambda x, _: self.mlp(self.norm2(x)), second)


def _add(residual: Tensor, few: Shapes, tokens: Tensor, shapes: Shapes, branch: _Branch, draw: Draw) -> Tensor:
    """Packed `[T' D]` plus what a branch makes of `[T D]`, less what drop path drops."""
    if draw is None:
        return residual + branch(tokens, shapes)
    if isinstance(draw, Tensor):
        return residual + branch(tokens, shapes) * draw
    counts = [samples.shape[0] for samples in draw]
    kept = [(count, length) for count, (_, length) in zip(counts, shapes, strict=True)]
    places = rows(draw, shapes)
    found = branch(tokens.index_select(0, torch.cat(places)), kept).to(residual.dtype)
    if few != shapes:
        places = rows(draw, few)
    pieces = found.split([count * length for count, (_, length) in zip(counts, few, strict=True)])
    residual = residual.clone()
    for where, piece, count, (samples, _) in zip(places, pieces, counts, shapes, strict=True):
        residual.index_add_(0, where, piece, alpha=samples / count)
    return residual
