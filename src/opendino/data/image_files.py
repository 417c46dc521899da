"""The images of a source as the user wants them read: channels, pages, one file per channel, one range for the set."""

from __future__ import annotations

import abc
import dataclasses
import re
import zlib
from typing import final

import numpy as np

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.types import PixelFormat
from opendino.data import readers
from opendino.data.intensity import Range, to_pixels
from opendino.data.readers.decoded_image import RGB, DecodedImage, from_array
from opendino.data.readers.multi_page_files import Reading, check_channels

_PATTERN_HINT = 'Write a pattern with {id} and {channel}, e.g. --channel-files "{id}_w{channel}.tif"; * is any text'
_MAX_LISTED = 5


class ImageFiles(Source, abc.ABC):
    """Images that combine the files of another source.

    Attributes:
        source: The files.
        reading: What pages are, and which channels to keep.
        intensity: Range of the set. Until the survey it is "full".
        pixel_format: Number of channels and bits of the set. Until the survey it is that of photographs.
        model_channels: Names of the channels that a trained model takes; empty in training.
    """

    model_channels: tuple[str, ...] = ()

    def __init__(self, source: Source, reading: Reading, intensity: Range) -> None:
        self.source, self.reading = source, reading
        self.intensity: Range = intensity
        self.classes, self.folder_classes = source.classes, source.folder_classes

    @abc.abstractmethod
    def image(self, index: int) -> DecodedImage | bytes | np.ndarray:
        """The image with its own values; encoded, or uint8 `[H W 3]`, if it is a photograph.

        Raises:
            BadImage: It cannot be read.
        """

    def read(self, index: int) -> bytes | np.ndarray:
        """The image mapped to `pixel_format` by the intensity; a photograph of a set of photographs as it is.

        Raises:
            BadImage: It cannot be read, or has another number of channels.
        """
        image = self.image(index)
        if not isinstance(image, DecodedImage):
            if self.pixel_format == PixelFormat():
                return image
            image = readers.read(image, self.reading) if isinstance(image, bytes) else from_array(image, RGB)
        if self.model_channels:
            check_channels(image.channels, self.model_channels)
        return to_pixels(image, self.intensity, self.pixel_format)

    def checksum(self, index: int) -> int:
        """Checksum of the files' content and of how they are read."""
        return zlib.crc32(repr((self.reading, self.intensity)).encode(), self._checksum(index))

    @abc.abstractmethod
    def _checksum(self, index: int) -> int: ...


def image_files(source: Source, reading: Reading, channel_files: str = "", intensity: Range = "full") -> ImageFiles:
    """The images of a source.

    Args:
        source: The files.
        reading: What pages are, and which channels to keep.
        channel_files: Pattern of file names with {id} and {channel}, where each channel has a file of its own.
        intensity: Range of the set.

    Raises:
        UsageError: The pattern has no {id} or no {channel}.
        UserError: No files match the pattern, or no image has all channels.
    """
    if channel_files:
        return ChannelFiles(source, reading, channel_files, intensity)
    return (
        PageImages(source, reading, intensity) if reading.stack == "images" else WholeFiles(source, reading, intensity)
    )


@final
class WholeFiles(ImageFiles):
    """An image per file."""

    def __init__(self, source: Source, reading: Reading, intensity: Range = "full") -> None:
        super().__init__(source, reading, intensity)
        self.shard_sizes = source.shard_sizes

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        """The file's key."""
        return self.source.key(index)

    def label(self, index: int) -> int:
        """The file's label."""
        return self.source.label(index)

    def image(self, index: int) -> DecodedImage | bytes | np.ndarray:
        """The image with its own values; encoded if it is a photograph."""
        return _read(self.source.read(index), self.reading)

    def checksum(self, index: int) -> int:
        """The file's own checksum if that is all there is to say."""
        plain = self.reading == Reading() and self.intensity == "full"
        return self._checksum(index) if plain else super().checksum(index)

    def _checksum(self, index: int) -> int:
        return self.source.checksum(index)

    def prefetch(self, indices: np.ndarray) -> None:
        """Let the source prefetch these files."""
        self.source.prefetch(indices)


