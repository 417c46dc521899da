"""The verdict on a run from its rows: with classes, without them, collapsed, unfinished, and of useless images."""

from __future__ import annotations

from typing import Any

import pytest

from opendino.engine import verdict
from opendino.engine.verdict import LEARNED, NOT_SHOWN, of_rows

HEALTHY = {"ok": 1.0, "entropy_frac": 0.6, "marginal_frac": 0.999, "feature_spread": 0.5}
SEEN = {"images": 100, "distinct": 100, "flat": 0, "copy": 0}


def run(match: float = 75.0, steps: int = 100, entropy: tuple[float, float] = (0.6, 0.6), **last: Any) -> list[Any]:
    """Rows of steps with the entropy from a first to a last value, and two evaluations, the second with `last`."""
    first, end = entropy
    rows = [
        {"step": n, "loss": 3.0, **HEALTHY, "entropy_frac": first + (end - first) * n / steps}
        for n in range(1, steps + 1)
    ]
    others = {"untrained": 65.0, "pixels": 52.0, "color": 56.0}
    evaluations = [
        {"step": step, "effective_rank": rank, "crop_match": {"teacher": found, **others}}
        for step, rank, found in ((0, 5.0, 64.0), (steps, 9.0, match))
    ]
    return [evaluations[0], *rows, {**evaluations[1], **last}]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, LEARNED),
        ({"effective_rank": 4.0}, LEARNED),  # a rank may fall while a run learns
        ({"match": 65.0 + verdict.MATCH_GAIN - 0.1}, NOT_SHOWN),
        ({"match": 60.0}, NOT_SHOWN),
        ({"entropy": (0.985, 0.985)}, NOT_SHOWN),
        ({"entropy": (0.989, 0.97)}, LEARNED),
    ],
)
def test_without_labels_crops_and_entropy_decide(change: dict[str, Any], name: str) -> None:
    found = of_rows(run(**change), 100)
    assert found.name == name and found.collapse is None and bool(found.cure) == (name == NOT_SHOWN)
    assert found.by_crops
    plain = "its features are better than" if name == LEARNED else "not enough shows better features than"
    assert found.evidence.startswith(
        f"{plain} at the start; after all 100 steps, crops of one image find each other in "
    )
    for said in (
        "untrained network 65.0%",
        "raw pixels 52.0%",
        "color histogram 56.0%",
        "of its maximum, ln K",
        "5.0 at the start",
    ):
        assert said in found.evidence
    assert "\n" not in found.evidence


@pytest.mark.parametrize(("late", "stalled"), [((70.0, 70.1, 70.1), True), ((70.0, 70.5, 72.0), False)])
def test_what_has_stopped_rising_is_not_told_to_go_on(late: tuple[float, ...], stalled: bool) -> None:
    rows = run(match=late[-1])
    for number, found in enumerate((66.0, 68.0, 69.0, *late[:-1]), 1):
        others = {"untrained": 65.0, "pixels": 52.0, "color": 56.0}
        rows.insert(-1, {"step": 10 * number, "crop_match": {"teacher": found, **others}})
    found = of_rows(rows, 100)
    assert ("it has not risen in the last third of the run" in found.evidence) == stalled
    assert ("try another method" in found.cure) == stalled and ("Train longer" in found.cure) != stalled
    assert ("times as many steps" in found.evidence) != stalled


def test_what_is_missing_is_said_with_the_pace_so_far() -> None:
    assert "at the start would show learning, at the pace so far after about 2.5 times as many steps" in (
        of_rows(run(match=69.0), 100).evidence
    )
    standing = of_rows(run(match=65.5), 100).evidence
    assert "chance 50%; 10 points more than at the start would show learning)" in standing


@pytest.mark.parametrize(("after", "name"), [(92.1, LEARNED), (91.9, NOT_SHOWN)])
def test_what_forgets_color_is_not_shown_to_learn(after: float, name: str) -> None:
    found = of_rows(run(crop_match_color={"teacher": after, "untrained": 93.0}), 100)
    assert found.name == name and f"in color in {after}% (untrained network 93.0%)" in found.evidence


@pytest.mark.parametrize(
    ("teacher", "num", "match", "name"),
    [
        (80, 50, 60.0, LEARNED),
        (60, 50, 60.0, NOT_SHOWN),  # may be chance, and crops do not show it either
        (60, 50, 75.0, LEARNED),  # may be chance, but crops show it
        (60, 5000, 60.0, LEARNED),
        (51, 500_000, 75.0, NOT_SHOWN),  # no chance, but too little
        (40, None, 75.0, NOT_SHOWN),
    ],
)
@pytest.mark.parametrize("first", ["untrained", "start"])
def test_with_labels_knn_decides(teacher: float, num: int | None, match: float, name: str, first: str) -> None:
    knn = {"teacher": teacher, "student": 99.0, first: 50.0, "pixels": 99.0}
    found = of_rows(run(match, knn=knn, num_queries=num, majority=30.0), 100)
    assert found.name == name
    assert f"{teacher:.1f}%" in found.evidence and "50.0%" in found.evidence
    assert ("Keep using the weights it started from" in found.cure) == (name == NOT_SHOWN and first == "start")
    for part in (f"{num or 0:,} queries", "most frequent class: 30.0%"):
        assert (part in found.evidence) == bool(num)


