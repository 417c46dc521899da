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

from opendino.core.errors import UserError, reason
from opendino.models.load import Model

if TYPE_CHECKING:
    import pyarrow as pa

STRETCH = 2**15
"""Rows in memory at a time: 50 MB of 384 numbers each."""


@dataclass(frozen=True)
class Found:
    """The rows of a table that are most similar to queries.

    Attributes:
        keys: A list for each query, the most similar first; at most k.
        scores: Their cosines to the query, in [-1, 1].
        exact: Whether all rows were compared; else an index chose which, and a few of the best may be missing.
    """

    keys: list[list[str]]
    scores: list[list[float]]
    exact: bool


class Table(abc.ABC):
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
    def search(self, queries: Tensor, k: int, exact: bool) -> Found:
        """What `nearest` returns, of a table with rows."""

    def stretches(self) -> Iterator[tuple[list[str], Tensor]]:
        """All rows in their order: keys, and vectors float32 `[B D]` as the network gave them.

        Raises:
            UserError: The table is damaged.
        """
        with readable(self.name):
            for batch in self.batches():
                vectors = batch.column("vector").flatten().to_numpy().reshape(len(batch), -1)
                yield batch.column("key").to_pylist(), torch.tensor(vectors)

    def unit(self) -> tuple[list[str], Tensor]:
        """All keys, and vectors scaled to unit length, float32 `[M D]`; all in memory.

        Raises:
            UserError: The table is damaged or empty.
        """
        keys: list[str] = []
        vectors = torch.empty(len(self), self.about["dim"])
        for some, part in self.stretches():
            vectors[len(keys) : len(keys) + len(some)] = normalize(part, dim=1)
            keys += some
        if not keys:
            raise UserError(f"{self.name} is empty", "Fill it with opendino embed")
        return keys, vectors

    def nearest(self, queries: Tensor, k: int, *, exact: bool = False) -> Found:
        """The k rows with the largest cosine to each query.

        Args:
            queries: float32 `[Q D]` on the host, of any length.
            k: From 1 up.
            exact: Compare with all rows even where there is an index.

        Raises:
            UserError: The table is damaged or empty.
        """
        assert queries.shape[1] == self.about["dim"] and k >= 1
        if not len(self):
            raise UserError(f"{self.name} is empty", "Fill it with opendino embed")
        with readable(self.name):
            return self.search(queries, k, exact)


def check_model(table: Table, model: Model, name: str) -> None:
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
            f"{name} cannot be read: {reason(error)[:200].rstrip('.')}",
            "It is damaged or no table; make it anew with opendino embed",
        ) from error
