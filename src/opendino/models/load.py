"""Load and save trained models: a folder with `backbone.safetensors` and `backbone.json`, from a run or an export."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from opendino.core import atomic_write, registry
from opendino.core.contracts import Backbone
from opendino.core.errors import BadImage, UsageError, UserError, nearest
from opendino.core.types import IMAGENET_MEAN, IMAGENET_STD, Features
from opendino.data.decode import apply_exif_orientation
from opendino.data.readers.multi_page_files import describe
from opendino.models.build import build_on_meta, materialize
from opendino.models.description import CLASSIFIER, DESCRIPTION, NETWORKS, read_description, weights_file
from opendino.models.image_reading import ImageReading
from opendino.models.remote_model import is_remote, local_folder
from opendino.models.resize import center_crop, resize, to_unit
from opendino.models.separate_channels import SeparateChannels, network_of
from opendino.models.weights import check_weights, load_foreign_weights, read_shapes, read_weights, write_weights

T = TypeVar("T")
ImageInput = Image.Image | str | Path | np.ndarray | Tensor
Images = ImageInput | Sequence[ImageInput]
_MAX_ASPECT = 64  # longer images are center-cropped to this aspect ratio before resizing
_MODEL_KINDS = "A model is a run folder, an imported or exported model folder, timm:NAME, or hf:USER/NAME"


class Model:
    """A trained backbone with its preprocessing. Every method runs without gradients.

    `images` are one or several of: a PIL image, a path, an array `[H W C]` or integer tensor `[C H W]`, or `[H W]` if C
    is 1 or 3; or a batch, array `[B H W C]` or integer tensor `[B C H W]`. C is the number of channels of the model: 3
    for RGB photographs. Values are those of the file; the intensity of the model maps them, e.g. 0 to 255 of uint8, 0
    to 65,535 of uint16, and 0 to 1 of floating point where it is "full". A float tensor `[B C H W]` is used without
    preprocessing: it must be normalized and of a size that the backbone accepts.

    Attributes:
        backbone: The network, in eval mode.
        preprocessing: Keys image_px, resize_px (pixels), interpolation, mean, std (per channel, pixels in [0, 1]);
            images where they are not 8-bit photographs (`models.image_reading.ImageReading`), with channels and range.
        description: Content of backbone.json; empty for timm's own weights.
        classifier: Linear layer from features `[B D]` to logits `[B C]`; None unless loaded with `classifier=True`.
        classes: Class names; empty if unknown.
        which: "teacher" or "student": the role of the backbone in training.
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

    def __repr__(self) -> str:
        shape = f"{self.preprocessing['image_px']} px → {self.backbone.embed_dim} features"
        data = f", trained on {self.trained_on}" if self.trained_on else ""
        return f"{self.backbone.name}, the {self.which}: {shape}{data}; .embed, .features, .attention, .preprocess"

    @functools.cached_property
    def fingerprint(self) -> str:
        """First 32 hexadecimal digits of the SHA-256 of architecture, preprocessing and weights."""
        identity = {"name": self.backbone.name, "kwargs": self.backbone.kwargs, "preprocessing": self.preprocessing}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        for key, value in sorted(self.backbone.state_dict().items()):
            digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:32]

    @functools.cached_property
    def reading(self) -> ImageReading:
        """How the model's images are read: channels, pages, range of values."""
        return ImageReading.of(self.preprocessing)

    @property
    def trained_on(self) -> str | None:
        """DATA of the run that trained the model, None if unknown."""
        return self.description.get("extra", {}).get("data")

    def preprocess(self, image: ImageInput) -> Tensor:
        """Read, resize the shorter side to `resize_px` (antialiased), center-crop, normalize.

        Returns:
            float32 `[C image_px image_px]` on the CPU.

        Raises:
            UserError: The file is missing, is not a readable image, or has other channels than the model.
        """
        return self.prepare(self.pixels(image))

    def pixels(self, image: ImageInput) -> np.ndarray:
        """Read an image, upright by its EXIF orientation: uint8 or uint16 `[H W C]`, mapped to the range of the model.

        Raises:
            UserError: As for `preprocess`.
        """
        try:
            if isinstance(image, str | Path):
                return self.reading.decode(Path(image).expanduser().read_bytes())
            if isinstance(image, Image.Image):
                if not self.reading.names:
                    return np.array(apply_exif_orientation(image))
                values = np.array(image)
                return self.reading.from_array(values if values.ndim == 3 else values[..., None])
            if isinstance(image, Tensor):
                image = image.detach().cpu()
                image = (image.movedim(0, -1) if image.ndim == 3 else image).numpy()
            return self.reading.from_array(image[..., None] if image.ndim == 2 else image)
        except OSError as error:
            raise UserError(f"'{image}' cannot be read: {error.strerror or error}") from error
        except BadImage as error:
            name = f"'{image}'" if isinstance(image, str | Path) else "The image"
            raise UserError(f"{name} is not a usable image: {error}") from error

    def normalize(self, pixels: np.ndarray) -> Tensor:
        """Normalize pixels `[H W C]`, uint8, uint16, or float32 in [0, 1] → float32 `[C H W]`."""
        mean, std = (torch.tensor(self.preprocessing[key]).view(-1, 1, 1) for key in ("mean", "std"))
        if (num := pixels.shape[2]) != len(mean):
            raise UserError(
                f"The images have {num} channel{'s' * (num > 1)}, but the model takes "
                f"{describe(self.reading.channel_names)}",
                "Use images of these channels, or another model",
            )
        return (torch.from_numpy(to_unit(pixels)).permute(2, 0, 1) - mean) / std

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """The part of `preprocess` after reading: resize, center-crop, normalize.

        Args:
            pixels: Decoded as `reading` says, `[H W C]`: uint8, uint16, or float32 in [0, 1].

        Returns:
            float32 `[C image_px image_px]` on the CPU.
        """
        crop_px, short_px = self.preprocessing["image_px"], self.preprocessing["resize_px"]
        size, short = (pixels.shape[1], pixels.shape[0]), min(pixels.shape[:2])
        if max(size) > _MAX_ASPECT * short:  # avoid enlarging a very long image that is mostly cropped
            width, height = (min(side, _MAX_ASPECT * short) for side in size)
            left, top = (size[0] - width) / 2, (size[1] - height) / 2
            box, size = (left, top, left + width, top + height), (width, height)
            pixels = resize(pixels, size, Image.Resampling.BICUBIC, box)
        width, height = (max(short_px, int(short_px * side / short)) for side in size)
        filter_name = self.preprocessing["interpolation"].upper()
        resized = resize(pixels, (width, height), Image.Resampling[filter_name])
        return self.normalize(center_crop(resized, crop_px, crop_px))

    def embed(self, images: Images, batch: int = 64) -> Tensor:
        """Image features `[B D]` on the backbone's device, computed `batch` images at a time; not L2-normalized."""
        inputs = _as_list(images)
        if not len(inputs):
            raise UserError("There are no images to embed: the list is empty", "Give one image or more")
        chunks = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
        return torch.cat([self.run(lambda tensor: self.backbone([tensor])[0], chunk) for chunk in chunks])

    def features(self, images: Images) -> Features:
        """All tokens of the last block (CLS, registers, patches) in one forward pass."""
        return self.run(self.backbone.features, images)

    def attention(self, images: Images) -> Tensor:
        """Self-attention weights of the last block, `[B heads T T]`; T counts CLS, registers and patches.

        Raises:
            NotImplementedError: The backbone has no self-attention.
        """
        return self.run(self.backbone.attention, images)

    def to(self, device: str | torch.device) -> Model:
        """Move the backbone to a device and return this model."""
        self.backbone.to(device)
        return self

    @torch.no_grad()
    def run(self, function: Callable[[Tensor], T], images: Images) -> T:
        """Call a function of the backbone on images `[B C H W]`, on its device, in its dtype, without gradients."""
        weight = next(self.backbone.parameters())
        inputs = _as_list(images)
        if not isinstance(inputs, Tensor):
            inputs = torch.stack([self.preprocess(image) for image in inputs])  # [B C H W]
        if weight.is_cuda and not inputs.is_cuda:
            inputs = inputs.pin_memory()  # a faster copy, and the next batch is prepared meanwhile
        return function(inputs.to(weight.device, weight.dtype, non_blocking=weight.is_cuda))


