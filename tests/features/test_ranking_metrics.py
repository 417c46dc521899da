"""Average precision, precision at k and ranks without junk, against rankings worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from opendino.features.ranking_metrics import (
    JUNK,
    NEGATIVE,
    POSITIVE,
    average_precision,
    positive_ranks,
    precision_at,
    recall_at,
    search,
)

LETTERS = {"+": POSITIVE, "-": NEGATIVE, "o": JUNK}


def ranks(listed: str) -> list[int]:
    """Of a list written best first; the similarities are given in another order than the list's."""
    similarity = torch.linspace(1, 0, len(listed))
    order = torch.randperm(len(listed))
    relevance = torch.tensor([LETTERS[letter] for letter in listed])
    return positive_ranks(similarity[order], relevance[order]).tolist()


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("+--", [0]),
        ("--+", [2]),
        ("-+-+", [1, 3]),
        ("o+-+", [0, 2]),  # junk before a positive is as if it were not there
        ("oo-o+o-+", [1, 3]),
        ("++oo", [0, 1]),
        ("ooo", []),
        ("--", []),
        ("+", [0]),
    ],
)
def test_ranks_of_positives_with_junk_taken_out(listed: str, expected: list[int]) -> None:
    assert ranks(listed) == expected


def test_a_tie_counts_against_whatever_the_order_of_the_files() -> None:
    same = torch.ones(4)
    for relevance in ([1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]):
        assert positive_ranks(same, torch.tensor(relevance)).tolist() == [2, 3]
    assert positive_ranks(same, torch.tensor([1, -1, -1, 0])).tolist() == [1]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([0], Fraction(1)),
        ([0, 1, 2], Fraction(1)),
        # at rank 1 the trapezoid goes from 0/1 to 1/2
        ([1], Fraction(1, 4)),
        # first (1 + 1)/2, second (1/2 + 2/3)/2; each over half of the recall
        ([0, 2], (Fraction(1) + (Fraction(1, 2) + Fraction(2, 3)) / 2) / 2),
        # (0/3 + 1/4)/2, (1/4 + 2/5)/2
        ([3, 4], (Fraction(1, 8) + Fraction(13, 40)) / 2),
    ],
)
def test_average_precision_by_hand(listed: list[int], expected: Fraction) -> None:
    assert average_precision(torch.tensor(listed), len(listed)) == pytest.approx(float(expected), abs=1e-15)


def test_positives_that_were_not_found_add_nothing() -> None:
    assert average_precision(torch.tensor([0]), 4) == 0.25
    assert average_precision(torch.tensor([], dtype=torch.int64), 3) == 0


@pytest.mark.parametrize(
    ("listed", "k", "expected"),
    [
        ([0, 2], 1, 1.0),
        ([0, 2], 2, 1 / 2),
        ([0, 2], 5, 2 / 3),  # the last positive is third: two of three
        ([0, 1], 10, 1.0),
        ([4, 7], 1, 0.0),
        ([4, 7], 5, 1 / 5),
        ([4, 7], 10, 2 / 8),
    ],
)
def test_precision_at_k_by_hand(listed: list[int], k: int, expected: float) -> None:
    assert precision_at(torch.tensor(listed), k) == expected


def test_recall_at_k_asks_for_one() -> None:
    assert [recall_at(torch.tensor([2, 9]), k) for k in (1, 2, 3, 10)] == [0, 0, 1, 1]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_search_is_a_sort_without_junk_and_chunks_change_nothing(chunk: int) -> None:
    unit = torch.nn.functional.normalize(torch.randn(50, 8, dtype=torch.float64), dim=1)
    queries, database = unit[:10], unit[10:]
    relevance = torch.randint(-1, 2, (10, 40))
    found = list(search(queries, database, relevance.__getitem__, chunk))
    assert len(found) == 10
    for query, kinds, each in zip(queries, relevance, found, strict=True):
        order = (database @ query).argsort(descending=True)
        without_junk = kinds[order][kinds[order] != JUNK]
        assert each.tolist() == (without_junk == POSITIVE).nonzero()[:, 0].tolist()