@final
class PageImages(ImageFiles):
    """An image per page, slice, time point or frame of each file; reads all files once to count them.

    The image of page n of a file has the key "FILE#n" and the file's label.
    """

    def __init__(self, source: Source, reading: Reading, intensity: Range = "full") -> None:
        super().__init__(source, reading, intensity)
        self._pages = [(file, page) for file in range(len(source)) for page in range(self._count(file))]

    def _count(self, file: int) -> int:
        try:
            data = self.source.read(file)
            return readers.count(data) if isinstance(data, bytes) else 1
        except BadImage:
            return 1  # the reason is given when it is read

    def __len__(self) -> int:
        return len(self._pages)

    def key(self, index: int) -> str:
        """The file's key and the number of the page."""
        file, page = self._pages[index]
        return f"{self.source.key(file)}#{page}"

    def label(self, index: int) -> int:
        """The file's label."""
        return self.source.label(self._pages[index][0])

    def image(self, index: int) -> DecodedImage | bytes | np.ndarray:
        """The page with its own values; encoded if the whole file is a photograph."""
        file, page = self._pages[index]
        return _read(self.source.read(file), dataclasses.replace(self.reading, stack=str(page)))

    def _checksum(self, index: int) -> int:
        file, page = self._pages[index]
        return zlib.crc32(str(page).encode(), self.source.checksum(file))


@final
class ChannelFiles(ImageFiles):
    """An image of several files, one for each channel.

    Files that do not match the pattern, and images without a file for every channel, are left out and named in the log.

    Args:
        source: The files.
        reading: What pages are; `channels` are names or numbers of the channels in sorted order.
        pattern: E.g. "{id}_w{channel}.tif", matched with the end of a path; `*` is any text.
        intensity: Range of the set.
    """

    def __init__(self, source: Source, reading: Reading, pattern: str, intensity: Range = "full") -> None:
        super().__init__(source, reading, intensity)
        groups, unmatched = _grouped(source, pattern)
        if not groups:
            raise UserError(f"No file matches --channel-files {pattern}, e.g. {source.key(0)}", _PATTERN_HINT)
        found = sorted({channel for files in groups.values() for channel in files}, key=_natural)
        self.channels = tuple(_chosen(found, reading.channels))
        self._images = [(name, [files[channel] for channel in self.channels])
                        for name, files in sorted(groups.items()) if files.keys() >= set(self.channels)]  # fmt: skip
        incomplete = {name: [channel for channel in self.channels if channel not in files]
                      for name, files in sorted(groups.items()) if not files.keys() >= set(self.channels)}  # fmt: skip
        listed = "; ".join(f"{name} lacks {' '.join(lacks)}" for name, lacks in [*incomplete.items()][:_MAX_LISTED])
        if not self._images:
            raise UserError(
                f"No image has all channels ({' '.join(self.channels)}): {listed}", "Choose: --channels NAME …"
            )
        log.say(f"{len(self._images):,} images of {len(self.channels)} files each, channels {' '.join(self.channels)}")
        if incomplete:
            log.warn(f"{len(incomplete):,} images without all channels are left out: {listed}")
        if unmatched:
            log.warn(f"{len(unmatched):,} files do not match {pattern} and are left out, e.g. {unmatched[0]}")

    def __len__(self) -> int:
        return len(self._images)

    def key(self, index: int) -> str:
        """The part of the path that {id} stands for."""
        return self._images[index][0]

    def label(self, index: int) -> int:
        """The label of the file of the first channel."""
        return self.source.label(self._images[index][1][0])

    def image(self, index: int) -> DecodedImage:
        """The channels of an image, `[H W C]`."""
        parts: list[DecodedImage] = []
        for channel, file in zip(self.channels, self._images[index][1], strict=True):
            data = self.source.read(file)
            part = (
                readers.read(data, dataclasses.replace(self.reading, channels=())) if isinstance(data, bytes) else None
            )
            if part is None or part.pixels.shape[2] != 1:
                raise BadImage(
                    f"the file of channel {channel} has {part.pixels.shape[2] if part else 3} channels, not 1"
                )
            parts.append(part)
        kinds = {(part.pixels.shape, part.pixels.dtype.name) for part in parts}
        if len(kinds) > 1:
            shown = ", ".join(f"{shape[1]}×{shape[0]} {kind}" for shape, kind in sorted(kinds))
            raise BadImage(f"its channels differ in size or type: {shown}")
        missing = None
        if any(part.nodata is not None for part in parts):
            none = np.zeros(parts[0].pixels.shape, bool)
            missing = np.concatenate([none if part.nodata is None else part.nodata for part in parts], 2)
        pixels = np.concatenate([part.pixels for part in parts], 2)
        notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
        return DecodedImage(pixels, self.channels, parts[0].value_range, missing, notes)

    def _checksum(self, index: int) -> int:
        total = 0
        for file in self._images[index][1]:
            total = zlib.crc32(str(self.source.checksum(file)).encode(), total)
        return total

    def prefetch(self, indices: np.ndarray) -> None:
        """Let the source prefetch the files of these images."""
        self.source.prefetch(np.array([file for index in indices for file in self._images[index][1]], np.int64))


