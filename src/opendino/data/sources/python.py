"""A dataset given in Python: `opendino.train(dataset)`; in configs `python:NAME`, known only to its own process.

Accepts a `Source`, any map-style `torch.utils.data.Dataset`, a Hugging Face dataset, or a sequence. An item is an
image, a tuple whose first value is the image, or a dict with the image under "image", "img" or "pixel_values". An image
is a PIL image, an array `[H W 3]` of uint8 or `[H W]` of uint8 or uint16, or a tensor `[3 H W]` of uint8 or of floats
in [0, 1].
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch
from PIL import Image

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.data.decode import apply_exif_orientation

_PREFIX = "python:"
_IMAGE_NAMES = ("image", "img", "pixel_values")
_LABEL_NAMES = ("label", "labels", "target", "fine_label")
_MOST_READ_FOR_LABELS = 50_000
_given: dict[str, Source] = {}


@final
class PythonSource(Source):
    """A dataset of a script or notebook.

    Args:
        dataset: Has `__len__` and `__getitem__`.

    Raises:
        UsageError: It has not, or is empty.
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            hint = "Give a map-style dataset: one with len() and an item for each number"
            raise UsageError(f"A {type(dataset).__name__} is not a dataset of images", hint)
        if len(dataset) == 0:
            raise UsageError(f"The {type(dataset).__name__} is empty", "Give one image or more")
        self._dataset = dataset
        self._labels, self.classes = _labels(dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, index: int) -> str:
        """The number of the item: `00000017`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return f"{index:08d}"

    def label(self, index: int) -> int:
        """The item's label, -1 if unknown."""
        return int(self._labels[index]) if len(self._labels) else -1

    def read(self, index: int) -> bytes | np.ndarray:
        """The image, uint8 `[H W 3]`; more than 8 bits as the content of a .npy file, which the readers scale.

        Raises:
            BadImage: The item has no image.
        """
        try:
            item = self._dataset[index]
        except (OSError, ValueError, RuntimeError) as error:
            raise BadImage(f"{type(error).__name__}: {str(error)[:200]}") from error
        return _pixels(_image(item))


def matches(data: str) -> bool:
    """Whether DATA names a dataset given in Python."""
    return data.startswith(_PREFIX)


def build(data: str) -> Source:
    """The dataset of this name.

    Raises:
        UserError: This process was not given such a dataset.
    """
    name = _PREFIX + data.removeprefix(_PREFIX)
    if name in _given:
        return _given[name]
    raise UserError(
        f"The images of '{name}' were passed from Python, and are not known here",
        "Pass them again: opendino.resume(RUN, data=dataset); on the command line, give a folder",
    )


def register(dataset: Any) -> str:
    """Make a dataset known to this process; returns its DATA, the same for the same images.

    Raises:
        UsageError: It is not a dataset of images.
    """
    source = dataset if isinstance(dataset, Source) else PythonSource(dataset)
    kind = type(dataset).__name__.lower()
    seen = zlib.crc32(f"{len(source)} {source.classes}".encode())
    for index in np.unique(np.linspace(0, len(source) - 1, 8).astype(int)).tolist():
        try:
            seen = zlib.crc32(f"{source.key(index)} {source.checksum(index)}".encode(), seen)
        except BadImage:
            continue
    name = f"{_PREFIX}{kind}-{len(source)}-{seen:08x}"
    _given[name] = source
    return name


def _image(item: Any) -> Any:
    if isinstance(item, dict):
        found = next((item[name] for name in _IMAGE_NAMES if name in item), None)
        if found is None:
            raise BadImage(f"the item has no image, only {', '.join(map(str, item))}")
        return found
    return item[0] if isinstance(item, tuple | list) else item


def _pixels(image: Any) -> bytes | np.ndarray:
    if isinstance(image, Image.Image) and image.mode.startswith("I;16"):
        image = np.array(image)
    if isinstance(image, Image.Image):
        return np.array(apply_exif_orientation(image).convert("RGB"))
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
        if image.ndim == 3 and image.shape[0] in (1, 3):
            image = image.transpose(1, 2, 0)
    if not isinstance(image, np.ndarray):
        raise BadImage(f"a {type(image).__name__} is not an image")
    if np.issubdtype(image.dtype, np.floating):
        if image.size and not (image.min() >= 0 and image.max() <= 1):
            raise BadImage(f"values from {image.min():.3g} to {image.max():.3g}: give floats in [0, 1], not normalized")
        image = np.round(image * 255).astype(np.uint8)
    if image.ndim == 2 and image.dtype == np.uint16:
        file = io.BytesIO()
        np.save(file, image)
        return file.getvalue()
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        shape = f"an array {list(image.shape)} of {image.dtype}"
        raise BadImage(f"{shape} is not an image: give uint8 [H W 3] or [H W], or uint16 [H W]")
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _labels(dataset: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels `[N]`, empty if there are none, and the names of the classes."""
    values, given = _values(dataset), getattr(dataset, "classes", None)
    if values is None:
        return np.zeros(0, np.int64), ()
    numbers = np.array([-1 if value is None else int(value) for value in values], np.int64)
    names = tuple(map(str, given)) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    feature = getattr(dataset, "features", None)
    if isinstance(feature, dict):
        names = next((tuple(feature[key].names) for key in _LABEL_NAMES if hasattr(feature.get(key), "names")), names)
    count = int(numbers.max(initial=-1)) + 1
    return (numbers, names if len(names) >= count else tuple(map(str, range(count)))) if count else (numbers, ())


def _values(dataset: Any) -> Sequence[Any] | None:
    """The labels as the dataset has them: its list of labels, or from its items if there are few enough to read."""
    if isinstance(dataset, torch.utils.data.Subset):
        inner = _values(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if isinstance(values, Sequence | np.ndarray | torch.Tensor) and len(values) == len(dataset):
            return values.tolist() if isinstance(values, torch.Tensor | np.ndarray) else values
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        found = next((name for name in _LABEL_NAMES if name in columns), None)
        return dataset[found] if found else None
    first = dataset[0]
    label = _label_of_item(first)
    if label is None or label(first) is None:
        return None
    if len(dataset) > _MOST_READ_FOR_LABELS:
        log.warn(f"the labels of {len(dataset):,} items are not read; give the dataset a list `targets` to use them")
        return None
    return [label(dataset[index]) for index in range(len(dataset))]


def _label_of_item(item: Any) -> Callable[[Any], Any] | None:
    def whole(value: Any) -> int | None:
        value = value.item() if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0 else value
        return int(value) if isinstance(value, int | np.integer) else None

    if isinstance(item, tuple | list) and len(item) > 1:
        return lambda each: whole(each[1])
    if isinstance(item, dict) and (name := next((name for name in _LABEL_NAMES if name in item), None)):
        return lambda each: whole(each[name])
    return None
