"""Hugging Face datasets: `hf:NAME?split=train`, `hf:FOLDER` of Parquet or Arrow, a .parquet file; `&streaming=true`.

Options: `split` (train), `config`, `revision`, `image` and `label` (columns; by default the first of the type Image and
the first of the type ClassLabel), `streaming`.

The `datasets` library finds and fetches the tables and keeps them as Arrow files in its own cache, which are mapped,
not loaded; any image is then as near as any other. With `streaming` nothing is kept for good: the library's shards are
written one at a time, as they are needed, into our bounded folder of shards (OPENDINO_CACHE_GB, 50) and read there. To
know how many images there are, every shard is gone through once, at the first start; the index of them is kept.
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
from opendino.data.download import Unreachable, keep
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
_BINARY = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")  # columns of plain bytes that may be images


@final
class HfSource(Source):
    """The images of one split of a dataset, in its order.

    Args:
        rows: The table, or its shards.
    """

    def __init__(self, rows: _Table | Shards) -> None:
        self._rows = rows
        self.classes = rows.classes
        if isinstance(rows, Shards):
            self.blocks = rows.blocks

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        """The split and the row: `train/000017`; streaming, the shard and the row."""
        return self._rows.key(index)

    def label(self, index: int) -> int:
        """From the label column."""
        return self._rows.label(index)

    def read(self, index: int) -> bytes:
        """The image's bytes, as they are in the table.

        Raises:
            BadImage: The row has none, or they cannot be had.
        """
        return self._rows.read(index)

    def checksum(self, index: int) -> int:
        """See `Shards.checksum`."""
        return self._rows.checksum(index) if isinstance(self._rows, Shards) else super().checksum(index)

    def prefetch(self, indices: np.ndarray) -> None:
        """Streaming, fetch the shards of these images in the background."""
        if isinstance(self._rows, Shards):
            self._rows.prefetch(indices)


@dataclass(frozen=True)
class _Columns:
    """Where images and labels are; `names` of the classes where the table knows them."""

    image: str
    label: str | None
    names: tuple[str, ...]


class _Table:
    """Rows in mapped Arrow files."""

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
        except Exception as error:  # a damaged or vanished Arrow file raises many kinds
            raise BadImage(" ".join(str(error).split())[:200] or type(error).__name__) from error
        return _bytes(value)


class _Streamed:
    """The shards of a streaming dataset, written as .tar when they are needed."""

    def __init__(self, dataset: Any, columns: _Columns, shards: Sequence[str]) -> None:
        self._dataset, self._columns = dataset, columns
        self._numbers = {shard: number for number, shard in enumerate(shards)}

    def stamp(self, shard: str) -> list[int]:
        return []  # its name holds all that is known of its content

    def index(self, shard: str) -> bytes | None:
        return None

    def path(self, shard: str) -> Path:
        return keep(shard, partial(self._write, self._numbers[shard]))

    def prefetch(self, shards: Sequence[str]) -> None:
        if shards:
            threading.Thread(target=self._fetch, args=[shards], daemon=True).start()

    def _fetch(self, shards: Sequence[str]) -> None:
        for shard in shards:
            try:
                self.path(shard)
            except Unreachable:  # said already; who reads it hears it again
                return

    def _write(self, number: int, path: Path) -> None:
        """Go through a shard of the dataset."""
        try:
            rows = self._dataset.shard(len(self._numbers), number)
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for place, row in enumerate(rows):
                    try:
                        content = _bytes(row[self._columns.image])
                    except BadImage:
                        content = b""  # keeps its number, and is bad when it is read
                    _add(tar, f"{place:09d}.jpg", content)
                    label = row[self._columns.label] if self._columns.label else None
                    if label is not None and label != -1:
                        _add(tar, f"{place:09d}.cls", str(label).encode())
        except Exception as error:  # whatever the network and the library come up with
            raise Unreachable(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _bytes(value: Any) -> bytes:
    """The file of an image as a table holds it: bytes, or {"bytes", "path"}."""
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
        if value is None and path:
            return read_regular(Path(path))
    if not isinstance(value, bytes):
        raise BadImage("the row has no image")
    check_size(len(value))
    return value


def _columns(features: Any, image: str | None, label: str | None, kinds: Any) -> _Columns:
    """Which columns to use, by their types."""
    for wanted in (image, label):
        if wanted and wanted not in features:
            raise unknown("column", wanted, features)
    if not image:
        typed = [name for name, kind in features.items() if isinstance(kind, kinds.Image)]
        structs = [name for name, kind in features.items() if isinstance(kind, dict) and "bytes" in kind]
        plain = [name for name in _BINARY if getattr(features.get(name), "dtype", "") in ("binary", "large_binary")]
        found = [*typed, *structs, *plain]
        if not found:
            raise UserError(f"No column holds images, of {', '.join(features)}", "Name one: hf:...?image=COLUMN")
        image = str(found[0])
    label = label or next((name for name, kind in features.items() if isinstance(kind, kinds.ClassLabel)), None)
    names = getattr(features[label], "names", ()) if label else ()
    return _Columns(image, label, tuple(map(printable, names)))


def _opened(kinds: Any, name: str, options: dict[str, str], streaming: bool) -> Any:
    """The dataset by the library's own ways of finding it."""
    split = options.get("split", "train")
    if is_file(name):
        return kinds.load_dataset("parquet", data_files=[name], split="train", streaming=streaming)
    if is_folder(name) and any(exists(os.path.join(name, mark)) for mark in ("dataset_dict.json", "state.json")):  # noqa: PTH118
        found = kinds.load_from_disk(name)
        if isinstance(found, kinds.DatasetDict):
            if split not in found:
                raise unknown("split", split, found)
            found = found[split]
        return found.to_iterable_dataset(num_shards=max(1, len(found.cache_files))) if streaming else found
    rest = {key: options[key] for key in ("revision",) if key in options}
    return kinds.load_dataset(name, options.get("config"), split=split, streaming=streaming, **rest)


