"""Search in tables of both formats: exact search against brute force, index search against both."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lancedb.index import IvfSq
from tests.embeddings.conftest import write_table
from tests.factories import model_of, small_vit
from torch import Tensor
from torch.nn.functional import normalize

from opendino.core.errors import UsageError, UserError
from opendino.embeddings.embedding_table import check_model
from opendino.embeddings.lance_table import LanceTable
from opendino.embeddings.open_table import open_table


def mixture(num_vectors: int, dim: int = 64) -> Tensor:
    """Gaussians about 100 centers in 16 dimensions, with a little noise in all."""
    axes = torch.linalg.qr(torch.randn(dim, 16))[0]
    centers = torch.randn(100, 16)
    low = centers[torch.randint(100, (num_vectors,))] + 0.5 * torch.randn(num_vectors, 16)
    return low @ axes.T + 0.02 * torch.randn(num_vectors, dim)


@pytest.mark.parametrize("ending", ["parquet", "lance"])
def test_exact_search_is_brute_force(tmp_path: Path, ending: str) -> None:
    vectors = mixture(20_000)
    vectors[7] = vectors[12_345] = 3 * vectors[5]  # of equal ones the first in the table comes first
    write_table(tmp_path / f"t.{ending}", vectors)
    queries = torch.cat([vectors[5:6], mixture(9)])
    # float64 decides; the queries' best scores are further apart than float32's error, the equal ones are tested below
    scores, rows = (normalize(queries.double(), dim=1) @ normalize(vectors.double(), dim=1).T).sort(
        dim=1, descending=True, stable=True
    )
    found = open_table(str(tmp_path / f"t.{ending}")).nearest(queries, 10)
    assert found.exact
    assert set(found.keys[0][:3]) == {"5.png", "7.png", "12345.png"}
    assert found.keys[0][3:] == [f"{row}.png" for row in rows[0, 3:10].tolist()]
    assert found.keys[1:] == [[f"{row}.png" for row in each] for each in rows[1:, :10].tolist()]
    torch.testing.assert_close(torch.tensor(found.scores), scores[:, :10].float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mixture", "gaussian"])
def test_an_index_finds_nearly_all_and_rows_that_came_later(tmp_path: Path, kind: str) -> None:
    vectors = mixture(20_000) if kind == "mixture" else torch.randn(20_000, 64)
    write_table(tmp_path / "t.lance", vectors)
    table = open_table(str(tmp_path / "t.lance"))
    assert isinstance(table, LanceTable)
    table._table.create_index("vector", config=IvfSq(distance_type="cosine", num_partitions=64))
    queries = vectors[:50] + 0.1 * torch.randn(50, 64)
    exact, fast = table.nearest(queries, 10, exact=True), table.nearest(queries, 10)
    assert exact.exact and not fast.exact
    common = sum(len(set(a) & set(b)) for a, b in zip(exact.keys, fast.keys, strict=True))
    assert common >= 0.95 * 500
    best = [(a[0] - b[0]) for a, b in zip(exact.scores, fast.scores, strict=True)]
    assert max(map(abs, best)) < 1e-5  # found candidates are compared by their full vectors
    table._table.delete("key = '0.png'")
    assert "0.png" not in table.nearest(queries[:1], 10).keys[0]
    table._table.optimize(cleanup_older_than=timedelta(hours=1))
    assert len(table.nearest(queries[:1], 3).keys[0]) == 3


@pytest.mark.parametrize("ending", ["parquet", "lance"])
def test_more_is_asked_for_than_there_is_and_zeros_resemble_nothing(tmp_path: Path, ending: str) -> None:
    write_table(tmp_path / f"t.{ending}", torch.tensor([[1.0, 0], [0, 0], [-1, 0]]))
    table = open_table(str(tmp_path / f"t.{ending}"))
    found = table.nearest(torch.tensor([[2.0, 0]]), 10)
    assert found.keys == [["0.png", "2.png"]]
    assert found.scores == [[1, -1]]
    assert found.left_out == (1 if ending == "parquet" else None)
    keys, vectors = table.normalized()
    assert keys == ["0.png", "2.png"] and torch.equal(vectors, torch.tensor([[1.0, 0], [-1, 0]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_vectors_without_a_direction_are_skipped_and_counted(tmp_path: Path, value: float) -> None:
    vectors = torch.randn(40, 4)
    vectors[::3] = value
    write_table(tmp_path / "t.parquet", vectors)
    table = open_table(str(tmp_path / "t.parquet"))
    for k in (1, 5, 40):
        found = table.nearest(vectors[1:2], k)
        assert found.left_out == 14 and len(found.keys[0]) == min(k, 26) and found.keys[0][0] == "1.png"
        assert all(int(key.partition(".")[0]) % 3 for key in found.keys[0])
    keys, unit = table.normalized()
    assert len(keys) == len(unit) == 26 and unit.isfinite().all()
    with pytest.raises(UserError, match="image to search for"):
        table.nearest(vectors[:1], 1)
    write_table(tmp_path / "none.parquet", torch.full((3, 4), value))
    with pytest.raises(UserError, match="All vectors of"):
        open_table(str(tmp_path / "none.parquet")).normalized()
    assert open_table(str(tmp_path / "none.parquet")).nearest(vectors[1:2], 5).keys == [[]]


def test_another_model_is_refused_with_both_names(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", torch.ones(1, 24))
    table = open_table(str(tmp_path / "t.parquet"))
    with pytest.raises(UserError, match=r"t\.parquet holds vectors of small, not of runs/mine\. Use small, or embed"):
        check_model(table, model_of(small_vit()), "runs/mine")
    with pytest.raises(UserError, match="holds vectors of an earlier version of it, not of small"):
        check_model(table, model_of(small_vit()), "small")
    table.about["fingerprint"] = model_of(small_vit()).fingerprint
    check_model(table, model_of(small_vit()), "elsewhere/but/equal")


def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path) -> None:
    import lancedb
    import pyarrow as pa

    with pytest.raises(UsageError, match=r"does not end in \.parquet or \.lance"):
        open_table("photos")
    with pytest.raises(UserError, match="There is no table"):
        open_table(str(tmp_path / "absent.lance"))
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        open_table(str(tmp_path / "folder.parquet"))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "bare.lance").mkdir()
    lancedb.connect(tmp_path).create_table("foreign", pa.table({"vector": [[1.0, 2.0]]}))
    for name, told in (
        ("cut.parquet", "cannot be read"),
        ("bare.lance", "cannot be read"),
        ("foreign.lance", "does not name the model"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            open_table(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["parquet", "lance"])
def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t.{ending}"
    write_table(path, mixture(2000))
    file = path if path.is_file() else next((path / "data").iterdir())
    content = bytearray(file.read_bytes())
    content[: len(content) - 2000] = bytes(len(content) - 2000)
    file.write_bytes(content if ending == "parquet" else b"")
    with pytest.raises(UserError, match="cannot be read") as caught:
        open_table(str(path)).normalized()
    assert "\n" not in str(caught.value)


def test_an_empty_table_says_so(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", torch.empty(0, 4))
    table = open_table(str(tmp_path / "t.parquet"))
    with pytest.raises(UserError, match="is empty"):
        table.nearest(torch.ones(1, 4), 1)
    with pytest.raises(UserError, match="is empty"):
        table.normalized()
