"""Import and export model folders of Hugging Face transformers.

Reads ViT, DINOv2 (with registers), DINOv3 (ViT, ConvNeXt) and ResNet. Keys are translated to those of DINO and
torchvision (`interop.huggingface_keys`), whose format modules read the rest.
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
from opendino.interop import architectures, compare_outputs, huggingface_keys, timm_folder
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.interop.formats import dino_v1, dinov2, torchvision
from opendino.interop.model_card import card
from opendino.models.image_reading import ImageReading
from opendino.models.load import Model
from opendino.models.load import preprocessing as usual_preprocessing
from opendino.models.separate_channels import SeparateChannels
from opendino.models.timm_backbone import TimmBackbone
from opendino.models.vit import VisionTransformer

_DINOV2 = {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-6}
_REQUIRED_SETTINGS: dict[str, dict[str, Any]] = {
    "vit": {"hidden_act": "gelu", "qkv_bias": True},
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": {"rope_theta": 100.0, "layer_norm_eps": 1e-5, "proj_bias": True, "mlp_bias": True},
    "dinov3_convnext": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "resnet": {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False},
}
"""Supported values of `model_type`, and for each the only supported values of some settings."""


def recognizes(checkpoint: Checkpoint) -> bool:
    """config.json has a supported `model_type`."""
    return (checkpoint.config or {}).get("model_type") in _REQUIRED_SETTINGS


def read(checkpoint: Checkpoint) -> Imported:
    """Read a model: a ViT, or a DINOv2 with layer scale 1, becomes our ViT; the others become models of timm.

    ViTs with layer_norm_eps 1e-12 are read with 1e-6, which DINO v1 was trained with: its files on Hugging Face declare
    1e-12. Poolers, mask tokens, and classifiers on more than CLS are dropped.

    Raises:
        UserError: A setting is not supported, a key is unknown or missing, a shape is wrong, or a value is not finite.
    """
    config, source = checkpoint.config or {}, f"'{checkpoint.path}'"
    kind = str(config["model_type"])
    for setting, only in _REQUIRED_SETTINGS[kind].items():
        if config.get(setting, only) != only:
            raise UserError(f"{source} has {setting} {config[setting]}; only {only} is supported", "Try --architecture")
    if kind == "vit" and config.get("layer_norm_eps", 1e-12) not in (1e-6, 1e-12):
        raise UserError(f"{source} has layer_norm_eps {config['layer_norm_eps']}; only 1e-6 is supported")
    if not isinstance(config.get("num_attention_heads", 12), int) or config.get("num_attention_heads", 12) < 1:
        raise UserError(f"{source} has num_attention_heads {config['num_attention_heads']}, not a number of heads")
    state = {re.sub(rf"^({kind})\.", "", key): value for key, value in checkpoint.state.items()}
    read_as = {"resnet": _read_resnet, "vit": _read_vit, "dinov3_convnext": _read_convnext}.get(kind, _read_dinov2)
    imported = read_as(replace(checkpoint, tree=state, config=None), config)
    side = imported.networks["teacher"].kwargs["image_px"]
    wanted = _preprocessing(checkpoint.path) or usual_preprocessing(int(str(side)))
    return replace(imported, preprocessing=wanted, about=f"{imported.about}, from a {kind} of Hugging Face")


@dataclass(frozen=True)
class Config(Checked):
    """No options."""


def write(model: Model, out: Path, config: Config) -> float:
    """Write a folder for `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained`, with a model card.

    A ViT becomes a `ViTModel`, with registers a `Dinov2WithRegistersModel` with layer scale 1; a ResNet a
    `ResNetModel`; another model of timm a `TimmWrapperModel`. `pooler_output` is the image feature in all of them: the
    pooler of `ViTModel` is the identity.

    preprocessor_config.json holds the range of images that are no photographs as a part of `image_mean` and
    `image_std`, which does not clip values beyond it; "full" becomes the range of 8 or 16 bits, and "per-image" is not
    held. The folder of a `TimmWrapperModel` holds the range only for `opendino import`. A model that takes each channel
    by itself becomes its network of one channel; the card says how to use it, and `opendino import` joins the channels.

    Returns:
        The largest difference of features and patches, at the image size of the model.

    Raises:
        UserError: transformers has no such architecture, or loads a different network.
    """
    separate = isinstance(model.backbone, SeparateChannels)
    model = timm_folder.network_at_its_size(model)
    own = model.backbone
    loading = (
        "from transformers import AutoImageProcessor, AutoModel\n"
        f'processor, model = (kind.from_pretrained("{out.name}") for kind in (AutoImageProcessor, AutoModel))\n'
        + (_EACH_CHANNEL if separate else 'features = model(**processor(image, return_tensors="pt")).pooler_output')
    )
    if isinstance(own, VisionTransformer):
        _write(
            out,
            _vit_config(own),
            huggingface_keys.vit_from_dino(own),
            model,
            card(model, "transformers", loading, _REMARKS),
        )
    elif (described := _resnet_config(own)) is not None:
        assert isinstance(own, TimmBackbone)
        _write(
            out,
            described,
            huggingface_keys.resnet_from_torchvision(own.model),
            model,
            card(model, "transformers", loading, _CROP),
        )
    else:
        timm_folder.write_folder(model, out, card(model, "transformers", loading, "It wraps a model of timm."))
    return _check(model, out)


_EACH_CHANNEL = (
    'pixels = processor(image, return_tensors="pt").pixel_values  # [1, C, H, W]\n'
    "features = model(pixels.transpose(0, 1)).pooler_output.reshape(1, -1)  # [1, C * D]"
)
_CROP = (
    "Resizing by transformers rounds differently from opendino, by up to two gray levels of 255; if the margin of the "
    "center crop is odd, the crop may be one pixel further left or up."
)
_REMARKS = (
    f"{_CROP}\n\n"
    "At image sizes other than that of training (`interpolate_pos_encoding=True`), transformers resamples position "
    "embeddings differently, so features differ from opendino's, which follow DINO v1."
)


def _check(model: Model, out: Path) -> float:
    """Load the folder with transformers and return the largest difference of outputs."""
    from transformers import AutoImageProcessor, AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        again, loading_info = AutoModel.from_pretrained(out, output_loading_info=True)
        AutoImageProcessor.from_pretrained(out)
    except Exception as error:  # transformers raises many types for models it cannot build
        raise UserError(
            f"transformers cannot load {model.backbone.name}: {first_line(error)}", "Choose another --to"
        ) from error
    if wrong := [*loading_info["missing_keys"], *loading_info["unexpected_keys"], *loading_info["mismatched_keys"]]:
        raise UserError(
            f"transformers does not load {len(wrong)} tensors as written, e.g. {wrong[0]}", "Choose another --to"
        )
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
        "image_processor_type": "BitImageProcessor",  # the processor with the same steps as ours
        "do_convert_rgb": not model.reading.names,
        "do_resize": True,
        "size": {"shortest_edge": wanted["resize_px"]},
        "resample": int(Image.Resampling[wanted["interpolation"].upper()]),
        "do_center_crop": True,
        "crop_size": {"height": wanted["image_px"], "width": wanted["image_px"]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **_mean_and_std(wanted, model.reading),
        **({timm_folder.OURS: wanted} if model.reading != ImageReading() else {}),
    }
    out.mkdir()
    weights = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    atomic_write.write(out / "model.safetensors", safetensors.torch.save(weights, metadata={"format": "pt"}))
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        atomic_write.write(out / name, json.dumps(content, indent=2, allow_nan=False) + "\n")
    atomic_write.write(out / "README.md", readme)


def _mean_and_std(wanted: dict[str, Any], reading: ImageReading) -> dict[str, list[float]]:
    """`image_mean` and `image_std` for values divided by 255: a range LOW HIGH becomes a part of them.

    ((x - low) / (high - low) - mean) / std = (x / 255 - image_mean) / image_std, except that x is not clipped.
    """
    mean, std = wanted["mean"], wanted["std"]
    if not isinstance(reading.intensity, tuple):
        factor = 257.0 if "images" in wanted and reading.names and reading.bits == 16 else 1.0  # 65,535 / 255
        return {"image_mean": [factor * value for value in mean], "image_std": [factor * value for value in std]}
    bounds = list(zip(reading.intensity[::2], reading.intensity[1::2], strict=True))
    bounds = bounds * (len(mean) // len(bounds))
    return {
        "image_mean": [(low + m * (high - low)) / 255 for (low, high), m in zip(bounds, mean, strict=True)],
        "image_std": [s * (high - low) / 255 for (low, high), s in zip(bounds, std, strict=True)],
    }


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
        "num_channels": own.in_chans,
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


_RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _resnet_config(own: nn.Module) -> dict[str, Any] | None:
    """config.json of a standard ResNet (He et al. 2016); None for other networks."""
    if not isinstance(own, TimmBackbone) or own.kwargs.keys() - {"image_px", "drop_path", "in_chans"}:
        return None
    depth = next((depth for depth in _RESNETS if own.name.partition(".")[0] == f"resnet{depth}"), None)
    if depth is None:
        return None
    widths = [64, 128, 256, 512]
    return {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": own.in_chans,
        "embedding_size": 64,
        "hidden_sizes": [4 * width for width in widths] if depth >= 50 else widths,
        "depths": list(_RESNETS[depth]),
        "layer_type": "bottleneck" if depth >= 50 else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def _read_resnet(checkpoint: Checkpoint, config: dict[str, Any]) -> Imported:
    return torchvision.read(replace(checkpoint, tree=huggingface_keys.resnet_to_torchvision(checkpoint.tree)))


def _read_convnext(checkpoint: Checkpoint, config: dict[str, Any]) -> Imported:
    """DINOv3's ConvNeXt of any size; its feature is the mean of the last map after the final norm, as in timm."""
    source = f"'{checkpoint.path}'"
    state = huggingface_keys.convnext_to_timm(checkpoint.tree)
    image_px = config.get("image_size")
    network = architectures.convnext(state, source, image_px if isinstance(image_px, int) else 224)
    return Imported({"teacher": network}, {}, network.name)


