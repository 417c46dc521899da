"""Any model of timm as a `Backbone`. timm is imported only when a model is built: the import takes seconds."""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError, first_line, unknown
from opendino.core.types import Features
from opendino.models.vit import SIZES, resampled_positions
from opendino.models.vit_layers import masked


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    `Features.cls` is the input of timm's own classifier: the CLS token after the final norm for vision transformers
    with `global_pool="token"`, the pooled feature map for others. State-dict keys are timm's own with the prefix
    `model.`.

    Args:
        name: A name of `timm.list_models()`, with or without a pretrained tag; `hf-hub:…`; or a ResNet followed by
            `/3x3`: its stem becomes one 3×3 convolution of stride 1 without max-pooling, for images of about 32 to
            64 px (He et al. 2016, section 4.2).
        image_px: Image side in pixels of the position embeddings; None for the model's own. Convolutional networks
            ignore it.
        drop_path: Stochastic depth rate; model families without stochastic depth ignore it.
        pretrained: Load timm's pretrained weights.
        position_resampling: How position embeddings are resampled to other image sizes. "timm": bicubic, antialiased,
            by size. "dinov2": bicubic, not antialiased, by the scale (n + 0.1) / n₀, as in the original DINOv2
            without registers.
        **kwargs: Passed to `timm.create_model`, e.g. `in_chans`, `global_pool`.

    Raises:
        UsageError: Unknown name or option, or `/3x3` for a network without a ResNet stem.
        UserError: The pretrained weights could not be downloaded.
    """

    def __init__(
        self,
        name: str,
        *,
        image_px: int | None = 224,
        drop_path: float = 0.0,
        pretrained: bool = False,
        position_resampling: str = "timm",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        timm_name = name.removesuffix("/3x3")
        if files := kwargs.keys() & {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}:
            # model descriptions are untrusted: they must not name files, some of which timm unpickles
            raise UsageError(f"Backbone {name} takes no option '{min(files)}'", "Load weights with --init MODEL")
        saved_name, arguments = name, {}
        if timm_name.startswith("hf-hub:"):  # the saved name and kwargs must rebuild it offline
            config, architecture, arguments = _hub_config(timm_name)
            saved_name, image_px = name.replace(timm_name, architecture), image_px or config["input_size"][-1]
        image_px = image_px or _published_config(timm_name)["input_size"][-1]
        self.in_chans = int(kwargs.get("in_chans", arguments.get("in_chans", 3)))
        self.name, self.kwargs = saved_name, {**arguments, **kwargs, "image_px": image_px, "drop_path": drop_path}
        optional = {"img_size": image_px, "dynamic_img_size": True, "drop_path_rate": drop_path}
        self.model = _create(timm_name, pretrained, kwargs, optional)
        if name != timm_name:
            _small_stem(self.model, name)
        if position_resampling != "timm":
            _resample_as(position_resampling, self.model, name)
            self.kwargs["position_resampling"] = position_resampling
        self.embed_dim = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)
        self.cls_name = "CLS" if getattr(self.model, "global_pool", "") == "token" else "global average"

    def forward(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, tokens: bool = False
    ) -> list[Tensor] | list[Features]:
        """Batches float `[B_i C H_i W_i]` → `[B_i D]`, or all tokens; one forward pass per batch.

        Raises:
            NotImplementedError: The tokens do not form one grid of patches.
        """
        finals = [self._final(*each) for each in zip(images, masks or [None] * len(images), strict=True)]
        if tokens:
            return [self._features(final, batch) for final, batch in zip(finals, images, strict=True)]
        return [self._pooled(final) for final in finals]

    def features(self, images: Tensor) -> Features:
        """All tokens for images `[B C H W]`; patches are the patch tokens or the positions of the last feature map.

        Patches may be narrower than D where timm widens the features after pooling (MobileNetV3).

        Raises:
            NotImplementedError: The tokens do not form one grid of patches.
        """
        return self._features(self._final(images), images)

    def _features(self, final: Tensor, images: Tensor) -> Features:
        cls = self._pooled(final)
        if final.ndim == 4:
            final = final if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else final.permute(0, 2, 3, 1)
            patches = final.flatten(1, 2)  # [B h·w D]
            return Features(cls, patches[:, :0], patches, (final.shape[1], final.shape[2]))
        num_prefix = getattr(self.model, "num_prefix_tokens", 0)
        first_register = min(num_prefix, int(getattr(self.model, "has_class_token", True)))
        patches, (height, width) = final[:, num_prefix:], images.shape[2:]
        rows = round((patches.shape[1] * height / width) ** 0.5)  # patches are square
        if not rows or patches.shape[1] % rows:
            raise NotImplementedError(
                f"{self.name} has {patches.shape[1]} patch tokens, which form no grid over {height}×{width} px"
            )
        grid = rows, patches.shape[1] // rows
        return Features(cls, final[:, first_register:num_prefix], patches, grid)

    @property
    def num_layers(self) -> int:
        """Number of blocks of a vision transformer, 1 for other networks."""
        return len(self.model.blocks) if self._is_vit() else 1

    def intermediate(self, images: Tensor, n: int) -> list[Features]:
        """Tokens of the last `n` blocks, see `Backbone.intermediate`."""
        if n == 1 or n > self.num_layers:
            return super().intermediate(images, n)
        has_prefix = self.model.num_prefix_tokens > 0
        with self._naming_size(images):
            layers = self.model.forward_intermediates(
                images, indices=n, norm=True, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=has_prefix
            )
        finals = [torch.cat(layer[::-1], 1) if has_prefix else layer for layer in layers]  # timm: patches, prefix
        return [self._features(final, images) for final in finals]

    def learn_mask_token(self) -> None:
        """Add the mask token to a vision transformer."""
        if not self._is_vit():
            super().learn_mask_token()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.model.embed_dim))

    def attention(self, images: Tensor) -> Tensor:
        """Self-attention of the last block of a vision transformer, `[B heads T T]`.

        Raises:
            NotImplementedError: The last block has no standard multi-head self-attention (Dosovitskiy et al. 2021).
        """
        # in the oldest supported timm the class is only importable from here
        from timm.models import beit, eva
        from timm.models.vision_transformer import Attention  # pyright: ignore[reportPrivateImportUsage]

        kinds = (Attention, eva.EvaAttention, beit.Attention)  # DINOv3 is an EVA
        blocks = getattr(self.model, "blocks", None)
        last: Any = getattr(blocks[-1], "attn", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
        if not any(isinstance(last, kind) for kind in kinds):
            raise NotImplementedError(f"{self.name} has no standard self-attention in its last block")
        captured: list[Tensor] = []
        was_fused, last.fused_attn = last.fused_attn, False  # the fused kernel does not return its weights
        hook = last.attn_drop.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
        try:
            self._final(images)
        finally:
            hook.remove()
            last.fused_attn = was_fused
        return captured[0]

    def stages(self) -> list[list[str]]:
        """Parameter names by depth, grouped by timm's `group_parameters`."""
        from timm.models import group_parameters

        groups = group_parameters(self.model, self.model.group_matcher(coarse=False))
        first, *others = [[f"model.{name}" for name in groups[depth]] for depth in sorted(groups)]
        return [["mask_token", *first] if self.mask_token is not None else first, *others]

    def stored_for(self, image_px: int) -> TimmBackbone:
        """A network whose position embeddings are stored for another image size, with equal output at that size only.

        Needed only with `position_resampling="dinov2"`, which timm does not know; otherwise returns this network.
        """
        if "position_resampling" not in self.kwargs:
            return self
        kwargs: dict[str, Any] = {key: self.kwargs[key] for key in self.kwargs if key != "position_resampling"}
        other, model = TimmBackbone(self.name, **{**kwargs, "image_px": image_px}), self.model
        positions = resampled_positions(
            model.pos_embed, tuple(model.patch_embed.grid_size), tuple(other.model.patch_embed.grid_size)
        )
        other.model.load_state_dict({**model.state_dict(), "pos_embed": positions.detach()})
        return other.train(self.training).requires_grad_(model.pos_embed.requires_grad)

    def transformer_blocks(self) -> list[nn.Module]:
        """Blocks of timm's vision transformers and similar networks; empty if the blocks contain BatchNorm."""
        blocks = getattr(self.model, "blocks", None)
        if not isinstance(blocks, nn.Sequential | nn.ModuleList):
            return []
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in blocks.modules()):
            return []
        return list(blocks)

    def _is_vit(self) -> bool:
        from timm.models import Beit, Eva, VisionTransformer

        return isinstance(self.model, VisionTransformer | Eva | Beit)  # DINOv3 is an EVA

    def _final(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        with self._masking(mask), self._naming_size(images):
            return self.model.forward_features(images)

    @contextlib.contextmanager
    def _masking(self, mask: Tensor | None) -> Iterator[None]:
        """Replace masked patches where timm embeds them, before position embeddings."""
        if mask is None:
            yield
            return
        replacing = self.model.patch_embed.register_forward_hook(
            lambda _, __, patches: masked(patches, mask, self.mask_token)
        )
        try:
            yield
        finally:
            replacing.remove()

    @contextlib.contextmanager
    def _naming_size(self, images: Tensor) -> Iterator[None]:
        try:
            yield
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "size" not in str(error):
                raise
            # timm's fixed-size models reject another size this way, torch a feature map that is too small.
            size = "×".join(map(str, images.shape[2:]))
            raise UserError(
                f"{self.name} cannot process images of {size} px: {error}", "Change the crop size"
            ) from error

    def _pooled(self, final: Tensor) -> Tensor:
        return self.model.forward_head(final, pre_logits=True)


def published_preprocessing(name: str) -> dict[str, Any]:
    """Preprocessing of timm's pretrained weights of that name, with the keys of `models.load.preprocessing`."""
    return preprocessing(_published_config(name))


def described_preprocessing(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
    """Preprocessing from timm's `pretrained_cfg` (config.json), with the keys of `models.load.preprocessing`."""
    from timm.data.config import resolve_data_config

    return preprocessing(resolve_data_config(pretrained_cfg=pretrained_cfg))


def preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """Convert timm's `resolve_data_config` to the keys of `models.load.preprocessing`."""
    image_px = config["input_size"][-1]
    return {
        "image_px": image_px,
        "resize_px": int(image_px / config["crop_pct"]),
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def published_classifier(name: str, embed_dim: int) -> nn.Linear:
    """Load the classifier of timm's pretrained weights of that name.

    Raises:
        UserError: There is no linear classifier on the pooled features.
    """
    found = _create(name, True, {"num_classes": None}, {}).get_classifier()
    if not isinstance(found, nn.Linear) or found.in_features != embed_dim:
        raise UserError(f"timm:{name} has no linear classifier on its features", "Use its features instead")
    return found


def _published_config(name: str) -> dict[str, Any]:
    import timm
    from timm.data.config import resolve_data_config

    _check_name(name)
    config = timm.get_pretrained_cfg(name)
    return resolve_data_config(pretrained_cfg=config.to_dict() if config else {})


def _hub_config(name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """(data config, architecture, model arguments) of `hf-hub:…`; downloads its config.json."""
    from timm.data.config import resolve_data_config
    from timm.models import load_model_config_from_hf  # pyright: ignore[reportPrivateImportUsage]

    try:
        config, architecture, arguments = load_model_config_from_hf(name.removeprefix("hf-hub:"))
    except Exception as error:  # from the hub client, the network connection, or a config.json that is not timm's
        raise _download_error(name, error) from error
    left_out = {"img_size", "num_classes", "drop_path_rate"}  # set by `image_px`, always 0, and set by `drop_path`
    kept = {key: value for key, value in (arguments or {}).items() if key not in left_out}
    return resolve_data_config(pretrained_cfg=config), architecture, kept


def _download_error(name: str, error: Exception) -> UserError:
    return UserError(
        f"'{name}' could not be downloaded: {first_line(error).rstrip('.')}", "Check the name and the network"
    )


def _check_name(name: str) -> None:
    import timm

    if not name.startswith("hf-hub:") and not timm.is_model(name):
        ours = [f"{family}/16" for family in SIZES]
        every = [*ours, *timm.list_models()]
        raise unknown("backbone", name, every if difflib.get_close_matches(name, every, cutoff=0.5) else ours)


def _create(name: str, pretrained: bool, required: dict[str, Any], optional: dict[str, Any]) -> Any:
    """Create a timm model with all `required` options and those `optional` ones that its family accepts."""
    import timm

    _check_name(name)
    while True:
        try:
            return timm.create_model(name, pretrained=pretrained, **{"num_classes": 0, **optional, **required})
        except TypeError as error:  # timm has no API to list the options of a model family
            unexpected = re.search(r"unexpected keyword argument.*", str(error))  # MetaFormer names several
            refused = re.findall(r"'(\w+)'", unexpected[0]) if unexpected else []
            if wrong := [option for option in refused if option in required]:
                raise UsageError(f"Backbone {name} takes no option '{wrong[0]}'") from error
            if not optional.keys() & set(refused):
                raise
            optional = {key: value for key, value in optional.items() if key not in refused}
        except Exception as error:
            if not pretrained and not name.startswith("hf-hub:"):
                raise
            raise _download_error(name, error) from error


def _resample_as(rule: str, model: Any, name: str) -> None:
    """Patch a timm model so that it resamples position embeddings by the rule of DINOv2 instead of timm's."""
    if rule != "dinov2":
        raise unknown("position_resampling", str(rule), ("timm", "dinov2"))
    has_registers = getattr(model, "reg_token", None) is not None or getattr(model, "no_embed_class", True)
    if not getattr(model, "dynamic_img_size", False) or has_registers:
        raise UsageError(
            f"'{name}' does not resample its positions as DINOv2 without registers does",
            "Leave out position_resampling",
        )
    model._pos_embed = functools.partial(_pos_embed_dinov2, model)


def _pos_embed_dinov2(model: Any, patches: Tensor) -> Tensor:
    """Replacement of timm's `_pos_embed`: patches `[B rows columns D]` → tokens `[B 1+N D]` with positions."""
    rows, columns = patches.shape[1:3]
    positions = resampled_positions(model.pos_embed, tuple(model.patch_embed.grid_size), (rows, columns))
    tokens = torch.cat([model.cls_token.expand(len(patches), -1, -1), patches.flatten(1, 2)], dim=1)
    return model.pos_drop(tokens + positions)


def _small_stem(model: Any, name: str) -> None:
    """Replace a ResNet's 7×7 stride-2 stem and max-pooling by a 3×3 convolution of stride 1."""
    stem = getattr(model, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise UsageError(f"'{name}' has no standard ResNet stem to replace", "Use e.g. resnet18/3x3 or resnet50/3x3")
    model.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
