"""The views of a spec, ours and by other libraries, for the benchmarks; each is imported only where it is measured.

They draw their own random numbers, from the same ranges with the same probabilities. Crops of kornia and albumentations
are not antialiased where they are reduced, so they do less than ours.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from classic import Files
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from opendino.core.types import ViewSpec
from opendino.views import kernels
from opendino.views.crop_resize import crop_resize
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import sample_views


def ways_to_make_views(
    images: list[Image.Image], canvas: Tensor, spec: ViewSpec
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Functions that make the views of all images, or only their crops; the classic way first."""
    draws = sample_views(spec, 0, 0, range(len(canvas)), [tuple(canvas.shape[-2:])] * len(canvas))
    cuts = [
        (group.view_px, draws[group.name]["crop"]["box"], draws[group.name]["flip"]["flip"]) for group in spec.groups
    ]
    classic = Files([], spec)

    def dense(function: Callable[[], Any]) -> None:
        with mock.patch.object(kernels, "by_index", return_value=False):
            function()

    def views() -> None:
        multi_crop(canvas, draws, spec)

    def crops() -> None:
        for size, box, flip in cuts:
            crop_resize(canvas, box, flip, size)

    def pillow_crops() -> None:
        for (height, width), boxes, _ in cuts:
            for row in boxes.tolist():
                for image, (top, left, h, w) in zip(images, row, strict=True):
                    part = image.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BICUBIC)
                    torch.from_numpy(np.array(part))

    def torch_crops() -> None:
        last = canvas.contiguous(memory_format=torch.channels_last)
        for size, boxes, _ in cuts:
            for row in boxes.tolist():
                for b, (top, left, h, w) in enumerate(row):
                    part = last[b : b + 1, :, top : top + h, left : left + w]
                    interpolate(part, size, mode="bicubic", antialias=True)

    made: dict[str, Callable[[], Any]] = {
        "Pillow and torchvision": lambda: [classic._crop(image) for image in images],
        "ours": views, "ours, kernels of a GPU": lambda: dense(views),
        "torchvision v2": with_torchvision(canvas, spec),
    }  # fmt: skip
    with installed("kornia"):
        made["kornia"] = with_kornia(canvas, spec)
    with installed("albumentations"):
        made["albumentations"] = with_albumentations(images, spec)
    cut = {
        "Pillow": pillow_crops, "ours": crops, "ours, kernels of a GPU": lambda: dense(crops),
        "torch's interpolate": torch_crops,
    }  # fmt: skip
    return {"crops": cut, "views": made}


@contextlib.contextmanager
def installed(name: str) -> Iterator[None]:
    """Leave out what is not installed, and say so."""
    try:
        yield
    except ImportError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)


def with_torchvision(images: Tensor, spec: ViewSpec) -> Callable[[], Any]:
    """The v2 transforms of torchvision, image by image, of uint8 `[B 3 H W]`."""
    from torchvision.transforms import v2

    made = [
        v2.Compose([
            v2.RandomResizedCrop(
                group.size_px, view.crop.scale, view.crop.ratio, interpolation=v2.InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(view.flip.p), v2.RandomApply([v2.ColorJitter(*jitter(view))], view.color_jitter.p),
            v2.RandomGrayscale(view.gray.p),
            v2.RandomApply([v2.GaussianBlur(21, view.blur.sigma_px)], view.blur.p),
            v2.RandomSolarize(128, view.solarize.p),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std),
        ])
        for group in spec.groups for view in group.views
    ]  # fmt: skip
    return lambda: [one(image) for image in images for one in made]


def with_kornia(images: Tensor, spec: ViewSpec) -> Callable[[], Any]:
    """Those of kornia, batch by batch, of uint8 `[B 3 H W]`."""
    from kornia import augmentation as k

    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    made = [
        torch.nn.Sequential(
            k.RandomResizedCrop(group.view_px, view.crop.scale, view.crop.ratio, resample="bicubic"),
            k.RandomHorizontalFlip(p=view.flip.p), k.ColorJitter(*jitter(view), p=view.color_jitter.p),
            k.RandomGrayscale(p=view.gray.p), k.RandomGaussianBlur((21, 21), view.blur.sigma_px, p=view.blur.p),
            k.RandomSolarize(0.0, 0.0, p=view.solarize.p), k.Normalize(mean, std),
        ).to(images.device)
        for group in spec.groups for view in group.views
    ]  # fmt: skip
    return lambda: [one(images.float() / 255) for one in made]


def with_albumentations(images: Sequence[Image.Image], spec: ViewSpec) -> Callable[[], Any]:
    """Those of albumentations, image by image, of RGB images, with as many threads as torch."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask a server
    import albumentations as a
    import cv2
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(torch.get_num_threads())
    made = [
        a.Compose([
            a.RandomResizedCrop(group.view_px, view.crop.scale, view.crop.ratio, interpolation=cv2.INTER_CUBIC),
            a.HorizontalFlip(p=view.flip.p), a.ColorJitter(*jitter(view), p=view.color_jitter.p),
            a.ToGray(p=view.gray.p), a.GaussianBlur(0, view.blur.sigma_px, p=view.blur.p),
            a.Solarize((0.5, 0.5), p=view.solarize.p), a.Normalize(spec.mean, spec.std), ToTensorV2(),
        ])
        for group in spec.groups for view in group.views
    ]  # fmt: skip
    arrays = [np.asarray(image) for image in images]
    return lambda: [one(image=array)["image"] for array in arrays for one in made]


def jitter(view: Any) -> tuple[float, float, float, float]:
    """Brightness, contrast, saturation and hue."""
    color = view.color_jitter
    return color.brightness, color.contrast, color.saturation, color.hue
