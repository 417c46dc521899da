"""The images of a run: how they are read, their channels, and the range of their values."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
from torch import nn

from opendino import config as configs
from opendino.config import Config
from opendino.core import log
from opendino.core.contracts import Method, Source
from opendino.core.errors import UsageError, UserError
from opendino.core.types import IMAGENET_MEAN, IMAGENET_STD, PixelFormat, ViewSpec
from opendino.data import channel_file_names, intensity
from opendino.data.image_files import ImageFiles, image_files
from opendino.data.image_survey import Survey, has_only_photographs, survey
from opendino.data.intensity import Intensity, Range
from opendino.data.labels import MASKS
from opendino.data.open_source import open_source
from opendino.data.readers.decoded_image import RGB, numbered
from opendino.data.readers.multi_page_files import Reading, describe
from opendino.data.source_files import SPLITS, exists, printable
from opendino.datasets.labeled_pixels import LabeledPixels
from opendino.methods import supervised
from opendino.models import load
from opendino.models.image_reading import ImageReading


def open_images(config: Config, data: str) -> ImageFiles:
    """Open images as the run reads them: its channels, pages and range of values ("full" until it is known).

    Raises:
        UserError: The path does not exist, holds no images, or none that match `config.channel_files`.
    """
    found = intensity.parse(config.intensity)
    known = found if isinstance(found, Intensity) or found in ("full", "per-image") else "full"
    reading = Reading(config.stack, tuple(map(str, config.channels)))
    source = LabeledPixels(data) if config.labels == MASKS else open_source(data)
    files = image_files(source, reading, config.channel_files or "", cast(Range, known))
    files.pixel_format = PixelFormat(len(config.mean), 8 if config.bits == "auto" else config.bits)
    return files


def with_masks(config: Config) -> Config:
    """Settings of a run whose labels may be masks: then there are no classes of images to evaluate on.

    Raises:
        UsageError: The labels are masks, and the method does not train on labels alone.
    """
    if config.labels != MASKS:
        return config
    if not isinstance(config.method, supervised.Config):
        raise UsageError(
            f"--labels {MASKS} with the method {configs.method_name(config)}",
            "Fine-tune a trained model: opendino finetune MODEL DIR --labels masks",
        )
    return replace(config, eval_images=0)


def channel_names(config: Config) -> tuple[str, ...]:
    """Names of the channels of a resolved run; empty for 8-bit RGB."""
    num = len(config.mean)
    if not config.channels and num == 3 and config.bits != 16:
        return ()
    return tuple(map(str, config.channels)) or numbered(num)


def preprocessing(config: Config, spec: ViewSpec) -> dict[str, Any]:
    """Preprocessing of the model that a run trains; its intensity and bits have to be resolved."""
    num = len(config.mean) if config.channel_mode == "separate" else 1
    found = load.preprocessing(spec.groups[0].short_px, spec.mean * num, spec.std * num)
    first, names = config.intensity[0], channel_names(config)
    reading = ImageReading(
        tuple(map(str, config.channels)),
        config.stack,
        config.channel_files or "",
        first if first in ("full", "per-image") else cast(tuple[float, ...], config.intensity),
        names,
        config.channel_mode,
        config.bits if names and config.bits != "auto" else 16,
    )
    # 8-bit photographs need no other reading
    return found if reading == ImageReading() else found | {"images": msgspec.to_builtins(reading)}


def resolve_intensity(config: Config, files: ImageFiles) -> tuple[Config, bool, list[str]]:
    """Find the channels of the set and the range of its values, and give them to the files.

    Returns:
        The config, whether the channels are red, green and blue, and the reasons, one line each.

    Raises:
        UserError: Pages without a known meaning, no readable image, or mean and std of another number of channels.
    """
    _say_splits(config.data)
    _warn_of_channel_files(config, files)
    if has_only_photographs(files):
        if config.intensity not in (("auto",), ("full",)):
            log.warn("intensity is not used: the images are 8-bit photographs, which stay as they are")
        files.pixel_format = PixelFormat()
        _check_statistics(config, RGB)
        return replace(config, intensity=("full",), bits=8), True, []
    found = survey(files)
    for line in found.describe():
        log.say(f"  {line}")
    if not config.channels and not found.photographs and _has_names(found):
        config = replace(config, channels=found.channels)
        files.reading = replace(files.reading, channels=found.channels)
    files.intensity, why = found.intensity(config.intensity)
    words: tuple[float | str, ...]
    words = files.intensity.to_words() if isinstance(files.intensity, Intensity) else (files.intensity,)
    shown = [f"{word:g}" if isinstance(word, float) else str(word) for word in words]
    reasons = [f"intensity = {', '.join(' '.join(shown[at : at + 2]) for at in range(0, len(shown), 2))}: {why}"]
    if config.bits == "auto":
        config = replace(config, bits=found.bits(files.intensity))
        reasons.append(f"bits = {config.bits}: {found.dtype} files")
    files.pixel_format = PixelFormat(len(found.channels), 8 if config.bits == "auto" else config.bits)
    usual = (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)
    if not usual:
        _check_statistics(config, found.channels)
    elif len(found.channels) != 3 or not (config.init or found.photographs):
        mean, std = found.mean_and_std(files.intensity)
        config = replace(config, mean=mean, std=std)
        reasons.append(f"mean = {' '.join(map(str, mean))}, std = {' '.join(map(str, std))}: of the images surveyed")
    return replace(config, intensity=words), found.channels == RGB, reasons


def _say_splits(data: str) -> None:
    """Say that a folder of training images and one to evaluate on, side by side, are both trained on."""
    if not (exists(data) and Path(data).is_dir()):
        return
    with os.scandir(data) as entries:
        found = sorted(each.name for each in entries if each.name.lower() in SPLITS and each.is_dir())
    training = [name for name in found if name.lower() == "train"]
    others = [name for name in found if name.lower() != "train"]
    if training and others:
        apart = f"opendino train {printable(data)}/{training[0]} --val {printable(data)}/{others[-1]}"
        log.say(f"the images in {', '.join(training + others)} are all trained on; to keep them apart: {apart}")


def _warn_of_channel_files(config: Config, files: ImageFiles) -> None:
    if config.channel_files:
        return
    if found := channel_file_names.pattern_of(files):
        pattern, channels, num = found
        log.warn(
            f"the names look like {num:,} images of {len(channels)} files each, one per channel "
            f'({" ".join(channels)}). If they are: --channel-files "{pattern}"'
        )


def _has_names(found: Survey) -> bool:
    """Whether all files name their channels in one way, by which they can be found in any order."""
    return found.same_names and found.channels != numbered(len(found.channels))


def _check_statistics(config: Config, channels: tuple[str, ...]) -> None:
    if len(config.mean) != len(channels):
        raise UserError(
            f"mean and std have {len(config.mean)} values, and the images have {describe(channels)}",
            "Give one value per channel, or none: then those of the images are used",
        )


def check_classes(method: Method, spec: ViewSpec, source: Source) -> None:
    """Check that the classes of the data are those of the teacher's classifier, if the method trains on labels.

    Raises:
        UserError: They are not.
    """
    if not spec.labeled_frac or "classifier" not in method.student:
        return
    teacher_classes = method.classes or source.classes
    number = cast(nn.Linear, method.student["classifier"]).out_features
    if len(source.classes) != number or teacher_classes != source.classes:
        raise UserError(
            f"The teacher's classifier has {number} classes ({', '.join(teacher_classes[:3])}, ...), "
            f"but the images have {len(source.classes)} ({', '.join(source.classes[:3])}, ...)",
            "Give the images' classes the teacher's names, or train without labels: --method.label-weight 0",
        )
