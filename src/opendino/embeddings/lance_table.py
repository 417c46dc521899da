"""LanceDB tables: kept up to date with a source of images, searched with an index once they are large."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, final

import numpy as np
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.source_files import exists, is_folder
from opendino.embeddings import embed_images, table_schema
from opendino.embeddings.embedding_table import STRETCH, EmbeddingTable, SearchResult, check_model, readable
from opendino.features.image_stream import Bad, prefetch_images
from opendino.models.load import Model

if TYPE_CHECKING:
    import pyarrow as pa

INDEX_FROM = 100_000
"""Rows from which on there is an index: below, comparing with all of them takes a fifth of a second."""

_COMMIT = 1024  # images: what a killed update has to do again
_PARTITIONS = 64  # looked at for a query, of about 8,192 rows each: up to half a million rows that is all of them
_KEPT = timedelta(hours=1)  # of earlier versions, for those who read them just now
_REFINE = 4  # times k candidates are compared by their full vectors


@final
class LanceTable(EmbeddingTable):
    """A LanceDB table `NAME.lance` that `opendino embed` wrote, in a folder or an object store.

    Args:
        name: Its path.

    Raises:
        UserError: There is none, it cannot be read or is none of ours, or LanceDB is not installed.
    """

    def __init__(self, name: str) -> None:
        database, table = _connect(name)
        with readable(name):
            self._table = database.open_table(table)
            super().__init__(name, table_schema.about(self._table.schema))

    def __len__(self) -> int:
        return self._table.count_rows()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See `Table`."""
        return iter(self._table.search().select(["key", "vector"]).to_batches(STRETCH))

    def search(self, queries: Tensor, k: int, exact: bool) -> SearchResult:
        """See `Table`. With an index, rows that were added since it was made are compared one by one.

        LanceDB itself takes no vector with NaN, and finds none of zeros.
        """
        exact = exact or not _indices(self._table)
        keys: list[list[str]] = []
        scores: list[list[float]] = []
        for query in queries.numpy():
            asked = self._table.search(query, vector_column_name="vector").distance_type("cosine").limit(k)
            asked = asked.bypass_vector_index() if exact else asked.nprobes(_PARTITIONS).refine_factor(_REFINE)
            found = asked.select(["key", "_distance"]).to_arrow()
            keys.append(found["key"].to_pylist())
            scores.append([1 - distance for distance in found["_distance"].to_pylist()])
        return SearchResult(keys, scores, exact)