def test_to_answer_the_most_frequent_class_more_often_is_not_learning() -> None:
    knn = {"knn": {"teacher": 90.0, "untrained": 70.0}, "balanced_accuracy": {"teacher": 50.0, "untrained": 60.0}}
    assert of_rows(run(**knn, num_queries=1000, majority=90.0), 100).name == NOT_SHOWN


@pytest.mark.parametrize(("teacher", "match", "name"), [(90.0, 60.0, NOT_SHOWN), (10.0, 75.0, LEARNED)])
def test_folders_that_nobody_called_classes_do_not_decide(teacher: float, match: float, name: str) -> None:
    knn = {"knn": {"teacher": teacher, "untrained": 50.0}, "num_queries": 1000, "majority": 30.0}
    found = of_rows(run(match, **knn, judged_on=SEEN | {"confirmed": 0, "color": 94.0}), 100)
    assert found.name == name
    assert "crops of one image" in found.evidence and f"{teacher:.1f}%" in found.evidence
    assert "--labels folders" in found.evidence and "by color alone (94%)" in found.evidence
    confirmed = of_rows(run(match, **knn, judged_on=SEEN | {"confirmed": 1}), 100)
    assert confirmed.name == (NOT_SHOWN if name == LEARNED else LEARNED), "with classes k-NN decides"


def test_nothing_measured_shows_nothing() -> None:
    rows = [row for row in run() if "loss" in row]
    found = of_rows(rows, 100)
    assert found.name == NOT_SHOWN and "no evaluation" in found.evidence and found.cure
    assert of_rows(run()[:-1], 100).name == NOT_SHOWN, "that of step 0 says nothing about training"
    assert of_rows([], 100).name == NOT_SHOWN


def test_an_unfinished_run_is_judged_so_far_and_needs_no_cure() -> None:
    assert of_rows(run(), 1000).name == LEARNED
    found = of_rows(run(60.0), 1000)
    assert found.name == NOT_SHOWN and "; after 100 of 1,000 steps, " in found.evidence and not found.cure


@pytest.mark.parametrize(
    ("sick", "kind"),
    [
        ({"entropy_frac": 0.999}, "uniform"),
        ({"marginal_frac": 0.01, "entropy_frac": 0.005}, "one-hot"),
        ({"marginal_frac": 0.6}, "constant"),
        ({"feature_spread": 0.001}, "dead"),
        ({"projection_spread": 0.01}, "dead"),
    ],
)
def test_a_collapse_is_named_whatever_the_evaluations_say(sick: dict[str, float], kind: str) -> None:
    rows = [row | (sick if row["step"] > 20 and "loss" in row else {}) for row in run(99.0)]
    found = of_rows(rows, 100)
    assert found.name == f"collapsed ({kind})" and found.collapse == kind
    assert found.evidence.startswith("since step 2") and " of 100, " in found.evidence and found.cure


@pytest.mark.parametrize(("teacher", "num", "said"), [(80.0, 500, True), (52.0, 500, False), (49.0, 500, False)])
def test_a_collapsed_run_with_better_features_says_both(teacher: float, num: int, said: bool) -> None:
    scores = {"knn": {"teacher": teacher, "untrained": 50.0}, "num_queries": num}
    rows = [row | ({"entropy_frac": 0.999} if "loss" in row else {}) for row in run(99.0, **scores)]
    found = of_rows(rows, 100)
    assert found.name == "collapsed (uniform)"
    assert (f"even so, k-NN is {teacher:.1f}%" in found.evidence) == said


@pytest.mark.parametrize("total", [100, 1000])
def test_features_on_one_line_are_a_collapse(total: int) -> None:
    found = of_rows(run(effective_rank=1.01), total)
    assert (found.name, found.collapse) == ("collapsed (rank 1)", "rank 1")
    assert "1.01" in found.evidence and "5.00" in found.evidence


@pytest.mark.parametrize("sick", [False, True])
@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"images": 24, "distinct": 1, "flat": 24, "copy": 0}, "24 of 24 images checked have a single color"),
        ({"images": 100, "distinct": 3, "flat": 0, "copy": 0}, "only 3 of 100 images checked differ"),
        ({"images": 100, "distinct": 60, "flat": 20, "copy": 5}, ""),
    ],
)
def test_images_with_nothing_in_them_are_the_evidence(seen: dict[str, int], said: str, sick: bool) -> None:
    rows = run(judged_on=seen)
    if sick:
        rows = [row | ({"feature_spread": 0.0} if "loss" in row else {}) for row in rows]
    found = of_rows(rows, 100)
    assert found.name == ("collapsed (dead)" if sick else NOT_SHOWN if said else LEARNED)
    assert not said or (said in found.evidence and found.cure)


@pytest.mark.parametrize(("skipped", "name"), [(10, LEARNED), (11, NOT_SHOWN)])
def test_skipped_steps_are_the_evidence(skipped: int, name: str) -> None:
    rows = [row | ({"ok": 0.0} if "loss" in row and row["step"] > 100 - skipped else {}) for row in run()]
    found = of_rows(rows, 100)
    assert found.name == name
    assert name == LEARNED or "11 of the last 100 steps had a non-finite loss" in found.evidence
