"""Vision transformer (Dosovitskiy et al. 2021) of DINO, for any input size; several sizes in one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.core.types import Features
from opendino.models.vit_layers import Block, PatchEmbed, Shapes, bicubic_matrix, masked, pack, unpack

SIZES: dict[str, dict[str, int]] = {
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}


class VisionTransformer(Backbone):
    """ViT with a class token, optional registers (Darcet et al. 2024) and pre-norm blocks.

    The token order is CLS, registers, patches row by row. State-dict keys are those of DINO v1 and timm. Image sides
    may be any multiple of `patch_px`; position embeddings are resampled to the input size.

    Args:
        image_px: Image side in pixels that `pos_embed` is stored for.
        patch_px: Patch side in pixels.
        in_chans: C, number of input channels.
        embed_dim: D, a multiple of `num_heads`.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP divided by D.
        num_registers: R, number of register tokens; they have no position embedding.
        drop_path: Stochastic depth rate of the last block; the rate rises linearly from 0 at the first block.

    Raises:
        UserError: `image_px` is not a multiple of `patch_px`, or D is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        *,
        image_px: int = 224,
        patch_px: int = 16,
        in_chans: int = 3,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_registers: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.in_chans, self.embed_dim = in_chans, embed_dim
        self.patch_px, self.num_registers = patch_px, num_registers
        self.native_grid = self._grid(image_px, image_px)
        self.name = f"vit/{patch_px}"
        self.kwargs = {
            "image_px": image_px, "in_chans": in_chans, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads,
            "mlp_ratio": mlp_ratio, "num_registers": num_registers, "drop_path": drop_path,
        }  # fmt: skip

        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.native_grid[0] * self.native_grid[1], embed_dim))
        if num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, num_registers, embed_dim))
        self.patch_embed = PatchEmbed(patch_px, in_chans, embed_dim)
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self._initialize()

    def forward(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, tokens: bool = False
    ) -> list[Tensor] | list[Features]:
        """CLS tokens after the final norm, or all tokens; all batches in one pass.

        Args:
            images: Batches float `[B_i C H_i W_i]`, normalized; batches may differ in size.
            masks: Per batch bool `[B_i N_i]`, True for patches to replace by `mask_token`, or None.
            tokens: Whether to return all tokens; else the last block computes those of CLS only.

        Returns:
            One tensor `[B_i D]` per batch, or its `Features`.

        Raises:
            UserError: A side is not a multiple of `patch_px`.
        """
        packed, shapes = self._embed(images, masks)  # [ΣB_i·T_i D]
        for block in self.blocks[:-1]:
            packed = block(packed, shapes)
        if tokens:
            outputs = unpack(self.norm(self.blocks[-1](packed, shapes)), shapes)  # [B_i T_i D] each
            return [self._features(x, batch) for x, batch in zip(outputs, images, strict=True)]
        cls = self.blocks[-1](packed, shapes, num_queries=1)  # [ΣB_i D]; the other tokens are not used
        return list(self.norm(cls).split([samples for samples, _ in shapes]))

    def features(self, images: Tensor) -> Features:
        """All tokens of the last block after the final norm, for images `[B C H W]`."""
        return self.intermediate(images, 1)[0]

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def intermediate(self, images: Tensor, n: int) -> list[Features]:
        """Tokens of the last `n` blocks, see `Backbone.intermediate`."""
        if n > len(self.blocks):
            return super().intermediate(images, n)
        tokens, shapes = self._embed([images])
        outputs = [tokens := block(tokens, shapes) for block in self.blocks][-n:]
        return [self._features(unpack(self.norm(output), shapes)[0], images) for output in outputs]

    def learn_mask_token(self) -> None:
        """Add the mask token."""
        self.mask_token = nn.Parameter(torch.zeros_like(self.cls_token))

    def attention(self, images: Tensor) -> Tensor:
        """Self-attention weights of the last block, `[B heads T T]` with T = 1 + R + N; row 0 is that of CLS."""
        tokens, shapes = self._embed([images])
        for block in self.blocks[:-1]:
            tokens = block(tokens, shapes)
        last: Any = self.blocks[-1]
        return last.attn.weights(last.norm1(tokens), shapes)[0]

    def stages(self) -> list[list[str]]:
        """Parameter names by depth: embeddings, then each block; the final norm is in the last block, as in timm."""
        names = [name for name, _ in self.named_parameters()]
        blocks = [[name for name in names if name.startswith(f"blocks.{i}.")] for i in range(len(self.blocks))]
        blocks[-1] += [name for name in names if name.startswith("norm.")]
        return [[name for name in names if not name.startswith(("blocks.", "norm."))], *blocks]

    def stored_for(self, image_px: int) -> VisionTransformer:
        """A copy with position embeddings stored for another image size; its output is equal at that size only."""
        other = copy.deepcopy(self)
        other.native_grid, other.kwargs = self._grid(image_px, image_px), {**self.kwargs, "image_px": image_px}
        other.pos_embed = nn.Parameter(self._positions(other.native_grid).detach().clone())
        return other

    def transformer_blocks(self) -> list[nn.Module]:
        """All blocks."""
        return list(self.blocks)

    def _features(self, tokens: Tensor, images: Tensor) -> Features:
        """The tokens `[B 1+R+N D]` of images `[B C H W]` by kind."""
        first_patch = 1 + self.num_registers
        grid = self._grid(*images.shape[2:])
        return Features(tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:], grid)

    def _embed(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> tuple[Tensor, Shapes]:
        """Batches of images `[B_i C H_i W_i]` → packed tokens `[ΣB_i·T_i D]` with positions, and their shapes."""
        return pack([self._tokens(*each) for each in zip(images, masks or [None] * len(images), strict=True)])

    def _tokens(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images `[B C H W]` → tokens `[B 1+R+N D]`, with position embeddings for CLS and patches."""
        positions = self._positions(self._grid(*images.shape[2:]))
        cls = (self.cls_token + positions[:, :1]).expand(images.shape[0], -1, -1)
        patches = masked(self.patch_embed(images), mask, self.mask_token) + positions[:, 1:]
        registers = [self.reg_token.expand(images.shape[0], -1, -1)] if self.num_registers else []
        return torch.cat([cls, *registers, patches], dim=1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of patches, `[1 1+N D]`."""
        return resampled_positions(self.pos_embed, self.native_grid, grid)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of this size in pixels."""
        p = self.patch_px
        if height % p or width % p or not height or not width:
            near_h, near_w = (max(p, round(side / p) * p) for side in (height, width))
            raise UserError(
                f"Images of {height}×{width} px cannot be cut into patches of {p} px",
                f"Make each side a multiple of {p}, e.g. {near_h}×{near_w}",
            )
        return height // p, width // p

    def _initialize(self) -> None:
        """Initialize as DINO v1: truncated normal (std 0.02), zero biases; patch projection as in PyTorch."""
        for tokens in (self.pos_embed, self.cls_token):
            nn.init.trunc_normal_(tokens, std=0.02)
        if self.num_registers:
            nn.init.normal_(self.reg_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def resampled_positions(stored: Tensor, native_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Resample position embeddings to another grid, as DINO v1 and DINOv2 without registers do.

    Bicubic without antialiasing, with the scale (n + 0.1) / n₀ instead of n / n₀. The 0.1 was added in DINO v1 against
    rounding down; it shifts the sampled positions (results differ by up to a standard deviation of an untrained
    embedding), so it must stay for results equal to the original.

    Args:
        stored: `[1 1+N D]`, the embedding of CLS first.
        native_grid: (rows, columns) of the N stored patches.
        grid: (rows, columns) to resample to.

    Returns:
        `[1 1+N' D]`.
    """
    if torch.compiler.is_exporting():
        return _positions_for_dynamic_grid(stored, native_grid, grid)
    if grid == native_grid:
        return stored
    cls, patches = stored[:, :1], stored[:, 1:]
    scale = [(side + 0.1) / native for side, native in zip(grid, native_grid, strict=True)]
    square = patches.mT.unflatten(2, native_grid)  # [1 D rows₀ columns₀]
    resampled = interpolate(square, scale_factor=scale, mode="bicubic")  # [1 D rows columns]
    assert resampled.shape[2:] == grid, f"positions have the grid {tuple(resampled.shape[2:])}, expected {grid}"
    return torch.cat([cls, resampled.flatten(2).mT], dim=1)


def _positions_for_dynamic_grid(stored: Tensor, native_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """`resampled_positions` for an exported graph with dynamic grid size: no Python branch depends on the size."""
    cls, patches = stored[:, :1], stored[0, 1:].unflatten(0, native_grid)
    # Sizes as tensors, so that the exported graph computes them from the input.
    sizes = [stored.new_ones(side).sum() for side in grid]
    is_native = (sizes[0] == native_grid[0]) & (sizes[1] == native_grid[1])
    rows, columns = (
        bicubic_matrix(side, torch.where(is_native, 1.0, (size + 0.1) / stored_side), stored_side)
        for side, size, stored_side in zip(grid, sizes, native_grid, strict=True)
    )
    resampled = torch.einsum("ri,cj,ijd->rcd", rows, columns, patches)
    return torch.cat([cls, resampled.flatten(0, 1).unsqueeze(0)], dim=1)