def _version(name: str) -> str:
    """What changes with local files."""
    if not exists(name):
        return ""
    paths: Iterator[Path] = Path(name).rglob("*") if is_folder(name) else iter([Path(name)])
    status = [path.stat() for path in sorted(paths)]
    return f"{sum(each.st_size for each in status)}-{max(each.st_mtime_ns for each in status)}"


def matches(data: str) -> bool:
    """Whether DATA is a folder of Parquet or Arrow tables, or a .parquet file; options may follow."""
    path = data if exists(data) else data.partition("?")[0]
    return detect_layout(path) == "tables" or (path.lower().endswith(".parquet") and is_file(path))


def build(data: str) -> HfSource:
    """The source for a dataset's name or place, and options.

    Raises:
        UsageError: An unknown option, split or column.
        UserError: The library is missing, or cannot open the dataset.
    """
    name, _, query = (data, "", "") if exists(data) else data.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options.keys() - set(_OPTIONS):
        raise unknown("option of hf:", option, _OPTIONS)
    if not name:
        raise UsageError(
            "hf: names no dataset", "Give a name such as hf:uoft-cs/cifar10?split=train, or a folder of .parquet"
        )
    if options.get("streaming", "false") not in ("true", "false"):
        raise UsageError(f"streaming is '{options['streaming']}'", "Use true or false")
    streaming = options.get("streaming") == "true"
    try:
        import datasets as kinds
    except ImportError as error:
        raise UserError(
            "Hugging Face datasets need a library", 'Install it: pip install "opendino[streams]"'
        ) from error
    try:
        dataset = _opened(kinds, name, options, streaming)
        if dataset.features is None:  # streaming, and nobody has written down what the columns are
            dataset = dataset._resolve_features()
        columns = _columns(dataset.features, options.get("image"), options.get("label"), kinds)
        if isinstance(dataset.features.get(columns.image), kinds.Image):
            dataset = dataset.cast_column(columns.image, kinds.Image(decode=False))
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"Cannot open hf:{printable(data)}: {reason}", "Check its name, split and your network"
        ) from error
    if not streaming:
        if not len(dataset):
            raise UserError(f"hf:{printable(data)} has no rows", "Give another split")
        return HfSource(_Table(dataset, columns, str(dataset.split or options.get("split", "train"))))
    said = f"hf:{printable(data)}@{_version(name)}".replace("/", "|")
    shards = [f"{said}/shard-{number:05d}" for number in range(dataset.num_shards)]
    return HfSource(Shards(shards, _Streamed(dataset, columns, shards), columns.names))
