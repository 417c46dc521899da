"""Model folders of Hugging Face transformers: ViT, DINOv2 (with registers), DINOv3 (ViT, ConvNeXt), ResNet, timm's.

transformers' names for the same tensors are translated to those of DINO and torchvision, whose readers do the rest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from opendino.core import atomic_write
from opendino.core.errors import UserError, first_line
from opendino.core.ranges import Checked
from opendino.interop import architectures, compare_outputs, timm_folder
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.interop.formats import dino_v1, dinov2, torchvision
from opendino.interop.model_card import card
from opendino.models.load import Model
from opendino.models.load import preprocessing as usual_preprocessing
from opendino.models.timm_backbone import TimmBackbone
from opendino.models.vit import VisionTransformer

_DINOV2 = {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-6}
_FIXED: dict[str, dict[str, Any]] = {
    "vit": {"hidden_act": "gelu", "qkv_bias": True},
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": {"rope_theta": 100.0, "layer_norm_eps": 1e-5, "proj_bias": True, "mlp_bias": True},
    "dinov3_convnext": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "resnet": {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False},
}
"""Kinds of model, and the only values of their settings that the networks here have."""

_VIT = (
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(?=cls_token|mask_token|register_tokens)", ""),
    (r"^(encoder\.|model\.)?layer\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.(?=query|key|value))?", ".attn."),
    (r"\.attn\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attn\.([qkv])(uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<!attn)\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)
"""transformers' keys → the original's."""
_CONVNEXT = (
    (r"^model\.", ""),
    (r"^stages\.0\.downsample_layers\.", "stem."),
    (r"\.downsample_layers\.", ".downsample."),
    (r"\.layers\.", ".blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.layer_norm\.", ".norm."),
    (r"\.pointwise_conv(\d)\.", r".mlp.fc\1."),
    (r"^layer_norm\.", "head.norm."),
)
"""transformers' keys → timm's."""
_RESNET = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^classifier\.1\.", "fc."),
)


def recognizes(checkpoint: Checkpoint) -> bool:
    """config.json names a kind of model that is known here."""
    return (checkpoint.config or {}).get("model_type") in _FIXED


def read(checkpoint: Checkpoint) -> Imported:
    """A ViT becomes ours, and so does a DINOv2 whose layer scale is 1; others become timm's, ResNets too.

    ViTs whose layer norms have ε = 1e-12 are taken over with 1e-6, as DINO v1 was trained: its files at Hugging Face
    say the former. Poolers, mask tokens, and classifiers on more than CLS are left out.

    Raises:
        UserError: A setting that no network here has, an unknown or missing key, a wrong shape, or a number not finite.
    """
    config, source = checkpoint.config or {}, f"'{checkpoint.path}'"
    kind = str(config["model_type"])
    for setting, only in _FIXED[kind].items():
        if config.get(setting, only) != only:
            raise UserError(f"{source} has {setting} {config[setting]}; only {only} is possible", "Try --architecture")
    if kind == "vit" and config.get("layer_norm_eps", 1e-12) not in (1e-6, 1e-12):
        raise UserError(f"{source} has layer_norm_eps {config['layer_norm_eps']}; only 1e-6 is possible")
    if not isinstance(config.get("num_attention_heads", 12), int) or config.get("num_attention_heads", 12) < 1:
        raise UserError(f"{source} has num_attention_heads {config['num_attention_heads']}, no number of heads")
    state = {re.sub(rf"^({kind})\.", "", key): value for key, value in checkpoint.state.items()}
    read_as = {"resnet": _resnet, "vit": _plain, "dinov3_convnext": _convnext}.get(kind, _dinov2)
    imported = read_as(replace(checkpoint, tree=state, config=None), config)
    side = imported.networks["teacher"].kwargs["image_px"]
    wanted = _preprocessing(checkpoint.path) or usual_preprocessing(int(str(side)))
    return replace(imported, preprocessing=wanted, about=f"{imported.about}, from a {kind} of Hugging Face")


@dataclass(frozen=True)
class Config(Checked):
    """No flags."""


def write(model: Model, out: Path, config: Config) -> float:
    """Write a folder for `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained`, with a model card.

    ViTs become a `ViTModel`, with registers a `Dinov2WithRegistersModel` whose layer scale is 1; ResNets a
    `ResNetModel`; other models of timm a `TimmWrapperModel`. `pooler_output` is our feature in all of them: the pooler
    of `ViTModel` is the identity.

    Returns:
        The largest difference of features and patches, at the size of image that the model is used at.

    Raises:
        UserError: transformers has no such network, or loads another one.
    """
    model = timm_folder.at_its_size(model)
    own = model.backbone
    loading = (
        "from transformers import AutoImageProcessor, AutoModel\n"
        f'processor, model = (kind.from_pretrained("{out.name}") for kind in (AutoImageProcessor, AutoModel))\n'
        'features = model(**processor(image, return_tensors="pt")).pooler_output'
    )
    if isinstance(own, VisionTransformer):
        _write(out, _vit_config(own), _vit_state(own), model, card(model, "transformers", loading, _REMARKS))
    elif (described := _resnet_config(own)) is not None:
        assert isinstance(own, TimmBackbone)
        _write(out, described, _resnet_state(own.model), model, card(model, "transformers", loading, _CROP))
    else:
        timm_folder.write_folder(model, out, card(model, "transformers", loading, "It is a model of timm inside."))
    return _checked(model, out)


_CROP = (
    "Resizing by transformers rounds otherwise than opendino's, by up to two gray levels of 255; where the margin of "
    "the center crop is odd it may cut one pixel further left or up."
)
_REMARKS = (
    f"{_CROP}\n\n"
    "At other image sizes than that of training (`interpolate_pos_encoding=True`) transformers resamples position "
    "embeddings in its own way, and features differ from opendino's, which follow DINO v1."
)


def _checked(model: Model, out: Path) -> float:
    from transformers import AutoImageProcessor, AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        again, told = AutoModel.from_pretrained(out, output_loading_info=True)
        AutoImageProcessor.from_pretrained(out)
    except Exception as error:  # whatever transformers says of what it cannot build
        raise UserError(
            f"transformers cannot load {model.backbone.name}: {first_line(error)}", "Choose another --to"
        ) from error
    if wrong := [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]:
        raise UserError(f"transformers misplaces {len(wrong)} tensors, e.g. {wrong[0]}", "Choose another --to")
    images = compare_outputs.random_images(model)
    with torch.no_grad():
        found, theirs = model.features(images), again.eval()(images)
    ours, others = [found.cls], [theirs.pooler_output.flatten(1)]
    if isinstance(model.backbone, VisionTransformer):
        ours.append(found.patches)
        others.append(theirs.last_hidden_state[:, 1 + model.backbone.num_registers :])
    return compare_outputs.largest_difference(ours, others, "transformers")


def _write(out: Path, config: dict[str, Any], state: dict[str, Tensor], model: Model, readme: str) -> None:
    wanted = model.preprocessing
    processor = {
        "image_processor_type": "BitImageProcessor",  # the one whose steps are ours
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": wanted["resize_px"]},
        "resample": int(Image.Resampling[wanted["interpolation"].upper()]),
        "do_center_crop": True,
        "crop_size": {"height": wanted["image_px"], "width": wanted["image_px"]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": wanted["mean"],
        "image_std": wanted["std"],
    }
    out.mkdir()
    weights = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    atomic_write.write(out / "model.safetensors", safetensors.torch.save(weights, metadata={"format": "pt"}))
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        atomic_write.write(out / name, json.dumps(content, indent=2, allow_nan=False) + "\n")
    atomic_write.write(out / "README.md", readme)


def _vit_config(own: VisionTransformer) -> dict[str, Any]:
    kwargs: dict[str, Any] = own.kwargs
    block: Any = own.blocks[0]
    hidden = block.mlp.fc1.out_features
    config = {
        "hidden_size": own.embed_dim,
        "num_hidden_layers": len(own.blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": kwargs["image_px"],
        "patch_size": own.patch_px,
        "num_channels": kwargs.get("in_chans", 3),
        "qkv_bias": True,
    }
    if not own.num_registers:
        kind = {"model_type": "vit", "architectures": ["ViTModel"], "pooler_act": "linear"}
        return {**kind, **config, "intermediate_size": hidden}
    if hidden % own.embed_dim:
        raise UserError(
            f"transformers has no ViT with registers whose MLP is {hidden / own.embed_dim:.3g} times as wide",
            "Use --to timm",
        )
    kind = {"model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"]}
    ratio, registers = hidden // own.embed_dim, own.num_registers
    return {**kind, **config, "mlp_ratio": ratio, "num_register_tokens": registers, "layerscale_value": 1.0}


def _vit_state(own: VisionTransformer) -> dict[str, Tensor]:
    """Our weights by transformers' keys."""
    state, width = own.state_dict(), own.embed_dim
    plain = not own.num_registers
    found = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if plain:
        found |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    else:
        found |= {
            "embeddings.register_tokens": state["reg_token"],
            "embeddings.mask_token": torch.zeros(1, width),
        }
    names = {
        "norm1": "layernorm_before" if plain else "norm1",
        "norm2": "layernorm_after" if plain else "norm2",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense" if plain else "mlp.fc1",
        "mlp.fc2": "output.dense" if plain else "mlp.fc2",
    }
    for i in range(len(own.blocks)):
        mine, other = f"blocks.{i}", f"encoder.layer.{i}"
        for kind in ("weight", "bias"):
            for name, new in names.items():
                found[f"{other}.{new}.{kind}"] = state[f"{mine}.{name}.{kind}"]
            parts = state[f"{mine}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                found[f"{other}.attention.attention.{name}.{kind}"] = part
        if not plain:
            found |= {f"{other}.layer_scale{n}.lambda1": torch.ones(width) for n in (1, 2)}
    return found


_RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _resnet_config(own: nn.Module) -> dict[str, Any] | None:
    """config.json of a plain ResNet (He et al. 2016), None for anything else."""
    if not isinstance(own, TimmBackbone) or own.kwargs.keys() - {"image_px", "drop_path", "in_chans"}:
        return None
    depth = next((depth for depth in _RESNETS if own.name.partition(".")[0] == f"resnet{depth}"), None)
    if depth is None:
        return None
    widths = [64, 128, 256, 512]
    return {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": own.kwargs.get("in_chans", 3),
        "embedding_size": 64,
        "hidden_sizes": [4 * width for width in widths] if depth >= 50 else widths,
        "depths": list(_RESNETS[depth]),
        "layer_type": "bottleneck" if depth >= 50 else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def _resnet_state(network: nn.Module) -> dict[str, Tensor]:
    """Weights by transformers' keys."""
    found = {}
    for key, value in network.state_dict().items():
        key = re.sub(r"^conv1\.", "embedder.embedder.convolution.", key)
        key = re.sub(r"^bn1\.", "embedder.embedder.normalization.", key)
        key = re.sub(r"^layer(\d)\.(\d+)\.", lambda at: f"encoder.stages.{int(at[1]) - 1}.layers.{at[2]}.", key)
        key = re.sub(r"\.conv(\d)\.", lambda at: f".layer.{int(at[1]) - 1}.convolution.", key)
        key = re.sub(r"\.bn(\d)\.", lambda at: f".layer.{int(at[1]) - 1}.normalization.", key)
        key = key.replace(".downsample.0.", ".shortcut.convolution.")
        found[key.replace(".downsample.1.", ".shortcut.normalization.")] = value
    return found


def _renamed(key: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in patterns:
        key = re.sub(pattern, new, key)
    return key


def _resnet(checkpoint: Checkpoint, config: dict[str, Any]) -> Imported:
    state = {}
    for key, value in checkpoint.tree.items():
        key = re.sub(r"^encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda at: f"layer{int(at[1]) + 1}.{at[2]}.", key)
        key = re.sub(r"\.layer\.(\d)\.convolution\.", lambda at: f".conv{int(at[1]) + 1}.", key)
        key = re.sub(r"\.layer\.(\d)\.normalization\.", lambda at: f".bn{int(at[1]) + 1}.", key)
        state[_renamed(key, _RESNET)] = value
    return torchvision.read(replace(checkpoint, tree=state))


def _convnext(checkpoint: Checkpoint, config: dict[str, Any]) -> Imported:
    """DINOv3's ConvNeXt, whose feature is the mean of the last map after the last norm, as in timm's; of any size."""
    source = f"'{checkpoint.path}'"
    state = {_renamed(key, _CONVNEXT): value for key, value in checkpoint.tree.items()}
    told = config.get("image_size")
    network = architectures.convnext(state, source, told if isinstance(told, int) else 224)
    return Imported({"teacher": network}, {}, network.name)


def _plain(checkpoint: Checkpoint, config: dict[str, Any]) -> Imported:
    state = _vit_names(checkpoint.tree)
    linear = architectures.classifier(state, "classifier.", f"'{checkpoint.path}'")
    left_out = ("pooler.", "classifier.")
    state = {key: value for key, value in state.items() if not key.startswith(left_out) and key != "mask_token"}
    heads = {"num_heads": config.get("num_attention_heads", 12)}
    return replace(dino_v1.read(replace(checkpoint, tree=state, config=heads)), classifier=linear)


def _dinov2(checkpoint: Checkpoint, config: dict[str, Any]) -> Imported:
    """DINOv2 and v3: ours where the layer scale is 1 and positions are added, else timm's."""
    source, state = f"'{checkpoint.path}'", _vit_names(checkpoint.tree)
    state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    scales = [key for key in state if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", key)]
    if "pos_embed" in state and "blocks.0.mlp.fc1.weight" in state and all((state[key] == 1).all() for key in scales):
        bare = {key: value for key, value in state.items() if key not in (*scales, "mask_token", "register_tokens")}
        if "register_tokens" in state:
            bare["reg_token"] = state["register_tokens"]
        network = architectures.vit(bare, source, config.get("num_attention_heads", 12))
        return Imported({"teacher": network}, {}, network.name)
    width = state["cls_token"].shape[-1] if "cls_token" in state else 0
    state.setdefault("mask_token", torch.zeros(1, width))
    if config["model_type"] == "dinov3_vit" and "register_tokens" in state:
        state["storage_tokens"] = state.pop("register_tokens")
    heads = {"num_heads": config.get("num_attention_heads", 12 if "pos_embed" in state else 6)}
    return dinov2.read(replace(checkpoint, tree=state, config=heads))


def _vit_names(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's keys, query, key and value in one."""
    state = {_renamed(key, _VIT): value for key, value in tree.items()}
    gated = "blocks.0.mlp.gate_proj.weight" in state
    of_mlp = {"gate_proj": "w1", "up_proj": "w2" if gated else "fc1", "down_proj": "w3" if gated else "fc2"}
    for key in list(state):
        if found := re.search(r"\.mlp\.(gate_proj|up_proj|down_proj)\.", key):
            state[key.replace(found[1], of_mlp[found[1]])] = state.pop(key)
    for key in [key for key in state if re.search(r"\.attn\.q\.(weight|bias)$", key)]:
        query = state.pop(key)
        parts = [state.pop(key.replace(".q.", f".{part}."), torch.zeros_like(query)) for part in "kv"]
        state[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([query, *parts])
    return state


def _preprocessing(path: Path) -> dict[str, Any] | None:
    """What preprocessor_config.json says, in our form; None where there is no such file.

    Raises:
        UserError: It cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / "preprocessor_config.json"
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        size, crop = told.get("size", 224), told.get("crop_size", told.get("size", 224))
        resize_px = size if isinstance(size, int) else size.get("shortest_edge") or size["height"]
        image_px = crop if isinstance(crop, int) else crop.get("height") or crop["shortest_edge"]
        image_px = int(image_px) if told.get("do_center_crop", False) else int(resize_px)
        half = [0.5, 0.5, 0.5]
        return {
            "image_px": image_px,
            "resize_px": int(resize_px),
            "interpolation": Image.Resampling(told.get("resample", 2)).name.lower(),
            "mean": [float(value) for value in told.get("image_mean", half)],
            "std": [float(value) for value in told.get("image_std", half)],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{file}' cannot be understood: {error}", "Download it again") from error
