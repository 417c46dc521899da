"""LanceDB tables: updated incrementally from a source of images, searched with an index when they are large."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, final

import numpy as np
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.source_files import exists, is_folder
from opendino.embeddings import table_schema
from opendino.embeddings.embed_images import Embedder, Rows
from opendino.embeddings.embedding_table import STRETCH, EmbeddingTable, SearchResult, check_model, readable, writable
from opendino.features.image_stream import Bad, none_readable, read_ahead

if TYPE_CHECKING:
    import pyarrow as pa

INDEX_FROM = 100_000
"""Minimum number of rows for an index: below it an exact search takes 0.2 s or less."""

_COMMIT = 1024  # images per commit: the most work that a killed update loses
_NPROBES = 64  # searched per query, about 8,192 rows each: this covers all partitions up to 0.5 million rows
_KEEP_VERSIONS = timedelta(hours=1)  # how long old versions are kept, for processes that are reading them
_REFINE = 4  # k * _REFINE candidates are compared again by their full vectors


@final
class LanceTable(EmbeddingTable):
    """A LanceDB table `NAME.lance` written by `opendino embed`, in a folder or an object store.

    Args:
        name: Path of the table.

    Raises:
        UserError: The table does not exist or cannot be read, opendino did not write it, or LanceDB is not installed.
    """

    def __init__(self, name: str) -> None:
        database, table = _connect(name)
        with readable(name):
            self._table = database.open_table(table)
            super().__init__(name, table_schema.about(self._table.schema))

    def __len__(self) -> int:
        return self._latest().count_rows()

    def _latest(self) -> Any:
        """The table with what other processes have added; old versions are removed after an hour."""
        with readable(self.name):
            self._table.checkout_latest()
        return self._table

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See `EmbeddingTable`. The rows are those that `len` counted last, also while others are added."""
        return iter(self._table.search().select(["key", "vector"]).to_batches(STRETCH))

    def search(self, queries: Tensor, k: int, exact: bool) -> SearchResult:
        """See `EmbeddingTable`. With an index, rows added after its creation are compared exactly.

        LanceDB itself rejects vectors with NaN, and never returns zero vectors.
        """
        table = self._latest()
        exact = exact or not _indices(table)
        keys: list[list[str]] = []
        scores: list[list[float]] = []
        for query in queries.numpy():
            request = table.search(query, vector_column_name="vector").distance_type("cosine").limit(k)
            request = request.bypass_vector_index() if exact else request.nprobes(_NPROBES).refine_factor(_REFINE)
            found = request.select(["key", "_distance"]).to_arrow()
            keys.append(found["key"].to_pylist())
            scores.append([1 - distance for distance in found["_distance"].to_pylist()])
        return SearchResult(keys, scores, exact)


@dataclass
class Updated:
    """Result of an update; changed, unchanged and removed are numbers of images.

    Attributes:
        new: Keys that are new in the table.
        changed: Embedded again because their content changed.
        unchanged: In the table with the same content.
        removed: Removed from the table because they are no longer in the source.
        vanished: Keys that are no longer in the source but still in the table.
        bad: (key, reason) of unreadable images; the table keeps their old rows unless their content changed.
    """

    new: list[str] = field(default_factory=list)
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    vanished: list[str] = field(default_factory=list)
    bad: Bad = field(default_factory=list)

    @property
    def added(self) -> int:
        """Number of images that are new in the table."""
        return len(self.new)


