"""A table of vectors, whatever its format."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
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
"""Rows in memory at a time: 50 MB of 384 numbers each."""


@dataclass(frozen=True)
class SearchResult:
    """The rows of a table that are most similar to queries.

    Attributes:
        keys: A list for each query, the most similar first; at most k.
        scores: Their cosines to the query, in [-1, 1].
        exact: Whether all rows were compared; else an index chose which, and a few of the best may be missing.
        left_out: How many rows have a vector that nothing is near to (zeros, NaN, infinity); None where not counted.
    """

    keys: list[list[str]]
    scores: list[list[float]]
    exact: bool
    left_out: int | None = None


_AGAIN = "The model that made it is broken; take another, and embed the images again"


def left_out(number: int | None) -> str:
    """What to tell people of vectors that nothing is near to: part of a sentence, or nothing."""
    return f", {number:,} left out whose vector is zeros or not numbers" if number else ""


class EmbeddingTable(abc.ABC):
    """A table that `opendino embed` wrote.

    Args:
        name: As the user gave it.
        about: What the table remembers, see `schema.about`.
    """

    def __init__(self, name: str, about: dict[str, Any]) -> None:
        self.name, self.about = name, about

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in their order, columns "key" and "vector", at most `STRETCH` at a time."""

    @abc.abstractmethod
    def search(self, queries: Tensor, k: int, exact: bool) -> SearchResult:
        """What `nearest` returns, of a table with rows."""

    def chunks(self) -> Iterator[tuple[list[str], Tensor]]:
        """All rows in their order: keys, and vectors float32 `[B D]` as the network gave them.

        Raises:
            UserError: The table is damaged.
        """
        with readable(self.name):
            for batch in self.batches():
                vectors = batch.column("vector").flatten().to_numpy().reshape(len(batch), -1)
                yield batch.column("key").to_pylist(), torch.tensor(vectors)

    def normalized(self) -> tuple[list[str], Tensor]:
        """Keys, and vectors scaled to unit length, float32 `[M D]`; all in memory.

        Rows whose vector has no direction (zeros, NaN, infinity) are left out: M may be less than the table's length.

        Raises:
            UserError: The table is damaged or empty, or no vector has a direction.
        """
        keys: list[str] = []
        vectors = torch.empty(len(self), self.about["dim"])
        for some, part in self.chunks():
            known = directed(part)
            vectors[len(keys) : len(keys) + int(known.sum())] = normalize(part[known], dim=1)
            keys += [key for key, keep in zip(some, known.tolist(), strict=True) if keep]
        if not len(self):
            raise UserError(f"{self.name} is empty", "Fill it with opendino embed")
        if not keys:
            raise UserError(f"All vectors of {self.name} are zeros or not numbers", _AGAIN)
        return keys, vectors[: len(keys)]

    def nearest(self, queries: Tensor, k: int, *, exact: bool = False) -> SearchResult:
        """The k rows with the largest cosine to each query.

        Args:
            queries: float32 `[Q D]` on the host, of any length.
            k: From 1 up.
            exact: Compare with all rows even where there is an index.

        Raises:
            UserError: The table is damaged or empty, or a query has no direction.
        """
        assert queries.shape[1] == self.about["dim"] and k >= 1
        if not len(self):
            raise UserError(f"{self.name} is empty", "Fill it with opendino embed")
        if not directed(queries).all():
            raise UserError("The vector of an image to search for is zeros or not numbers", _AGAIN)
        with readable(self.name):
            return self.search(queries, k, exact)


def check_model(table: EmbeddingTable, model: Model, name: str) -> None:
    """Refuse a model other than the one that made the table: their vectors have nothing in common.

    Raises:
        UserError: It is another, or was trained further since.
    """
    if model.fingerprint != table.about["fingerprint"]:
        made_by = table.about["model"]
        other = "an earlier state of it" if made_by == name else made_by
        raise UserError(
            f"{table.name} holds vectors of {other}, not of {name}",
            f"Use {'the model as it was' if made_by == name else made_by}, or embed the images with {name} into "
            "another table",
        )


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """What pyarrow and LanceDB say of a table that they cannot read, as a line for the user.

    Raises:
        UserError: Something was raised within.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{name} cannot be read: {first_line(error)[:200].rstrip('.')}",
            "It is damaged or no table; make it anew with opendino embed",
        ) from error