@dataclass
class Updated:
    """What an update came to, in images.

    Attributes:
        added: Were not in the table.
        changed: Were, with other content.
        unchanged: Were, with the same.
        removed: Were, and are gone from the source.
        vanished: Keys that are gone from the source and still in the table.
        bad: (key, reason) of those that cannot be read; what the table holds of them from before it keeps, unless
            their content has changed.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    vanished: list[str] = field(default_factory=list)
    bad: Bad = field(default_factory=list)


def update(
    name: str,
    model: Model,
    source: Source,
    origin: Mapping[str, Any],
    *,
    patches: bool = False,
    batch: int = 64,
    workers: int = 4,
    prune: bool = False,
    overwrite: bool = False,
    index_from: int = INDEX_FROM,
) -> Updated:
    """Bring a table up to date with a source, or make it: only new and changed images are embedded.

    An image has changed if its bytes have: the table keeps their digest. Times and sizes of files would be quicker to
    compare, but archives and the Hub have none, copying alters them, and reading is cheap beside embedding.

    Every `_COMMIT` images are committed at once; after a kill the next call goes on from there. At the end small pieces
    are put together, and from `index_from` rows on an index is made or extended.

    Args:
        name: Path of the table, ends in `.lance`.
        model: On any device.
        source: The images that the table shall hold.
        origin: As from `embed.origin`.
        patches: Whether to keep patch features as well; as the table has it where there is one.
        batch: Images at a time.
        workers: Threads that read and decode.
        prune: Also remove the rows of images that are gone from the source.
        overwrite: Begin anew, whatever the table holds; searches find the old one until the first images are committed.
        index_from: Rows from which on there is an index.

    Raises:
        UserError: The table is of another model, of other images, damaged, or its name is not allowed; or no image of a
            new one can be read.
    """
    database, short = _connect(name)
    pa = table_schema.pyarrow()
    origin = {
        name: value for name, value in origin.items() if name != "images"
    }  # a table grows, and what it says of itself cannot
    plain = table_schema.arrow(model.backbone.embed_dim, embed_images.grid(model) if patches else None, origin)
    full = plain.append(pa.field("digest", pa.binary(16)))
    mode = "overwrite" if overwrite and _is_there(name) else "create"  # to overwrite nothing, LanceDB warns of
    table = None
    if not overwrite and (old := _existing(name)) is not None:
        check_model(old, model, origin["model"])
        _check_same(old, origin, plain)
        table = old._table
    keys = [source.key(index) for index in range(len(source))]
    digests = _digests(name, table)
    done = Updated(vanished=sorted(digests.keys() - set(keys)))
    altered, done.unchanged, done.bad = _altered(source, keys, digests, workers)
    todo = sorted([*(index for index, key in enumerate(keys) if key not in digests), *altered])
    noted = _Noted(source)
    waiting: list[pa.RecordBatch] = []
    spoilt: list[str] = []
    seen = 0
    for rows in embed_images.vectors(model, noted, todo, batch=batch, workers=workers, patches=patches, within=_COMMIT):
        seen += len(rows) + len(rows.bad)
        done.bad += rows.bad
        spoilt += [key for key, _ in rows.bad if key in digests]
        if len(rows):
            marks = pa.array([noted.digests.pop(index) for index in rows.indices], pa.binary(16))
            waiting.append(pa.RecordBatch.from_arrays([*table_schema.batch(rows, plain).columns, marks], schema=full))
            replaced = sum(key in digests for key in rows.keys)
            done.changed, done.added = done.changed + replaced, done.added + len(rows) - replaced
        if seen % _COMMIT == 0 or seen == len(todo):
            with readable(name):
                table = _commit(database, short, table, waiting, mode)
                _delete(table, spoilt)
            waiting, spoilt = [], []
    if table is None:
        first = f", e.g. {done.bad[0][0]}: {done.bad[0][1]}" if done.bad else ""
        raise UserError(
            f"None of the {len(keys)} images can be read{first}", "Check that the folder holds intact images"
        )
    with readable(name):
        if prune:
            _delete(table, done.vanished)
            done.removed, done.vanished = len(done.vanished), []
        _tidy(table, index_from, changed=bool(todo) or bool(done.removed))
    return done


@final
class _Noted(Source):
    """A source that keeps the digests of what was read, so that they are those of the very bytes that were embedded."""

    def __init__(self, source: Source) -> None:
        self._source = source
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
    """Of an image as it is stored, an encoded file or uint8 `[H W 3]`: 16 bytes."""
    if isinstance(data, np.ndarray):
        data = str(data.shape).encode() + data.tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


def _altered(
    source: Source, keys: Sequence[str], digests: Mapping[str, bytes], workers: int
) -> tuple[list[int], int, Bad]:
    """Of the images that a table has: positions of those with other content, how many have the same, and the rest."""
    known = [index for index, key in enumerate(keys) if key in digests]
    altered: list[int] = []
    unread: Bad = []
    for looked, bad in prefetch_images(
        source, known, lambda place: _digest(source.read(known[place])), _COMMIT, workers
    ):
        altered += [known[place] for place, digest in looked if digest != digests[keys[known[place]]]]
        unread += bad
    return altered, len(known) - len(altered) - len(unread), unread


def _digests(name: str, table: Any) -> dict[str, bytes]:
    """Key → digest of every row."""
    if table is None:
        return {}
    with readable(name):
        columns = table.search().select(["key", "digest"]).to_arrow()
        return dict(zip(columns["key"].to_pylist(), columns["digest"].to_pylist(), strict=True))


def _connect(name: str) -> tuple[Any, str]:
    """The database that a table lies in, and its name there.

    Raises:
        UserError: LanceDB is not installed, the folder is absent, or LanceDB does not allow the name.
    """
    try:
        import lancedb
    except ImportError:
        raise UserError("Tables that end in .lance need LanceDB", 'pip install "opendino[search]"') from None
    folder, slash, file = name.rstrip("/").rpartition("/")
    short = file.removesuffix(".lance")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", short):
        raise UserError(f"LanceDB has no tables called '{short}'", "Use letters, digits, and _ . - for its name")
    place = folder or slash or "."
    if "://" not in name and not is_folder(place):
        raise UserError(f"There is no folder {place}", "Make it, or give another table")
    with readable(place):
        return lancedb.connect(place), short


def _existing(name: str) -> LanceTable | None:
    """The table, None where there is none yet."""
    return LanceTable(name) if _is_there(name) else None


def _is_there(name: str) -> bool:
    """Whether there is a table, damaged or not."""
    if "://" not in name:
        return exists(name)
    database, short = _connect(name)
    try:
        database.open_table(short)
    except ValueError:  # not found
        return False
    except (OSError, RuntimeError):
        pass  # whoever opens it hears the reason
    return True


def _check_same(old: LanceTable, origin: Mapping[str, Any], plain: pa.Schema) -> None:
    """Refuse images from elsewhere, whose keys would mean other files, and other columns.

    Raises:
        UserError: The table differs in one of these.
    """
    if old.about["data"] != origin["data"]:
        raise UserError(
            f"{old.name} holds images of {old.about['data']}, not of {origin['data']}",
            "Give the same DATA as before, or another --out",
        )
    if old.about["grid"] != table_schema.about(plain)["grid"]:
        raise UserError(
            f"{old.name} was made {'without' if old.about['grid'] is None else 'with'} patches",
            "Give the same --patches as before, or another --out",
        )


def _commit(database: Any, short: str, table: Any, batches: Sequence[pa.RecordBatch], mode: str) -> Any:
    """Add rows, replacing those with the same key, all or none; returns the table, made in `mode` if there was none."""
    if not batches:
        return table
    rows = table_schema.pyarrow().Table.from_batches(batches)
    if table is None:
        return database.create_table(short, rows, mode=mode)
    table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(rows)
    return table


def _delete(table: Any, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), _COMMIT):
        quoted = ", ".join("'{}'".format(key.replace("'", "''")) for key in keys[start : start + _COMMIT])
        table.delete(f"key IN ({quoted})")


def _tidy(table: Any, index_from: int, changed: bool) -> None:
    """Put small pieces together, extend the index, or make one where the table has become large enough for it."""
    from lancedb.index import IvfSq

    if not _indices(table) and table.count_rows() >= index_from:
        table.create_index("vector", config=IvfSq(distance_type="cosine"))
    if changed or any(table.index_stats(index.name).num_unindexed_rows for index in _indices(table)):
        table.optimize(cleanup_older_than=_KEPT)


def _indices(table: Any) -> list[Any]:
    """Of the vectors; one or none."""
    return [index for index in table.list_indices() if index.columns == ["vector"]]