def update(
    name: str,
    embedder: Embedder,
    *,
    prune: bool = False,
    overwrite: bool = False,
    only_new: bool = False,
    index_from: int = INDEX_FROM,
) -> Updated:
    """Update a table from a source, or create it: only new and changed images are embedded.

    An image has changed if the digest of its bytes has. File times and sizes would be faster to compare, but archives
    and the Hub have none, copying changes them, and reading is cheap compared with embedding.

    Every `_COMMIT` images are one transaction; after a kill the next call continues from the last one. At the end small
    fragments are compacted, and from `index_from` rows an index is created or extended.

    Args:
        name: Path of the table, with suffix `.lance`.
        embedder: Embeds the images of the table; its `patches` must match an existing table.
        prune: Also remove the rows of images that are no longer in the source.
        overwrite: Replace an existing table; searches use the old one until the first images are committed.
        only_new: Do not read the images that are in the table, and take them as unchanged.
        index_from: Minimum number of rows for an index.

    Raises:
        UserError: The table has another model or other images, is damaged, or its name is not allowed; or no image of a
            new table can be read.
    """
    writer, source = _Writer(name, embedder, overwrite), embedder.source
    keys = [source.key(index) for index in range(len(source))]
    digests = writer.digests()  # of the rows in the table
    result = Updated(vanished=sorted(digests.keys() - set(keys)))
    if only_new:
        changed, result.unchanged = [], len(digests) - len(result.vanished)
    else:
        changed, result.unchanged, result.bad = _changed_images(source, keys, digests, embedder.workers)
    todo = sorted([*(index for index, key in enumerate(keys) if key not in digests), *changed])
    recorder = _DigestRecorder(source)
    for part in replace(embedder, source=recorder).parts(todo, _COMMIT):
        for rows in part:
            new = [key for key in rows.keys if key not in digests]
            result.new, result.changed = result.new + new, result.changed + len(rows) - len(new)
            result.bad += rows.bad
        outdated = [key for rows in part for key, _ in rows.bad if key in digests]
        writer.commit([rows for rows in part if len(rows)], recorder.digests, outdated)
    if writer.table is None:
        raise none_readable(len(keys), result.bad)
    with writable(name):
        if prune:
            _delete(writer.table, result.vanished)
            result.removed, result.vanished = len(result.vanished), []
        optimize(writer.table, index_from, changed=bool(todo) or bool(result.removed))
    return result


class _Writer:
    """Writes rows to a table in transactions; the first one creates the table if it does not exist.

    Args:
        name: Path of the table.
        embedder: Computes the rows.
        overwrite: Whether to replace an existing table.

    Attributes:
        table: The LanceDB table; None until it is created.

    Raises:
        UserError: The table has another model or other images, is damaged, or its name is not allowed.
    """

    def __init__(self, name: str, embedder: Embedder, overwrite: bool) -> None:
        self._name, (self._database, self._table_name) = name, _connect(name)
        pa = table_schema.pyarrow()
        # The number of images changes with every update; the metadata of a table cannot.
        origin = {field: value for field, value in embedder.origin.items() if field != "images"}
        self._schema = table_schema.arrow(embedder.dim, embedder.grid, origin)
        self._with_digest = self._schema.append(pa.field("digest", pa.binary(16)))
        exists = _exists(name)
        self._mode = "overwrite" if overwrite and exists else "create"  # LanceDB warns if there is nothing to overwrite
        self.table: Any = None
        if exists and not overwrite:
            old = LanceTable(name)
            check_model(old, embedder.model, origin["model"])
            _check_same(old, origin, self._schema)
            self.table = old._table

    def digests(self) -> dict[str, bytes]:
        """Key → digest of every row; empty without a table."""
        if self.table is None:
            return {}
        with readable(self._name):
            columns = self.table.search().select(["key", "digest"]).to_arrow()
            return dict(zip(columns["key"].to_pylist(), columns["digest"].to_pylist(), strict=True))

    def commit(self, batches: Sequence[Rows], digests: dict[int, bytes], outdated: Sequence[str]) -> None:
        """Insert or replace rows by key in one transaction; then delete rows.

        Args:
            batches: The rows.
            digests: Image index → digest; those of the rows are removed.
            outdated: Keys of the rows to delete.
        """
        record_batches = [self._record_batch(rows, digests) for rows in batches]
        with writable(self._name):
            if record_batches:
                table = table_schema.pyarrow().Table.from_batches(record_batches)
                if self.table is None:
                    self.table = self._database.create_table(self._table_name, table, mode=self._mode)
                else:
                    merge = self.table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
                    merge.execute(table)
            _delete(self.table, outdated)

    def _record_batch(self, rows: Rows, digests: dict[int, bytes]) -> pa.RecordBatch:
        pa = table_schema.pyarrow()
        column = pa.array([digests.pop(index) for index in rows.indices], pa.binary(16))
        return pa.RecordBatch.from_arrays(
            [*table_schema.batch(rows, self._schema).columns, column], schema=self._with_digest
        )


