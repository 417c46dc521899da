"""Hugging Face datasets: `hf:NAME?split=train`, `hf:FOLDER` of Parquet or Arrow, a .parquet file; `&streaming=true`.

Options: `split` (train), `config`, `revision`, `image` and `label` (columns; by default the first of the type Image and
the first of the type ClassLabel), `streaming`.

The `datasets` library downloads the tables and keeps them as Arrow files in its own cache; they are memory-mapped, so
access is random and fast. With `streaming=true` the dataset is not kept: its shards are written as .tar, one at a time
when they are needed, into our cache folder of limited size (OPENDINO_CACHE_GB, 50). The first start reads every shard
once, to count the images; the index is saved.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final
from urllib.parse import parse_qsl

import numpy as np

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError, unknown
from opendino.data.download import Unreachable
from opendino.data.download_cache import cached_file
from opendino.data.shards import Shards
from opendino.data.source_files import (
    check_size,
    class_order,
    detect_layout,
    exists,
    is_file,
    is_folder,
    printable,
    read_regular,
)

_OPTIONS = ("split", "config", "revision", "image", "label", "streaming")
_BINARY = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")  # names of columns of bytes that may be images


@final
class HfSource(Source):
    """The images of one split of a Hugging Face dataset, in its order.

    Args:
        rows: The table; or its shards, for a streamed dataset.
    """

    def __init__(self, rows: _Table | Shards) -> None:
        self._rows = rows
        self.classes = rows.classes
        if isinstance(rows, Shards):
            self.shard_sizes = rows.shard_sizes

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        """The split and the row: `train/000000017`; for a streamed dataset, the shard and the row."""
        return self._rows.key(index)

    def label(self, index: int) -> int:
        """The class in the label column; -1 if there is none."""
        return self._rows.label(index)

    def read(self, index: int) -> bytes:
        """The bytes of the image file, as stored in the table.

        Raises:
            BadImage: The row has no image, or the table cannot be read.
        """
        return self._rows.read(index)

    def checksum(self, index: int) -> int:
        """As `Source.checksum`; for a streamed dataset see `Shards.checksum`."""
        return self._rows.checksum(index) if isinstance(self._rows, Shards) else super().checksum(index)

    def prefetch(self, indices: np.ndarray) -> None:
        """For a streamed dataset, prepare the shards of these images in the background."""
        if isinstance(self._rows, Shards):
            self._rows.prefetch(indices)


@dataclass(frozen=True)
class _Columns:
    """Names of the columns with images and labels, and names of the classes if the table has them."""

    image: str
    label: str | None
    names: tuple[str, ...]


class _Table:
    """Rows in memory-mapped Arrow files."""

    def __init__(self, dataset: Any, columns: _Columns, split: str) -> None:
        self._image, self._split = columns.image, split
        values: list[Any] = []
        if columns.label:
            values = dataset.select_columns([columns.label]).with_format("arrow")[:].column(0).to_pylist()
        self.classes = columns.names or tuple(
            sorted({printable(str(value)) for value in values if value is not None}, key=class_order)
        )
        number = {name: label for label, name in enumerate(self.classes)}
        if columns.names:
            self._labels = np.array([-1 if value is None else value for value in values], np.int32)
        else:
            self._labels = np.array([number.get(printable(str(value)), -1) for value in values], np.int32)
        self._rows = dataset.select_columns([columns.image])

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return f"{self._split}/{index:09d}"

    def label(self, index: int) -> int:
        return int(self._labels[index]) if len(self._labels) else -1

    def read(self, index: int) -> bytes:
        try:
            value = self._rows[int(index)][self._image]
        except Exception as error:  # a damaged or missing Arrow file raises many kinds of errors
            raise BadImage(" ".join(str(error).split())[:200] or type(error).__name__) from error
        return _image_bytes(value)


class _StreamStore:
    """A `ShardStore` for a streamed dataset: its shards are written as .tar when they are needed."""

    def __init__(self, dataset: Any, columns: _Columns, shards: Sequence[str]) -> None:
        self._dataset, self._columns = dataset, columns
        self._numbers = {shard: number for number, shard in enumerate(shards)}

    def stamp(self, shard: str) -> list[int]:
        return []  # nothing is known beyond its name, which includes the version of local files

    def index(self, shard: str) -> bytes | None:
        return None

    def path(self, shard: str) -> Path:
        return cached_file(shard, partial(self._write, self._numbers[shard]))

    def prefetch(self, shards: Sequence[str]) -> None:
        if shards:
            threading.Thread(target=self._download_all, args=[shards], daemon=True).start()

    def _download_all(self, shards: Sequence[str]) -> None:
        for shard in shards:
            try:
                self.path(shard)
            except Unreachable:  # logged already, and raised again when an image of the shard is read
                return

    def _write(self, number: int, path: Path) -> None:
        """Stream one shard of the dataset into a .tar file."""
        try:
            rows = self._dataset.shard(len(self._numbers), number)
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for place, row in enumerate(rows):
                    try:
                        content = _image_bytes(row[self._columns.image])
                    except BadImage:
                        content = b""  # keeps the numbering of rows, and is unreadable later
                    _add(tar, f"{place:09d}.jpg", content)
                    label = row[self._columns.label] if self._columns.label else None
                    if label is not None and label != -1:
                        _add(tar, f"{place:09d}.cls", str(label).encode())
        except Exception as error:  # the network and the library raise many kinds of errors
            raise Unreachable(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _image_bytes(value: Any) -> bytes:
    """The bytes of an image file from the value in a table: bytes, or {"bytes", "path"}."""
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
        if value is None and path:
            return read_regular(Path(path))
    if not isinstance(value, bytes):
        raise BadImage("the row has no image")
    check_size(len(value))
    return value


def _find_columns(features: Any, image: str | None, label: str | None, hf_datasets: Any) -> _Columns:
    """Choose the columns of images and labels, by the options or else by their types."""
    for wanted in (image, label):
        if wanted and wanted not in features:
            raise unknown("column", wanted, features)
    if not image:
        typed = [name for name, kind in features.items() if isinstance(kind, hf_datasets.Image)]
        structs = [name for name, kind in features.items() if isinstance(kind, dict) and "bytes" in kind]
        plain = [name for name in _BINARY if getattr(features.get(name), "dtype", "") in ("binary", "large_binary")]
        found = [*typed, *structs, *plain]
        if not found:
            raise UserError(f"No column holds images, of {', '.join(features)}", "Choose one: hf:...?image=COLUMN")
        image = str(found[0])
    label = label or next((name for name, kind in features.items() if isinstance(kind, hf_datasets.ClassLabel)), None)
    names = getattr(features[label], "names", ()) if label else ()
    return _Columns(image, label, tuple(map(printable, names)))


def _open_dataset(hf_datasets: Any, name: str, options: dict[str, str], streaming: bool) -> Any:
    """Open a dataset with the `datasets` library: a .parquet file, a folder from `save_to_disk`, or a name."""
    split = options.get("split", "train")
    if is_file(name):
        return hf_datasets.load_dataset("parquet", data_files=[name], split="train", streaming=streaming)
    if is_folder(name) and any(exists(os.path.join(name, mark)) for mark in ("dataset_dict.json", "state.json")):  # noqa: PTH118
        found = hf_datasets.load_from_disk(name)
        if isinstance(found, hf_datasets.DatasetDict):
            if split not in found:
                raise unknown("split", split, found)
            found = found[split]
        return found.to_iterable_dataset(num_shards=max(1, len(found.cache_files))) if streaming else found
    rest = {key: options[key] for key in ("revision",) if key in options}
    return hf_datasets.load_dataset(name, options.get("config"), split=split, streaming=streaming, **rest)


def _version(name: str) -> str:
    """Text that changes when local files change: their total size and latest time; "" for a dataset on the Hub."""
    if not exists(name):
        return ""
    paths: Iterator[Path] = Path(name).rglob("*") if is_folder(name) else iter([Path(name)])
    status = [path.stat() for path in sorted(paths)]
    return f"{sum(each.st_size for each in status)}-{max(each.st_mtime_ns for each in status)}"


def matches(data: str) -> bool:
    """Whether DATA is a folder of Parquet or Arrow tables, or a .parquet file; options may follow after "?"."""
    path = data if exists(data) else data.partition("?")[0]
    return detect_layout(path) == "tables" or (path.lower().endswith(".parquet") and is_file(path))


def build(data: str) -> HfSource:
    """The source for the name or path of a dataset, with options.

    Raises:
        UsageError: An unknown option, split or column.
        UserError: The library is not installed, or cannot open the dataset.
    """
    name, _, query = (data, "", "") if exists(data) else data.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options.keys() - set(_OPTIONS):
        raise unknown("option of hf:", option, _OPTIONS)
    if not name:
        raise UsageError(
            "hf: names no dataset",
            "Give a name such as hf:uoft-cs/cifar10?split=train, or a folder of .parquet",
        )
    if options.get("streaming", "false") not in ("true", "false"):
        raise UsageError(f"streaming is '{options['streaming']}'", "Use true or false")
    streaming = options.get("streaming") == "true"
    try:
        import datasets as hf_datasets
    except ImportError as error:
        raise UserError(
            "Hugging Face datasets need the library datasets", 'Install it: pip install "opendino[streams]"'
        ) from error
    try:
        dataset = _open_dataset(hf_datasets, name, options, streaming)
        if dataset.features is None:  # streaming a dataset without metadata: read the first rows
            dataset = dataset._resolve_features()
        columns = _find_columns(dataset.features, options.get("image"), options.get("label"), hf_datasets)
        if isinstance(dataset.features.get(columns.image), hf_datasets.Image):
            dataset = dataset.cast_column(columns.image, hf_datasets.Image(decode=False))
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds of errors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"Cannot open hf:{printable(data)}: {reason}", "Check its name, split and your network"
        ) from error
    if not streaming:
        if not len(dataset):
            raise UserError(f"hf:{printable(data)} has no rows", "Give another split")
        return HfSource(_Table(dataset, columns, str(dataset.split or options.get("split", "train"))))
    label = f"hf:{printable(data)}@{_version(name)}".replace("/", "|")  # one path component
    shards = [f"{label}/shard-{number:05d}" for number in range(dataset.num_shards)]
    return HfSource(Shards(shards, _StreamStore(dataset, columns, shards), columns.names))
