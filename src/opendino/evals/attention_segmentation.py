"""Overlap (Jaccard) of attention maps with object masks (DINO, section 4.2.2 and figure 4)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from opendino.core import distributed
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.ranges import Checked, FractionAboveZero, PixelSize, Seed
from opendino.core.types import Report
from opendino.datasets.mask_metrics import jaccard
from opendino.datasets.segmentation_dataset import open_segmentation_dataset
from opendino.features.image_stream import encode_images
from opendino.models.attention_maps import cls_attention, keep_mass
from opendino.models.load import NETWORKS, Model, load
from opendino.models.patch_inputs import patch_px, to_network_input
from opendino.models.resize import resize
from opendino.models.untrained import untrained


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino eval attention-segmentation`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: all of them. An untrained network is always added as a baseline."""
    data: str = ""
    """A folder with images/ and masks/ (PNG, same names), the PASCAL VOC folder, or toy:forms."""
    mass: FractionAboveZero = 0.6
    """Fraction of the attention mass to keep."""
    size_px: PixelSize = 480
    """Shorter side of the input images, in pixels."""
    seed: Seed = 0
    """Random seed for the weights of the untrained network."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def evaluate(config: Config) -> Report:
    """Mean Jaccard index of attention and masks for every network of the model and an untrained one.

    Raises:
        UserError: The model or images do not exist, or the network has no self-attention.
    """
    if not config.data:
        raise UsageError("--data is missing", "Name a folder with images/ and masks/, PASCAL VOC, or toy:forms")
    device = distributed.device(config.device)
    dataset = open_segmentation_dataset(config.data)
    networks = {name: model.to(device) for name, model in _networks(config).items()}
    model = networks["untrained"]  # all have the same preprocessing
    step, began = patch_px(model), time.monotonic()

    def prepare(position: int, pixels: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Network input `[1 3 H W]`, mask and void pixels."""
        truth, void = dataset.mask(position)
        if not truth.any():
            raise BadImage("its mask has no object")
        scale = config.size_px / min(pixels.shape[:2])
        height, width = (max(1, round(side * scale / step)) * step for side in pixels.shape[:2])
        pixels = resize(pixels, (width, height), Image.Resampling[model.preprocessing["interpolation"].upper()])
        return to_network_input(pixels, model), torch.from_numpy(truth), torch.from_numpy(void)

    def overlaps(images: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Jaccard index of the best head and of the mean over heads, `[networks 2]`."""
        ((pixels, truth, void),) = images
        maps = [_attention(network, pixels, step) for network in networks.values()]
        each_head = [attention_jaccard(heads, truth, void, config.mass) for heads in maps]
        return torch.stack([torch.stack([jaccards[:-1].max(), jaccards[-1]]) for jaccards in each_head])

    scores: list[Tensor] = []
    notes: list[str] = []
    images = model.reading.images(dataset)
    for part in encode_images(images, range(len(dataset)), prepare, overlaps, batch=1):
        scores += [] if part.output is None else [part.output]
        notes += [f"{key} was skipped: {reason}" for key, reason in part.bad]
    if not scores:
        raise UserError(f"No image of {config.data} can be used; {notes[0]}")
    means = dict(zip(networks, torch.stack(scores).mean(0).tolist(), strict=True))
    return _report(means, len(scores), notes, config, time.monotonic() - began)


def attention_jaccard(attention: Tensor, truth: Tensor, void: Tensor | None = None, mass: float = 0.6) -> Tensor:
    """Overlap of a mask with what each head looks at most, and with what all heads together do.

    The attention is cut off at patches and then enlarged by nearest neighbor.

    Args:
        attention: float `[heads h w]`, attention of the CLS token to the patches.
        truth: bool `[H W]`.
        void: bool `[H W]`, pixels to ignore.
        mass: Fraction of the attention mass to keep.

    Returns:
        float64 `[heads + 1]` in [0, 1]; the last value is for the mean over heads.
    """
    maps = torch.cat([attention, attention.mean(0, keepdim=True)])
    kept = keep_mass(maps.flatten(1), mass).view(maps.shape)
    found = interpolate(kept[None].float(), truth.shape, mode="nearest-exact")[0] > 0
    return jaccard(truth.expand_as(found), found, void)


def _networks(config: Config) -> dict[str, Model]:
    """Networks to evaluate by name, the untrained one last."""
    model = load(config.model, config.which)
    models = {config.which or str(model.description.get("networks", ["pretrained"])[0]): model}
    for name in NETWORKS:  # the other network is in the same folder if it was kept
        weights = Path(config.model).expanduser() / f"backbone_{name}.safetensors"
        if not config.which and name not in models and weights.is_file():
            models[name] = load(config.model, name)
    return {**models, "untrained": untrained(model, config.seed)}


def _attention(model: Model, pixels: Tensor, step: int) -> Tensor:
    """CLS attention `[heads h w]` of an image `[1 3 H W]` with patches of `step` pixels."""
    try:
        return cls_attention(model, pixels, (pixels.shape[2] // step, pixels.shape[3] // step))[0]
    except NotImplementedError as error:
        raise UserError(str(error), "Use opendino eval knn or opendino eval linear instead") from error


def _report(means: dict[str, list[float]], num_images: int, notes: list[str], config: Config, seconds: float) -> Report:
    best, mean = ({name: 100 * each[column] for name, each in means.items()} for column in (0, 1))
    lines = [f"{'':<10} best head  mean of heads"]
    lines += [f"{name:<10} {best[name]:9.1f} {mean[name]:14.1f}" for name in means]
    lines += [
        f"Jaccard in percent over {num_images} images, shorter side {config.size_px} px: mask of all objects "
        f"against the patches with {100 * config.mass:g} % of the CLS token's attention in the last block; best head "
        "chosen per image."
    ]
    lines += [f"note: {note}" for note in notes[:5]] + (
        [f"note: {len(notes)} images skipped in total"] if notes[5:] else []
    )
    fields: dict[str, Any] = {"jaccard_best_head": best, "jaccard_mean_head": mean, "num_images": num_images}
    return Report("\n".join(lines), {**fields, "skipped": len(notes), "seconds": seconds, "mass": config.mass})
