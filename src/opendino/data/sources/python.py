"""A dataset given in Python: `opendino.train(dataset)`; in configs `python:NAME`, known only to its own process.

Accepts a `Source`, any map-style `torch.utils.data.Dataset`, a Hugging Face dataset, or a sequence. An item is an
image, a tuple whose first value is the image, or a dict with the image under "image", "img" or "pixel_values".

An image is a PIL image, or an array or tensor `[H W]`, `[H W C]` or `[C H W]` of any C that is less than H and W. Gray
and RGB of uint8, or of floats in [0, 1], are photographs. All others are read as files are, with the channels and the
intensity of the run. A dataset may name its channels in an attribute `channels`; then C may also be larger.
"""

from __future__ import annotations

import io
import zipfile
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
from opendino.data.readers import photograph
from opendino.data.readers.decoded_image import clean_name
from opendino.data.source_files import class_order
from opendino.data.subset import evenly_spaced

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
        self._dataset, self._channels = dataset, _channel_names(dataset)
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
        """A photograph, uint8 `[H W 3]`; other images as the content of a .npy or .npz file, which the readers scale.

        Raises:
            BadImage: The item has no image, or it is not clear which axis is that of the channels.
        """
        try:
            return _pixels(_image(self._dataset[index]), self._channels)
        except BadImage:
            raise
        except Exception as error:  # a dataset may raise anything, also when a lazily opened file is decoded
            raise BadImage(f"{type(error).__name__}: {str(error)[:200]}") from error


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
        "Pass them again: opendino.resume(RUN, data=dataset), opendino.evaluate.knn(RUN, train=dataset); on "
        "the command line, name a folder",
    )


def register(dataset: Any) -> str:
    """Make a dataset known to this process; returns its DATA, the same for the same images.

    Raises:
        UsageError: It is not a dataset of images.
    """
    source = dataset if isinstance(dataset, Source) else PythonSource(dataset)
    kind = type(dataset).__name__.lower()
    seen = zlib.crc32(f"{len(source)} {source.classes}".encode())
    for index in evenly_spaced(len(source), 8):
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


def _pixels(image: Any, names: tuple[str, ...]) -> bytes | np.ndarray:
    if isinstance(image, Image.Image):
        if not photograph.is_deep(image):
            return np.array(apply_exif_orientation(image).convert("RGB"))
        image = photograph.deep_gray(image).pixels
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise BadImage(f"a {type(image).__name__} is not an image")
    if image.dtype.kind not in "buif" or not image.size:
        raise BadImage(f"an array {list(image.shape)} of {image.dtype} is not an image")
    image = _channels_last(image, names)
    if names or image.shape[2] not in (1, 3):
        return _as_file(image, names)
    if image.dtype.kind == "f":
        if not (image.min() >= 0 and image.max() <= 1):
            raise BadImage(f"values from {image.min():.3g} to {image.max():.3g}: give floats in [0, 1], not normalized")
        image = np.round(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        return _as_file(image, names)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _channels_last(image: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """`[H W]`, `[H W C]` or `[C H W]` → `[H W C]`, by the number of channels or by the shortest axis."""
    shape = image.shape
    if image.ndim == 2 and len(names) < 2:
        return image[:, :, None]
    axes = [axis for axis in (0, 2) if image.ndim == 3 and _may_be_channels(shape, axis, names)]
    if len(axes) != 1:
        expected = f"{len(names)} channels, {', '.join(names[:8])}" if names else "fewer channels than rows and columns"
        raise BadImage(
            f"an array {list(shape)} of {image.dtype}: which axis is that of the channels? Give [H W C] or [C H W], "
            f"with {expected}"
        )
    return np.moveaxis(image, axes[0], 2)


def _may_be_channels(shape: tuple[int, ...], axis: int, names: tuple[str, ...]) -> bool:
    if names:
        return shape[axis] == len(names)
    return shape[axis] < min(side for other, side in enumerate(shape) if other != axis)


def _as_file(image: np.ndarray, names: tuple[str, ...]) -> bytes:
    """The content of a .npy file `[H W C]`, or of an .npz file with an array `[H W]` for each named channel."""
    file = io.BytesIO()
    if not names:
        np.save(file, image)
        return file.getvalue()
    with zipfile.ZipFile(file, "w") as archive:
        for channel, name in enumerate(names):
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, image[..., channel])
    return file.getvalue()


def _channel_names(dataset: Any) -> tuple[str, ...]:
    """Names of the channels that a dataset gives, empty if it gives none.

    Raises:
        UsageError: A name is empty, too long, or there twice.
    """
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    given = getattr(dataset, "channels", None)
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        return ()
    names = tuple(given)
    good = all(0 < len(name.encode()) <= 60 and clean_name(name) == name for name in names)
    if not good or len(set(names)) < len(names):
        raise UsageError(
            f"The dataset's channels are {', '.join(map(repr, names[:8]))}", "Name each once, with 1 to 60 characters"
        )
    return names


def _labels(dataset: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels `[N]`, empty if there are none, and the names of the classes."""
    values, given = _values(dataset), getattr(dataset, "classes", None)
    if values is None:
        return np.zeros(0, np.int64), ()
    values = [value.item() if getattr(value, "ndim", None) == 0 else value for value in values]
    if all(isinstance(value, str | None) for value in values):
        found: tuple[str, ...] = tuple(sorted({*values} - {None}, key=class_order))
        if len(found) > max(50, len(values) // 2):
            log.warn(f"the labels of the dataset are {len(found):,} texts for {len(values):,} images: not used")
            return np.zeros(0, np.int64), ()
        number = {name: label for label, name in enumerate(found)}
        return np.array([number.get(value, -1) for value in values], np.int64), found
    if odd := [value for value in values if not isinstance(value, int | None)]:
        log.warn(f"the labels of the dataset are no classes, e.g. {str(odd[0])[:40]}: not used")
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
    first = next((item for index in range(min(len(dataset), 10)) if (item := _item(dataset, index)) is not None), None)
    label = _label_of_item(first)
    if label is None or label(first) is None:
        return None
    if len(dataset) > _MOST_READ_FOR_LABELS:
        log.warn(f"the labels of {len(dataset):,} items are not read; give the dataset a list `targets` to use them")
        return None
    items = (_item(dataset, index) for index in range(len(dataset)))
    return [None if item is None else label(item) for item in items]


def _item(dataset: Any, index: int) -> Any:
    """An item of a dataset, None if it cannot be read; then it is counted where its image is wanted."""
    try:
        return dataset[index]
    except Exception:  # a dataset may raise anything
        return None


def _label_of_item(item: Any) -> Callable[[Any], Any] | None:
    def whole(value: Any) -> int | None:
        value = value.item() if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0 else value
        return int(value) if isinstance(value, int | np.integer) else None

    if isinstance(item, tuple | list) and len(item) > 1:
        return lambda each: whole(each[1])
    if isinstance(item, dict) and (name := next((name for name in _LABEL_NAMES if name in item), None)):
        return lambda each: whole(each[name])
    return None
