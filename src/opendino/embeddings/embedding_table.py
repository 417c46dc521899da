"""Base class of embedding tables, for all file formats."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from opendino.core.errors import UserError, first_line
from opendino.features.nearest_neighbors import directed
from opendino.models.load import Model

if TYPE_CHECKING:
    import pyarrow as pa

STRETCH = 2**15
"""Maximum number of rows in memory at a time: 50 MB for 384 features."""


@dataclass(frozen=True)
class SearchResult:
    """Nearest neighbors of queries.

    Attributes:
        keys: For each query the keys of at most k rows, most similar first.
        scores: Cosine similarities of these rows to the query, in [-1, 1].
        exact: Whether all rows were compared; otherwise an approximate index was used, which may miss neighbors.
        left_out: Number of rows that cannot be normalized (zeros, NaN, infinity); None if not counted.
    """

    keys: list[list[str]]
    scores: list[list[float]]
    exact: bool
    left_out: int | None = None


_EMBED_AGAIN = "The weights of its model are broken: embed the images again with another model"


def left_out(number: int | None) -> str:
    """Message about vectors that cannot be normalized: the end of a sentence, or an empty string."""
    return f", {number:,} skipped whose vector is zero, NaN or infinite" if number else ""


class EmbeddingTable(abc.ABC):
    """A table written by `opendino embed`.

    Args:
        name: Path as the user wrote it.
        about: Metadata of the table, see `table_schema.about`.
    """

    def __init__(self, name: str, about: dict[str, Any]) -> None:
        self.name, self.about = name, about

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in table order, columns "key" and "vector", in batches of at most `STRETCH` rows."""

    @abc.abstractmethod
    def search(self, queries: Tensor, k: int, exact: bool) -> SearchResult:
        """Implementation of `nearest`, for a table that is not empty and valid queries."""

    def chunks(self) -> Iterator[tuple[list[str], Tensor]]:
        """All rows in table order: keys, and vectors float32 `[B D]`, not normalized.

        Raises:
            UserError: The table is damaged.
        """
        with readable(self.name):
            for batch in self.batches():
                vectors = batch.column("vector").flatten().to_numpy().reshape(len(batch), -1)
                yield batch.column("key").to_pylist(), torch.tensor(vectors)

    def normalized(self) -> tuple[list[str], Tensor]:
        """Keys, and L2-normalized vectors float32 `[M D]`, all in memory.

        Rows that cannot be normalized (zeros, NaN, infinity) are skipped: M may be less than the length of the table.

        Raises:
            UserError: The table is damaged or empty, or no vector can be normalized.
        """
        keys: list[str] = []
        vectors = torch.empty(len(self), self.about["dim"])
        for part_keys, part_vectors in self.chunks():
            valid = directed(part_vectors)
            vectors[len(keys) : len(keys) + int(valid.sum())] = normalize(part_vectors[valid], dim=1)
            keys += [key for key, keep in zip(part_keys, valid.tolist(), strict=True) if keep]
        if not len(self):
            raise UserError(f"{self.name} is empty", "Fill it with opendino embed")
        if not keys:
            raise UserError(f"All vectors of {self.name} are zero, NaN or infinite", _EMBED_AGAIN)
        return keys, vectors[: len(keys)]

    def nearest(self, queries: Tensor, k: int, *, exact: bool = False) -> SearchResult:
        """The k nearest rows to each query by cosine similarity.

        Args:
            queries: float32 `[Q D]` on the CPU, not necessarily normalized.
            k: Number of rows, at least 1.
            exact: Compare with all rows even if there is an index.

        Raises:
            UserError: The table is damaged or empty, or a query cannot be normalized.
        """
        assert queries.shape[1] == self.about["dim"] and k >= 1
        if not len(self):
            raise UserError(f"{self.name} is empty", "Fill it with opendino embed")
        if not directed(queries).all():
            raise UserError("The vector of an image to search for is zero, NaN or infinite", _EMBED_AGAIN)
        with readable(self.name):
            return self.search(queries, k, exact)


def check_model(table: EmbeddingTable, model: Model, name: str) -> None:
    """Refuse a model other than the one of the table: vectors of different models cannot be compared.

    Raises:
        UserError: The model is another one, or was trained further since.
    """
    if model.fingerprint != table.about["fingerprint"]:
        made_by = table.about["model"]
        origin = "an earlier version of it" if made_by == name else made_by
        raise UserError(
            f"{table.name} holds vectors of {origin}, not of {name}",
            f"Use {'the earlier version' if made_by == name else made_by}, or embed the images with {name} into "
            "another table",
        )


def readable(name: str) -> AbstractContextManager[None]:
    """A block in which exceptions of pyarrow and LanceDB become a `UserError` about a table that cannot be read."""
    return _in_one_line(f"{name} cannot be read", "It is damaged or not a table: create it again with opendino embed")


def writable(name: str) -> AbstractContextManager[None]:
    """A block in which exceptions of LanceDB become a `UserError` about an intact table that cannot be written."""
    hint = "Free space on its disk, or wait for other commands that write it; then run the same command again"
    return _in_one_line(f"{name} cannot be written", hint)


@contextlib.contextmanager
def _in_one_line(says: str, hint: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{says}: {first_line(error)[:200].rstrip('.')}", hint) from error