@final
class _DigestRecorder(Source):
    """A source that records the digest of every image it reads: of exactly the bytes that are embedded."""

    def __init__(self, source: Source) -> None:
        self._source, self.pixel_format = source, source.pixel_format
        self.digests: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        return self._source.key(index)

    def label(self, index: int) -> int:
        return self._source.label(index)

    def read(self, index: int) -> bytes | np.ndarray:
        data = self._source.read(index)
        self.digests[index] = _digest(data)
        return data


def _digest(data: bytes | np.ndarray) -> bytes:
    """16-byte BLAKE2b digest of a stored image, an encoded file or uint8 `[H W 3]`."""
    if isinstance(data, np.ndarray):
        data = str(data.shape).encode() + data.tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


def _changed_images(
    source: Source, keys: Sequence[str], digests: Mapping[str, bytes], workers: int
) -> tuple[list[int], int, Bad]:
    """For images with a row in the table: indices with changed content, the number unchanged, and unreadable images."""
    in_table = [index for index, key in enumerate(keys) if key in digests]
    changed: list[int] = []
    bad: Bad = []
    found = read_ahead(lambda position: _digest(source.read(in_table[position])), len(in_table), workers)
    for index, (_, digest) in zip(in_table, found, strict=True):
        if isinstance(digest, BadImage):
            bad.append((keys[index], str(digest)))
        elif digest != digests[keys[index]]:
            changed.append(index)
    return changed, len(in_table) - len(changed) - len(bad), bad


def _connect(name: str) -> tuple[Any, str]:
    """The database that contains a table, and the name of the table in it.

    Raises:
        UserError: LanceDB is not installed, the folder does not exist, or LanceDB does not allow the name.
    """
    try:
        import lancedb
    except ImportError:
        raise UserError("Tables that end in .lance need LanceDB", 'pip install "opendino[search]"') from None
    folder, slash, file = name.rstrip("/").rpartition("/")
    table_name = file.removesuffix(".lance")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", table_name):
        raise UserError(
            f"LanceDB does not allow a table name like '{table_name}'", "Use only letters, digits, and _ . -"
        )
    parent = folder or slash or "."
    if "://" not in name and not is_folder(parent):
        raise UserError(f"There is no folder {parent}", "Create it, or name another table")
    with readable(parent):
        return lancedb.connect(parent), table_name


def _exists(name: str) -> bool:
    """Whether the table exists, damaged or not."""
    if "://" not in name:
        return exists(name)
    database, table_name = _connect(name)
    try:
        database.open_table(table_name)
    except ValueError:  # not found
        return False
    except (OSError, RuntimeError):
        pass  # it exists but is damaged: opening it reports the reason
    return True


def _check_same(old: LanceTable, origin: Mapping[str, Any], schema: pa.Schema) -> None:
    """Refuse another source, whose keys would name other files, and another choice of patches.

    Raises:
        UserError: The table has another source or other columns.
    """
    if old.about["data"] != origin["data"]:
        raise UserError(
            f"{old.name} holds images of {old.about['data']}, not of {origin['data']}",
            "Use the same DATA as before, or another --out. For several folders in a table give the folder above them, "
            "or a text file of paths, to which more can be added later",
        )
    if old.about["grid"] != table_schema.about(schema)["grid"]:
        raise UserError(
            f"{old.name} was made {'without' if old.about['grid'] is None else 'with'} patches",
            "Use the same --patches as before, or another --out",
        )


def _delete(table: Any, keys: Sequence[str]) -> None:
    """Delete the rows with these keys."""
    for start in range(0, len(keys), _COMMIT):
        quoted = ", ".join("'{}'".format(key.replace("'", "''")) for key in keys[start : start + _COMMIT])
        table.delete(f"key IN ({quoted})")


def optimize(table: Any, index_from: int, changed: bool) -> None:
    """Compact small fragments, and create or extend the index if the table is large enough."""
    from lancedb.index import IvfSq

    if not _indices(table) and table.count_rows() >= index_from:
        table.create_index("vector", config=IvfSq(distance_type="cosine"))
    if changed or any(table.index_stats(index.name).num_unindexed_rows for index in _indices(table)):
        table.optimize(cleanup_older_than=_KEEP_VERSIONS)


def _indices(table: Any) -> list[Any]:
    """Indices of the column "vector": one or none."""
    return [index for index in table.list_indices() if index.columns == ["vector"]]
