"""Survey a set before training: which channels, types and ranges of values its images have.

A uniform sample of the images, and of the pixels of each, gives the range of the whole set; no image is scaled by its
own values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.core.progress import track
from opendino.data import readers
from opendino.data.dataset_probe import sample_indices
from opendino.data.image_files import ImageFiles
from opendino.data.intensity import Intensity, Range, check_bright, parse, read_csv
from opendino.data.readers.decoded_image import RGB, DecodedImage, from_array
from opendino.data.readers.multi_page_files import StackQuestion, describe

NUM_IMAGES = 1000
"""Images read by a survey; fewer if the set is smaller."""

_PIXELS_PER_IMAGE = 2048
_PERCENTILES = (0.1, 99.9)
_USES_ITS_RANGE = 64  # of 256 values: an 8-bit set whose values spread over fewer is stretched
_MAX_SHARDS = 16  # each may have to be downloaded


@dataclass(frozen=True)
class Survey:
    """What the sampled images of a set have in common.

    Attributes:
        channels: Names of the C channels; those of most images.
        same_names: Whether all images have these names, each once.
        dtype: "uint8", "uint16" or "float32".
        photographs: Whether all are 8-bit gray or RGB photographs, whose values stay as they are.
        low: C values: 0.1 % of the valid pixels are smaller.
        high: C values: 0.1 % of the valid pixels are larger.
        value_range: Range of the sample type.
        pixels: float32 `[N C]`, the sampled valid pixels.
        sizes: (width, height) of the images that were read, in pixels.
        num_images: Number of images that were read.
        others: Key and reason of images that cannot be read, or have another number of channels.
        notes: Remarks of the readers, with the number of images each holds for.
    """

    channels: tuple[str, ...]
    same_names: bool
    dtype: str
    photographs: bool
    low: tuple[float, ...]
    high: tuple[float, ...]
    value_range: tuple[float, float]
    pixels: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    num_images: int
    others: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def intensity(self, setting: Sequence[str | float]) -> tuple[Range, str]:
        """The range of the set, and the reason.

        Args:
            setting: auto, full, per-image, LOW HIGH (of all channels or of each), or a .csv file.

        Raises:
            UsageError: The setting has none of these forms.
            UserError: The .csv file cannot be read or lacks a channel, or the number of ranges is not that of channels.
        """
        chosen = parse(setting)
        if isinstance(chosen, Intensity):
            if len(chosen.low) not in (1, len(self.channels)):
                raise UserError(
                    f"--intensity has {len(chosen.low)} ranges, but the images have {len(self.channels)} channels",
                    "Give LOW HIGH once, or once for each channel",
                )
            return chosen, "as configured"
        if chosen in ("full", "per-image"):
            return cast(Range, chosen), "as configured"
        if chosen != "auto":
            return read_csv(chosen, self.channels), f"from {chosen}"
        return self._auto()

    def _auto(self) -> tuple[Range, str]:
        if self.photographs:
            return "full", "8-bit photographs"
        spread = max(high - low for low, high in zip(self.low, self.high, strict=True))
        if self.dtype == "uint8" and self.value_range == (0, 255) and spread >= _USES_ITS_RANGE:
            return "full", "8-bit images that use their range"
        low, high = self.low, self.high
        if self.channels == RGB:  # one range for the three, or colors would change
            low, high = (min(low),) * 3, (max(high),) * 3
        return Intensity(low, self._above(high)), f"0.1 to 99.9 % of the values of {self.num_images:,} images"

    def _above(self, high: tuple[float, ...]) -> tuple[float, ...]:
        """The upper bounds, raised where they are not above the lower ones."""
        return tuple(
            top if top > bottom else bottom + max(1.0, abs(bottom)) for bottom, top in zip(self.low, high, strict=True)
        )

    def bits(self, intensity: Range) -> Literal[8, 16]:
        """Bits per value that hold the images: 16 if 8 would merge values inside the range."""
        narrow = isinstance(intensity, Intensity) and all(
            high - low <= 255 for low, high in zip(intensity.low, intensity.high, strict=True)
        )
        return 8 if self.dtype == "uint8" or (self.dtype == "uint16" and narrow) else 16

    def mean_and_std(self, intensity: Range) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel for normalization, of values mapped to [0, 1]."""
        if intensity == "per-image":
            intensity = Intensity(self.low, self._above(self.high))
        elif intensity == "full":
            intensity = Intensity(self.value_range[:1], self.value_range[1:])
        low, high = (np.resize(np.array(bound), len(self.channels)) for bound in (intensity.low, intensity.high))
        mapped = ((self.pixels - low) / (high - low)).clip(0, 1)
        missing = np.isnan(mapped)
        mapped = np.ma.masked_array(mapped, missing)
        mean, std = mapped.mean(0).filled(0.0), mapped.std(0).filled(1.0)
        return tuple(mean.round(4).tolist()), tuple(np.maximum(std, 1e-3).round(4).tolist())

    def ranges(self) -> str:
        """Name and range of values of each channel, e.g. "channel 0: 482 to 996, channel 1: 34 to 1394"."""
        bounds = zip(self.channels, self.low, self.high, strict=True)
        digits = ".4g" if self.dtype == "float32" else ".0f"
        return ", ".join(
            f"{'channel ' * name.isdecimal()}{name}: {low:{digits}} to {high:{digits}}" for name, low, high in bounds
        )

    def describe(self) -> list[str]:
        """What was found, a line each, for the log."""
        many = "1 channel" if len(self.channels) == 1 else f"{len(self.channels)} channels"
        lines = [f"{self.num_images:,} images surveyed: {many} of {self.dtype} ({self.ranges()})"]
        if self.others:
            key, reason = self.others[0]
            lines.append(
                f"{len(self.others):,} more surveyed but not trained on, e.g. {key}: {reason}. "
                "The number of images below includes such ones; training uses others in their place"
            )
        return lines + list(self.notes)