def _as_list(images: Images) -> Sequence[ImageInput] | Tensor:
    """A list of images to preprocess, or the given batch of normalized pixels."""
    if isinstance(images, Tensor) and images.is_floating_point():
        if images.ndim != 4:
            raise UsageError(f"The tensor's shape is {list(images.shape)}", "Give normalized pixels as [B C H W]")
        return images
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    return [images] if isinstance(images, Image.Image | str | Path) else images


def preprocessing(
    image_px: int = 224, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> dict[str, Any]:
    """The usual ImageNet evaluation transform at `image_px`: resize to image_px · 256/224, then center-crop."""
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
    """Write a model folder. Each file is written atomically, `backbone.json` last.

    Args:
        folder: Created if absent; other files in it stay.
        networks: "teacher" and "student", or one of them, of the same architecture. The first is the default network
            (`backbone.safetensors`); the other is saved as `backbone_NAME.safetensors`. Of `SeparateChannels` the
            network of one channel is saved; `preprocessing` says the rest.
        preprocessing: As returned by `preprocessing()`.
        extra: JSON values to store with the model: method, step, data.
        classifier: Linear classifier on the features of the default network, if there is one.
        classes: Class names; class numbers are used if it is empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks = {which: network_of(network) for which, network in networks.items()}
    backbone = next(iter(networks.values()))
    for which in NETWORKS:
        if which in networks:
            write_weights(folder / weights_file(which, networks), networks[which])
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
        "extra": dict(extra or {}) | _origin(backbone.name),
    }
    atomic_write.write(folder / DESCRIPTION, json.dumps(description, indent=2, allow_nan=False).encode() + b"\n")


def load(model: str | Path, which: str | None = None, *, classifier: bool = False) -> Model:
    """Load a trained model on the CPU, in eval mode.

    Args:
        model: A run folder, an imported or exported model folder, `timm:NAME` for timm's weights, `hf:USER/NAME` for a
            model of the Hugging Face Hub, or the http(s) address of an exported folder.
        which: "teacher" or "student". None is the default network: the teacher, except where a student was distilled
            from a frozen teacher.
        classifier: Also load the linear classifier of the default network.

    Raises:
        UsageError: `which` is neither, or timm has no such model.
        UserError: The folder holds no model, no such network or no classifier, its files do not match, or it cannot be
            downloaded.
    """
    if which not in (None, *NETWORKS):
        raise UsageError(f"Unknown network '{which}'", nearest(str(which), NETWORKS))
    if str(model).startswith("timm:"):
        return _load_timm(str(model).removeprefix("timm:"), which, classifier)
    folder = local_folder(str(model)) if is_remote(str(model)) else Path(model).expanduser()
    if not folder.is_dir():
        raise UserError(f"There is no folder '{model}'", _MODEL_KINDS)
    if not (folder / DESCRIPTION).is_file():
        raise UserError(
            f"'{model}' holds no {DESCRIPTION}", f"{_MODEL_KINDS}; a run writes it with its first checkpoint"
        )
    description = read_description(folder / DESCRIPTION)
    check_backbone(description)
    networks = description["networks"]
    have = [network for network in networks if (folder / weights_file(network, networks)).is_file()]
    wanted = which or networks[0]
    if wanted not in have:
        raise UserError(f"'{model}' holds no {wanted}", f"It has: {', '.join(have) or 'no weights'}")
    weights = folder / weights_file(wanted, networks)
    # The folder may come from anyone: compare shapes on `meta` before memory is allocated.
    shapes = read_shapes(weights)
    on_meta = build_on_meta(description["name"], description["kwargs"], shapes, str(folder / DESCRIPTION))
    check_weights(on_meta, shapes, str(weights))
    separate = ImageReading.of(description["preprocessing"]).channel_mode == "separate" and on_meta.in_chans == 1
    for key in ("mean", "std"):
        if (num := len(description["preprocessing"][key])) != on_meta.in_chans and not separate:
            raise UserError(
                f"{folder / DESCRIPTION}: preprocessing.{key} has {num} values for a network of {on_meta.in_chans} "
                "channels",
                "Export or import the model again",
            )
    network = materialize(on_meta)
    load_foreign_weights(network, read_weights(weights), str(weights))
    if separate:
        network = SeparateChannels(network, len(description["preprocessing"]["mean"]))
    linear = read_classifier(folder, network.embed_dim) if classifier else None
    if linear and len(description.get("classes", ())) not in (0, linear.out_features):
        raise UserError(
            f"{folder / DESCRIPTION} names {len(description['classes'])} classes for a classifier of "
            f"{linear.out_features}",
            "Export or import the model again",
        )
    return Model(network, description["preprocessing"], description, linear, wanted)


def check_backbone(description: Mapping[str, Any]) -> None:
    """Check that the network of a model is known, if it is one of another package or given in Python.

    Args:
        description: From `description.read_description`.

    Raises:
        UserError: It is not; the hint says how to name it.
    """
    name, where = description["name"], description.get("extra", {}).get("from")
    if where and name not in registry.names(registry.BACKBONES):
        raise registry.not_here("backbone", name, where)


def _origin(name: str) -> dict[str, str]:
    """Where a network that is not ours comes from, as {"from": origin}; {} for ours and those of timm."""
    given = name in registry.names(registry.BACKBONES)
    return {"from": registry.origin(registry.BACKBONES, name)} if given else {}


def read_classifier(folder: Path, embed_dim: int) -> nn.Linear:
    """Load the linear classifier of a model folder, on features of width `embed_dim`.

    Raises:
        UserError: There is none, or its shape does not match.
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