def _read_vit(checkpoint: Checkpoint, config: dict[str, Any]) -> Imported:
    state = huggingface_keys.vit_to_dino(checkpoint.tree)
    linear = architectures.classifier(state, "classifier.", f"'{checkpoint.path}'")
    left_out = ("pooler.", "classifier.")
    state = {key: value for key, value in state.items() if not key.startswith(left_out) and key != "mask_token"}
    heads = {"num_heads": config.get("num_attention_heads", 12)}
    return replace(dino_v1.read(replace(checkpoint, tree=state, config=heads)), classifier=linear)


def _read_dinov2(checkpoint: Checkpoint, config: dict[str, Any]) -> Imported:
    """DINOv2 and DINOv3: our ViT if layer scale is 1 and position embeddings are added, else a model of timm."""
    source, state = f"'{checkpoint.path}'", huggingface_keys.vit_to_dino(checkpoint.tree)
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


def _preprocessing(path: Path) -> dict[str, Any] | None:
    """Preprocessing from preprocessor_config.json; None if there is no such file.

    Raises:
        UserError: The file is damaged or has unsupported values.
    """
    file = (path if path.is_dir() else path.parent) / "preprocessor_config.json"
    if not file.is_file():
        return None
    try:
        processor = json.loads(file.read_text(encoding="utf-8"))
        if timm_folder.OURS in processor:
            return dict(processor[timm_folder.OURS])
        size, crop = processor.get("size", 224), processor.get("crop_size", processor.get("size", 224))
        resize_px = size if isinstance(size, int) else size.get("shortest_edge") or size["height"]
        image_px = crop if isinstance(crop, int) else crop.get("height") or crop["shortest_edge"]
        image_px = int(image_px) if processor.get("do_center_crop", False) else int(resize_px)
        if isinstance(size, dict) and size.get("height") != size.get("width"):
            raise ValueError(f"it resizes to {size['height']} × {size['width']} pixels, and only squares are supported")
        if not processor.get("do_rescale", True) or abs(processor.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
            raise ValueError("it does not scale values to 0 to 1")
        if "crop_pct" in processor and int(resize_px) < 384:  # as ConvNeXt's: resized to more, then cropped
            resize_px = int(resize_px / processor["crop_pct"])
        half, normalized = [0.5, 0.5, 0.5], processor.get("do_normalize", True)
        return {
            "image_px": image_px,
            "resize_px": int(resize_px),
            "interpolation": Image.Resampling(processor.get("resample", 2)).name.lower(),
            "mean": [float(value) for value in processor.get("image_mean", half)] if normalized else [0.0] * 3,
            "std": [float(value) for value in processor.get("image_std", half)] if normalized else [1.0] * 3,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{file}' cannot be used: {error}", "Download it again") from error