def has_only_photographs(source: ImageFiles, num: int = 32) -> bool:
    """Whether the readable images of a small sample are 8-bit photographs; none of them is decoded.

    Raises:
        UserError: A file has pages without a known meaning: the message names the flags.
    """
    return not any(isinstance(image, DecodedImage) for _, image in _images(source, sample_indices(source, num)))


def survey(source: ImageFiles, num: int = NUM_IMAGES, seed: int = 0) -> Survey:
    """Read a uniform sample of a set.

    Args:
        source: The images.
        num: Number of images to read.
        seed: Seed of the sample.

    Returns:
        What they have in common; if all are 8-bit photographs, gray ones count as RGB.

    Raises:
        UserError: No sampled image can be read; or pages have no known meaning: the message names the flags.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    found: list[tuple[str, DecodedImage]] = []  # with a sample of their pixels, [1 N C]
    others: list[tuple[str, str]] = []
    sizes: list[tuple[int, int]] = []
    only_photographs = True
    for key, image in _images(source, _sample(source, num, rng), others):
        if isinstance(image, DecodedImage):
            only_photographs = False
        else:
            try:
                image = readers.read(image, source.reading) if isinstance(image, bytes) else from_array(image, RGB)
            except BadImage as error:
                others.append((key, str(error)))
                continue
        sizes.append((image.pixels.shape[1], image.pixels.shape[0]))
        found.append((key, _thinned(image, rng)))
    if not found:
        raise UserError(
            f"None of {len(others)} images can be read, e.g. {others[0][0]}: {others[0][1]}", "Convert them"
        )
    only_photographs = _of_one_depth(found, others) or only_photographs
    if only_photographs:  # as in `has_only_photographs`: then all are trained on as RGB
        found = [(key, _as_rgb(image)) for key, image in found]
    return _summary(found, others, sizes)


def _images(
    source: ImageFiles, indices: Sequence[int], others: list[tuple[str, str]] | None = None
) -> Iterator[tuple[str, DecodedImage | bytes | np.ndarray]]:
    """Keys and images; those that cannot be read are added to `others` with the reason."""
    for index in track(indices, "images looked at"):
        key = source.key(index)
        try:
            image = source.image(index)
        except StackQuestion as error:
            found, _, choices = str(error).partition("? ")
            raise UserError(f"{key}: {found}", choices) from None
        except BadImage as error:
            if others is not None:
                others.append((key, str(error)))
        else:
            yield key, image


def _sample(source: Source, num: int, rng: np.random.Generator) -> list[int]:
    """Indices of a uniform sample, in order; of a source with shards, from at most 16 of them."""
    sizes = source.shard_sizes
    if len(sizes) <= _MAX_SHARDS:
        return sorted(rng.permutation(len(source))[:num].tolist())
    starts = np.cumsum(sizes) - sizes
    shards = np.sort(rng.permutation(len(sizes))[:_MAX_SHARDS])
    inside = np.concatenate([starts[shard] + np.arange(int(sizes[shard])) for shard in shards])
    return sorted(rng.permutation(inside)[:num].tolist())


def _thinned(image: DecodedImage, rng: np.random.Generator) -> DecodedImage:
    """The same image with a uniform sample of its pixels, `[1 N C]`."""
    height, width, channels = image.pixels.shape
    chosen = rng.integers(height * width, size=min(_PIXELS_PER_IMAGE, height * width))
    pixels = np.ascontiguousarray(image.pixels.reshape(-1, channels)[chosen][None])
    missing = None if image.nodata is None else image.nodata.reshape(-1, channels)[chosen][None]
    return DecodedImage(pixels, image.channels, image.value_range, missing, image.notes)


def _of_one_depth(found: list[tuple[str, DecodedImage]], others: list[tuple[str, str]]) -> bool:
    """Keep the more frequent ones if some images are photographs and some deeper; return whether photographs stay.

    One range of values cannot serve both: `to_pixels` refuses an image of 8 bits in a set of deeper ones, and in a set
    of photographs a deeper one that would be black. Those join `others`.
    """
    photographs = [each for each in found if each[1].is_photograph]
    deeper = [each for each in found if each[1].pixels.dtype != np.uint8]
    if not photographs or not deeper:
        return False
    if len(photographs) <= len(deeper):
        others += [(key, "8 bits, most have more") for key, _ in photographs]
        found[:] = [each for each in found if not each[1].is_photograph]
        return False
    for key, image in deeper:
        try:
            check_bright(image)
        except BadImage as error:
            others.append((key, str(error)))
    found[:] = photographs
    return True


def _as_rgb(image: DecodedImage) -> DecodedImage:
    """A gray photograph with its values in three channels; any other image itself."""
    if image.channels == RGB:
        return image
    pixels = np.repeat(image.pixels, 3, 2)
    return DecodedImage(pixels, RGB, image.value_range, None, (*image.notes, "gray, read as RGB"))


def _summary(
    found: list[tuple[str, DecodedImage]], others: list[tuple[str, str]], sizes: list[tuple[int, int]]
) -> Survey:
    """What most images have in common; images with another number of channels join the others."""
    usual = Counter(len(image.channels) for _, image in found).most_common(1)[0][0]
    for key, image in found:
        if len(image.channels) != usual:
            others.append((key, f"{describe(image.channels)}, most have {usual}"))
    images = [image for _, image in found if len(image.channels) == usual]
    names = Counter(image.channels for image in images).most_common(1)[0][0]
    pixels = np.concatenate([_with_nan(image) for image in images])  # [N C]
    low, high = np.zeros(usual), np.ones(usual)
    for channel in range(usual):
        valid = pixels[:, channel][~np.isnan(pixels[:, channel])]
        if valid.size:
            low[channel], high[channel] = np.percentile(valid, _PERCENTILES)
    dtypes = [image.pixels.dtype for image in images]
    notes = Counter(note for image in images for note in image.notes)
    return Survey(
        channels=names,
        same_names=len({image.channels for image in images}) == 1 and len(set(names)) == usual,
        dtype=str(np.result_type(*dtypes)),
        photographs=all(image.is_photograph for _, image in found),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        value_range=(min(image.value_range[0] for image in images), max(image.value_range[1] for image in images)),
        pixels=pixels,
        sizes=tuple(sizes),
        num_images=len(images),
        others=tuple(others),
        notes=tuple(f"{note} ({count:,} of {len(images):,} images)" for note, count in notes.most_common(3)),
    )


def _with_nan(image: DecodedImage) -> np.ndarray:
    """The pixels as float32 `[N C]`, NaN where there is no data."""
    values = image.pixels[0].astype(np.float32)
    if image.nodata is not None:
        values[image.nodata[0]] = np.nan
    return values
