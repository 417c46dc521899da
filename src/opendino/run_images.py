"""The images of a run: how they are read, and the range of their values."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from opendino.config import Config
from opendino.core import log
from opendino.core.errors import UserError
from opendino.core.types import IMAGENET_MEAN, IMAGENET_STD
from opendino.data import intensity
from opendino.data.image_files import ImageFiles, image_files
from opendino.data.image_survey import has_only_photographs, survey
from opendino.data.intensity import Intensity, Range
from opendino.data.open_source import open_source
from opendino.data.readers.stacks import Reading, describe


def open_images(config: Config, data: str) -> ImageFiles:
    """Open images as the run reads them: its channels, pages and range of values ("full" until it is known).

    Raises:
        UserError: The path does not exist, holds no images, or none that match `config.channel_files`.
    """
    found = intensity.parse(config.intensity)
    known = found if isinstance(found, Intensity) or found in ("full", "per-image") else "full"
    reading = Reading(config.stack, tuple(map(str, config.channels)))
    return image_files(open_source(data), reading, config.channel_files or "", cast(Range, known))


def resolve_intensity(config: Config, files: ImageFiles) -> tuple[Config, list[str]]:
    """Find the range of the set's values, and give it to the files; returns the config and the reasons.

    Raises:
        UserError: Pages without a known meaning, no readable image, or neither 1 nor 3 channels.
    """
    if has_only_photographs(files):
        if config.intensity not in (("auto",), ("full",)):
            log.warn("intensity is not used: the images are 8-bit photographs, which stay as they are")
        return replace(config, intensity=("full",)), []
    found = survey(files)
    for line in found.describe():
        log.say(f"  {line}")
    if len(found.channels) not in (1, 3):
        raise UserError(
            f"The images have {describe(found.channels)}, and networks take 1 or 3 for now",
            "Choose some of them, e.g. --channels 0 1 2",
        )
    files.intensity, why = found.intensity(config.intensity)
    words: tuple[float | str, ...]
    words = files.intensity.to_words() if isinstance(files.intensity, Intensity) else (files.intensity,)
    shown_words = " ".join(f"{word:g}" if isinstance(word, float) else str(word) for word in words)
    reasons = [f"intensity = {shown_words}: {why}"]
    usual = (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)
    if usual and not config.init and not found.photographs:
        mean, std = (values * (3 // len(values)) for values in found.mean_and_std(files.intensity))
        config = replace(config, mean=mean, std=std)
        reasons.append(f"mean = {' '.join(map(str, mean))}, std = {' '.join(map(str, std))}: of the images surveyed")
    return replace(config, intensity=words), reasons
