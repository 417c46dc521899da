"""Trained models on disk: `backbone.safetensors` and `backbone.json`, left by a run or an export, read by all else."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from opendino.core import atomic_write
from opendino.core.contracts import Backbone
from opendino.core.errors import BadImage, UsageError, UserError, nearest
from opendino.core.types import IMAGENET_MEAN, IMAGENET_STD, Features
from opendino.data.decode import apply_exif_orientation, decode
from opendino.models.build import make, plan
from opendino.models.description import DESCRIPTION, NETWORKS, read_description
from opendino.models.weights import check_weights, load_foreign_weights, read_shapes, read_weights, write_weights

CLASSIFIER = "classifier.safetensors"
Picture = Image.Image | str | Path | np.ndarray | Tensor
Images = Picture | Sequence[Picture]
_LONGEST = 64
_FORMS = "A model is a run folder, an imported or exported model folder, or timm:NAME"


class Model:
    """A trained backbone with the preprocessing it was trained for. Gradients are off in every method.

    Wherever `images` are asked for, give one or several of: a PIL image, a path, a uint8 array `[H W 3]` or tensor
    `[3 H W]` of RGB; or uint8 batches `[B H W 3]` and `[B 3 H W]` of them. A float tensor `[B C H W]` is taken as it
    is: normalized, of any size that the backbone takes.

    Attributes:
        backbone: In eval mode.
        preprocessing: image_px, resize_px, interpolation, mean, std.
        description: All of backbone.json; empty for timm's own weights.
        classifier: From features `[B D]` to logits `[B classes]`; None unless it was asked for.
        classes: Their names, as far as they are known.
        which: "teacher" or "student", what the backbone was in training.
    """

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: dict[str, Any],
        description: dict[str, Any],
        classifier: nn.Linear | None = None,
        which: str = "teacher",
    ) -> None:
        self.backbone, self.which = backbone.eval(), which
        self.preprocessing, self.description, self.classifier = preprocessing, description, classifier
        self.classes: tuple[str, ...] = tuple(description.get("classes", ()))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what decides a vector, architecture, preprocessing and weights: 32 hexadecimal digits, SHA-256's first."""
        told = {"name": self.backbone.name, "kwargs": self.backbone.kwargs, "preprocessing": self.preprocessing}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for key, value in sorted(self.backbone.state_dict().items()):
            digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:32]

    @property
    def trained_on(self) -> str | None:
        """The DATA of the run it comes from, None where that is not known."""
        return self.description.get("extra", {}).get("data")

    def preprocess(self, image: Picture) -> Tensor:
        """Upright, RGB, shorter side to `resize_px` (antialiased), center crop of `image_px`, normalized.

        Returns:
            float32 `[3 H W]` on the host.

        Raises:
            UserError: No image there, or none that can be read.
        """
        image = _opened(image)
        crop_px, short_px = self.preprocessing["image_px"], self.preprocessing["resize_px"]
        short = min(image.size)
        if max(image.size) > _LONGEST * short:  # hair-thin: what is cut off anyway must not be enlarged first
            image = ImageOps.fit(image, tuple(min(side, _LONGEST * short) for side in image.size))  # pyright: ignore[reportArgumentType]
        width, height = (max(short_px, int(short_px * side / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling[self.preprocessing["interpolation"].upper()])
        left, top = round((width - crop_px) / 2), round((height - crop_px) / 2)
        image = image.crop((left, top, left + crop_px, top + crop_px))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        mean, std = (torch.tensor(self.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
        return (pixels.view(crop_px, crop_px, 3).permute(2, 0, 1) / 255 - mean) / std

    def embed(self, images: Images, batch: int = 64) -> Tensor:
        """Image features `[B D]` on the backbone's device, `batch` at a time; raw, not scaled to unit length."""
        several = _several(images)
        if not len(several):
            raise UserError("There are no images to embed")
        chunks = [several[start : start + batch] for start in range(0, len(several), batch)]
        return torch.cat([self._run(lambda tensor: self.backbone([tensor])[0], chunk) for chunk in chunks])

    def features(self, images: Images) -> Features:
        """All tokens, in one pass."""
        return self._run(self.backbone.features, images)

    def attention(self, images: Images) -> Tensor:
        """Self-attention of the last block `[B heads T T]`.

        Raises:
            NotImplementedError: The backbone has none.
        """
        return self._run(self.backbone.attention, images)

    def to(self, device: str | torch.device) -> Model:
        """Move the backbone; returns the same model."""
        self.backbone.to(device)
        return self

    @torch.no_grad()
    def _run(self, function: Callable[[Tensor], Any], images: Images) -> Any:
        weight = next(self.backbone.parameters())
        several = _several(images)
        if not isinstance(several, Tensor):
            several = torch.stack([self.preprocess(image) for image in several])
        return function(several.to(weight.device, weight.dtype))


def _several(images: Images) -> Sequence[Picture] | Tensor:
    """A list of pictures, or the batch of normalized pixels that was given."""
    if isinstance(images, Tensor) and images.is_floating_point():
        if images.ndim != 4:
            raise UsageError(f"The tensor's shape is {list(images.shape)}", "Give normalized pixels as [B C H W]")
        return images
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    return [images] if isinstance(images, Image.Image | str | Path) else images


def _opened(image: Picture) -> Image.Image:
    try:
        if isinstance(image, Image.Image):
            return apply_exif_orientation(image)
        if isinstance(image, str | Path):
            return Image.fromarray(decode(Path(image).expanduser().read_bytes()))
        if isinstance(image, Tensor):
            image = image.detach().cpu().movedim(0, -1).numpy()
        return Image.fromarray(decode(image))
    except OSError as error:
        raise UserError(f"'{image}' cannot be read: {error.strerror or error}") from error
    except BadImage as error:
        name = f"'{image}'" if isinstance(image, str | Path) else "The image"
        raise UserError(f"{name} is no image for a model: {error}") from error


def preprocessing(
    image_px: int = 224, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> dict[str, Any]:
    """The usual evaluation transform: the crop keeps 224/256 of the shorter side."""
    resize_px = round(image_px * 256 / 224)
    return {
        "image_px": image_px, "resize_px": resize_px, "interpolation": "bicubic", "mean": list(mean), "std": list(std)
    }  # fmt: skip


def save_backbone(
    folder: Path,
    networks: Mapping[str, Backbone],
    *,
    preprocessing: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    classifier: nn.Linear | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Write a model folder, each file at once or not at all, the description last.

    Args:
        folder: Made if absent; other files in it are left alone.
        networks: "teacher" and "student", or one of them, of one architecture. The first is the one to use
            (`backbone.safetensors`), the other is kept beside it.
        preprocessing: As from `preprocessing()`.
        extra: Anything JSON to remember with it: method, step, data.
        classifier: Of the network to use, if it has one.
        classes: What it tells apart; numbers where nobody knows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone = next(iter(networks.values()))
    for which in NETWORKS:
        if which in networks:
            write_weights(folder / _file(which, networks), networks[which])
        else:
            (folder / f"backbone_{which}.safetensors").unlink(missing_ok=True)
    if classifier is not None:
        write_weights(folder / CLASSIFIER, classifier)
    description = {
        "format": 1,
        "name": backbone.name,
        "kwargs": backbone.kwargs,
        "embed_dim": backbone.embed_dim,
        "preprocessing": dict(preprocessing),
        "networks": list(networks),
        "classes": list(classes) or [str(n) for n in range(classifier.out_features)] if classifier is not None else [],
        "versions": {"opendino": version("opendino"), "torch": torch.__version__},
        "extra": dict(extra or {}),
    }
    atomic_write.write(folder / DESCRIPTION, json.dumps(description, indent=2, allow_nan=False).encode() + b"\n")


def load(model: str | Path, which: str | None = None, *, classifier: bool = False) -> Model:
    """Open a trained model, on the CPU, in eval mode.

    Args:
        model: A run folder, an imported or exported model folder, or `timm:NAME` for timm's weights.
        which: "teacher" or "student"; None for the network to use, which is the teacher unless the student was
            distilled from a frozen one.
        classifier: Also open what the network to use was trained to classify with.

    Raises:
        UsageError: `which` is neither, or no such timm model.
        UserError: No model there, no such network or no classifier in it, or files that do not fit together.
    """
    if which not in (None, *NETWORKS):
        raise UsageError(f"Unknown network '{which}'", nearest(str(which), NETWORKS))
    if str(model).startswith("timm:"):
        return _load_timm(str(model).removeprefix("timm:"), which, classifier)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UserError(f"There is no folder '{model}'", _FORMS)
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"'{model}' holds no {DESCRIPTION}", f"{_FORMS}; a run has one from its first checkpoint on")
    description = read_description(folder / DESCRIPTION)
    networks = description["networks"]
    have = [network for network in networks if (folder / _file(network, networks)).is_file()]
    wanted = which or networks[0]
    if wanted not in have:
        raise UserError(f"'{model}' holds no {wanted}", f"It has: {', '.join(have) or 'no weights'}")
    weights = folder / _file(wanted, networks)
    shapes = read_shapes(weights)
    planned = plan(description["name"], description["kwargs"], shapes, str(folder / DESCRIPTION))
    check_weights(planned, shapes, str(weights))
    network = make(planned)
    load_foreign_weights(network, read_weights(weights), str(weights))
    linear = read_classifier(folder, network.embed_dim) if classifier else None
    if linear and len(description.get("classes", ())) not in (0, linear.out_features):
        raise UserError(
            f"{folder / DESCRIPTION} names {len(description['classes'])} classes for a classifier of "
            f"{linear.out_features}",
            "Export or import the model again",
        )
    return Model(network, description["preprocessing"], description, linear, wanted)


def _file(which: str, networks: Iterable[str]) -> str:
    """Where a network of a model folder is: the first, the one to use, under the plain name."""
    return "backbone.safetensors" if which == next(iter(networks)) else f"backbone_{which}.safetensors"


def read_classifier(folder: Path, embed_dim: int) -> nn.Linear:
    """The classifier that a run left in a model folder, on features of `embed_dim`.

    Raises:
        UserError: There is none, or it does not fit.
    """
    path = folder / CLASSIFIER
    if not path.is_file():
        raise UserError(f"'{folder}' holds no {CLASSIFIER}: it was not trained to classify", "Use its features instead")
    state = read_weights(path)
    classes = max(1, len(state["weight"])) if "weight" in state and state["weight"].ndim == 2 else 1
    check_weights(nn.Linear(embed_dim, classes, device="meta"), state, str(path))
    linear = nn.Linear(embed_dim, classes)
    load_foreign_weights(linear, state, str(path))
    return linear


def _load_timm(name: str, which: str | None, classifier: bool) -> Model:
    from opendino.models import timm_backbone  # timm takes seconds to import

    if which == "student":
        raise UserError(f"timm:{name} has no student", "Only runs have one")
    backbone = timm_backbone.TimmBackbone(name, image_px=None, pretrained=True)
    linear = timm_backbone.published_classifier(name, backbone.embed_dim) if classifier else None
    return Model(backbone, timm_backbone.described_preprocessing(backbone.model.pretrained_cfg), {}, linear)
