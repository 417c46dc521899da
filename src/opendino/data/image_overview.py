"""What is in a folder or archive of images: counts, sizes, depth, channels, files that cannot be read, examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from opendino.core.errors import BadImage, UserError
from opendino.core.types import PixelFormat
from opendino.data import channel_file_names
from opendino.data.dataset_probe import sample_indices
from opendino.data.decode import decode
from opendino.data.image_files import ImageFiles, image_files
from opendino.data.image_survey import has_only_photographs, survey
from opendino.data.labels import all_labels
from opendino.data.open_source import open_source
from opendino.data.picture import picture
from opendino.data.readers.multi_page_files import Reading

_LOOKED_AT = 120
"""Number of images that are decoded."""
_EXAMPLES, _EXAMPLE_AREA_PX = 12, 240 * 240
RECIPE = "microscopy"
"""The recipe of images that are no photographs: 16 bit, other channels, values that are measured."""
_RECIPES = f"{RECIPE} (cells, tissue); aerial for images from above; the default is for photographs"
_FOLDERS = 12
"""Number of sub-folders that are named."""
_DEPTHS = {"uint8": "8 bit", "uint16": "16 bit", "float32": "32-bit floating point"}


@dataclass(frozen=True)
class Overview:
    """What is in a set of images.

    Attributes:
        facts: Name → what was found, a line each.
        bad: Key and reason of images among those looked at that cannot be used.
        examples: Images with their keys, spaced evenly over the set.
        recipe: The recipe to train with; auto: the default one.
    """

    facts: dict[str, str]
    bad: tuple[tuple[str, str], ...]
    examples: list[tuple[Image.Image, str]]
    recipe: str = "auto"


def look_at(data: str, stack: str = "ask", every_image: bool = False) -> Overview:
    """Read a sample of a set of images, or all of them.

    Args:
        data: A folder or an archive.
        stack: What pages of a file are, see `readers.multi_page_files.Reading`.
        every_image: Read all, and so find all files that cannot be used.

    Raises:
        UserError: It holds no images, none can be read, or the meaning of its pages is not known.
    """
    files = image_files(open_source(data), Reading(stack))
    found = survey(files, len(files) if every_image else _LOOKED_AT)
    files.intensity, why = found.intensity(("auto",))
    files.pixel_format = PixelFormat(len(found.channels))
    facts = {
        "images": f"{len(files):,}{_folders(files)}",
        "size in pixels": _sizes(found.sizes),
        "depth": f"{_DEPTHS.get(found.dtype, found.dtype)}; range used: {why}",
        "channels": f"{len(found.channels)}: {', '.join(found.channels)}",
        "looked at": f"{found.num_images + len(found.others):,} of {len(files):,} images, spread over the set",
    }
    if not found.photographs:
        facts["values"] = f"{found.ranges()} (99.8 % of the pixels)"
        facts["recipe"] = _RECIPES
    if hint := _channel_files(files):
        facts["names"] = hint
    if found.notes:
        facts["notes"] = "; ".join(found.notes)
    recipe = "auto" if found.photographs else RECIPE
    return Overview(facts, found.others, _examples(files, found.channels), recipe)


def recommended_recipe(data: str, stack: str = "ask") -> str:
    """The recipe for a set of images, from a few of them; arguments as for `look_at`.

    "auto" also where they cannot be read: training on them says why.
    """
    try:
        files = image_files(open_source(data), Reading(stack))
        return "auto" if has_only_photographs(files) else RECIPE
    except UserError:
        return "auto"


def _channel_files(files: ImageFiles) -> str:
    """That each file seems to hold one channel of an image, and how to read them together; empty if not."""
    found = channel_file_names.pattern_of(files)
    if found is None:
        return ""
    pattern, channels, num = found
    return f'as of {num:,} images of {len(channels)} files each, one per channel: --channel-files "{pattern}"'


def _folders(files: ImageFiles) -> str:
    """The sub-folders with their numbers of images: the end of a sentence."""
    if len(files.classes) < 2:
        return ""
    counts = np.bincount(all_labels(files) + 1, minlength=len(files.classes) + 1)[1:]
    named = [f"{name} {count:,}" for name, count in zip(files.classes, counts, strict=True)]
    more = f", and {len(named) - _FOLDERS} more" if len(named) > _FOLDERS else ""
    return f" in {len(named)} folders: {', '.join(named[:_FOLDERS])}{more}"


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    counts = Counter(sizes)
    if len(counts) == 1:
        width, height = sizes[0]
        return f"{width} × {height}, all"
    area = {size: size[0] * size[1] for size in counts}
    small, large = min(counts, key=area.__getitem__), max(counts, key=area.__getitem__)
    usual, number = counts.most_common(1)[0]
    return (
        f"{small[0]} × {small[1]} to {large[0]} × {large[1]}; most often {usual[0]} × {usual[1]} "
        f"({number / len(sizes):.0%})"
    )


def _examples(files: ImageFiles, channels: Sequence[str]) -> list[tuple[Image.Image, str]]:
    found = []
    for index in sample_indices(files, _EXAMPLES):
        try:
            pixels = decode(files.read(index), _EXAMPLE_AREA_PX, pixel_format=files.pixel_format)
        except BadImage:
            continue
        found.append((picture(pixels, channels), files.key(index)))
    return found