def _read(data: bytes | np.ndarray, reading: Reading) -> DecodedImage | bytes | np.ndarray:
    """A file or an array `[H W 3]` of a source: as it is if it is a photograph, else read."""
    if isinstance(data, np.ndarray):
        return from_array(data, RGB).select(reading) if reading.channels else data
    image = readers.read_unless_photograph(data, reading)
    return data if image is None else image


def _grouped(source: Source, pattern: str) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Image → channel → number of the file; and the keys of files that do not match.

    Raises:
        UsageError: The pattern does not have {id} and {channel} once each.
        UserError: Two files are the same channel of one image.
    """
    if pattern.count("{id}") != 1 or pattern.count("{channel}") != 1:
        raise UsageError(f"--channel-files is '{pattern[:80]}'", _PATTERN_HINT)
    parts = {"{id}": "(?P<id>.+)", "{channel}": "(?P<channel>[^/]+?)", "*": "[^/]*"}
    words = re.split(r"(\{id\}|\{channel\}|\*)", pattern)
    expression = re.compile("".join(parts.get(word, re.escape(word)) for word in words))
    groups: dict[str, dict[str, int]] = {}
    unmatched = []
    for file in range(len(source)):
        match = expression.fullmatch(source.key(file))
        if match is None:
            unmatched.append(source.key(file))
            continue
        files = groups.setdefault(match["id"], {})
        if match["channel"] in files:
            names = f"{source.key(files[match['channel']])} and {source.key(file)}"
            raise UserError(f"{names} are both channel {match['channel']} of {match['id']}", _PATTERN_HINT)
        files[match["channel"]] = file
    return groups, unmatched


def _chosen(found: list[str], wanted: tuple[str, ...]) -> list[str]:
    """The channels to keep, by name; or by number, if no name is a number itself: w1 is not the first but channel 1.

    Raises:
        UserError: There is no such channel, or one is named twice.
    """
    numbered = not any(name.isdecimal() for name in found)
    chosen = list[str]()
    for each in wanted:
        by_number = numbered and each.isdecimal() and int(each) < len(found)
        if each not in found and not by_number:
            raise UserError(f"No files have the channel '{each:.40}'", f"Found: {' '.join(found[:20])}")
        chosen.append(each if each in found else found[int(each)])
    if len(set(chosen)) < len(chosen):
        raise UserError(f"A channel is named twice: {' '.join(chosen)}", f"Found: {' '.join(found[:20])}")
    return chosen or found


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which w2 comes before w10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
