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
    first, _, rest = found.evidence.partition(". ")
    assert first.startswith("crop matching 65.0% (untrained network) → ") and "% after all 100 steps: " in first
    assert len(first.split()) <= 25 and "\n" not in found.evidence
    for said in (
        "how often two crops of one image find each other; chance 50%, raw pixels 52.0%, color histogram 56.0%",
        "of its maximum, ln K (halfway ",
        "0% is certain of one answer, 100% has no opinion",
        "5.0 at the start",
    ):
        assert said in rest


@pytest.mark.parametrize("pixels", [80.0, 79.9, None])
def test_pixels_that_are_as_good_are_pointed_out(pixels: float | None) -> None:
    knn = {"teacher": 80.0, "untrained": 50.0} | ({} if pixels is None else {"pixels": pixels})
    found = of_rows(run(knn=knn, num_queries=500), 100)
    assert found.name == LEARNED and ("Raw pixels reach 80.0%" in found.evidence) == (pixels == 80)


@pytest.mark.parametrize(("late", "stalled"), [((70.0, 70.1, 70.1), True), ((70.0, 70.5, 72.0), False)])
def test_what_has_stopped_rising_is_not_told_to_go_on(late: tuple[float, ...], stalled: bool) -> None:
    rows = run(match=late[-1])
    for number, found in enumerate((66.0, 68.0, 69.0, *late[:-1]), 1):
        others = {"untrained": 65.0, "pixels": 52.0, "color": 56.0}
        rows.insert(-1, {"step": 10 * number, "crop_match": {"teacher": found, **others}})
    found = of_rows(rows, 100)
    assert ("It has not risen in the last third of the run" in found.evidence) == stalled
    assert ("opendino list recipes" in found.cure) == stalled and ("Train longer" in found.cure) != stalled
    assert ("times as many steps" in found.evidence) != stalled


def test_what_is_missing_is_said_with_the_pace_so_far() -> None:
    rising = of_rows(run(match=69.0), 100).evidence
    assert (
        ": a gain of 4.0 points, 10 points would show learning. At the pace so far that takes about 2.5 times" in rising
    )
    standing = of_rows(run(match=65.5), 100).evidence
    assert ": no change, 10 points would show learning. Crop matching is" in standing


@pytest.mark.parametrize(
    ("rows", "fell"),
    [
        (run(match=60.0, judged_on=SEEN), "fell by 5.0 points, which may be chance (±13"),
        (run(match=40.0, judged_on=SEEN | {"images": 900}), "fell by 25.0 points, more than chance explains (±8"),
        (run(match=60.0), "fell by 5.0 points. "),
        (run(knn={"teacher": 40.0, "untrained": 50.0}, num_queries=50), "fell by 10.0 points, which may be chance"),
        (run(knn={"teacher": 40.0, "start": 50.0}, num_queries=5000), "fell by 10.0 points, more than chance explains"),
    ],
)
def test_what_training_lowered_is_not_told_to_go_on(rows: list[Any], fell: str) -> None:
    found = of_rows(rows, 100)
    assert found.name == NOT_SHOWN and fell in found.evidence
    assert "rain longer" not in found.cure and "lower --optim.lr" in found.cure.replace("a third of", "lower")
    assert ("Keep using the weights it started from" in found.cure) == ("start" in str(rows[-1]))


def test_no_cure_sends_from_one_method_to_another_and_back() -> None:
    for match in (60.0, 65.0, 69.0):
        assert "--method" not in of_rows(run(match), 100).cure


def halves(teacher: float, **last: Any) -> list[Any]:
    """A run on images of one centered object each."""
    match = {"untrained": 50.9, "pixels": 36.7, "color": 53.6}
    rows = run(**last)
    for row in (row for row in rows if "crop_match" in row):
        row["crop_match"] = {"teacher": teacher, **match}
    return rows


def test_where_crops_cannot_tell_images_apart_labels_are_the_way() -> None:
    found = of_rows(halves(52.9), 100)
    assert found.name == NOT_SHOWN and not found.by_crops
    assert found.evidence.startswith("without labels nothing can be said of these images: half of an image does not ")
    assert "50.9% (untrained network) → 52.9%" in found.evidence and "below 50% the crops of" in found.evidence
    assert "would show" not in found.evidence and "opendino eval linear RUN --train labels.csv" in found.cure
    assert of_rows(halves(61.0), 100).name == LEARNED
    assert "At the pace so far" in of_rows(halves(58.0), 100).evidence
    labeled = halves(52.9, knn={"teacher": 80.0, "untrained": 50.0}, num_queries=500)
    assert of_rows(labeled, 100).name == LEARNED
    few = of_rows(halves(52.9, knn={"teacher": 60.0, "untrained": 50.0}, num_queries=50), 100)
    assert few.name == NOT_SHOWN and few.evidence.startswith("k-NN accuracy 50.0%") and "Train longer" in few.cure


def test_a_method_without_a_teacher_has_targets() -> None:
    rows = run()
    for row in (row for row in rows if "crop_match" in row):
        row["crop_match"] = {"student": row["crop_match"]["teacher"], "untrained": 65.0}
    evidence = of_rows(rows, 100).evidence
    assert "The target's entropy" in evidence and "teacher" not in evidence


@pytest.mark.parametrize(("after", "name"), [(92.1, LEARNED), (91.9, NOT_SHOWN)])
def test_what_forgets_color_is_not_shown_to_learn(after: float, name: str) -> None:
    found = of_rows(run(crop_match_color={"teacher": after, "untrained": 93.0}), 100)
    assert found.name == name and f"in color 93.0% → {after}%" in found.evidence
    assert ("forgets color" in found.evidence.partition(". ")[0]) == (name == NOT_SHOWN)


@pytest.mark.parametrize(
    ("gray", "after", "name"),
    [(68.0, 80.1, LEARNED), (68.0, 79.9, NOT_SHOWN), (63.9, 90.0, NOT_SHOWN)],  # of 65 and 73 % at the start
)
def test_what_learns_color_has_learned_unless_it_forgets_shapes(gray: float, after: float, name: str) -> None:
    found = of_rows(run(match=gray, crop_match_color={"teacher": after, "untrained": 73.0}), 100)
    said = "and in color 73.0% → 80.1%, a gain of 7.1 points" in found.evidence.partition(". ")[0]
    assert (found.name, said) == (name, name == LEARNED)


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
    assert f"k-NN accuracy 50.0% ({'at the start' if first == 'start' else 'untrained network'}) → " in found.evidence
    assert f"→ {teacher:.1f}% after all 100 steps: " in found.evidence
    assert ("Keep using the weights it started from" in found.cure) == (name == NOT_SHOWN and first == "start")
    for part in (f"{num or 0:,} queries", "most frequent class: 30.0%"):
        assert (part in found.evidence) == bool(num)


def test_to_answer_the_most_frequent_class_more_often_is_not_learning() -> None:
    knn = {"knn": {"teacher": 90.0, "untrained": 70.0}, "balanced_accuracy": {"teacher": 50.0, "untrained": 60.0}}
    found = of_rows(run(**knn, num_queries=1000, majority=90.0), 100)
    assert found.name == NOT_SHOWN and "but balanced accuracy has not risen" in found.evidence.partition(". ")[0]


@pytest.mark.parametrize(("teacher", "match", "name"), [(90.0, 60.0, NOT_SHOWN), (10.0, 75.0, LEARNED)])
def test_folders_that_nobody_called_classes_do_not_decide(teacher: float, match: float, name: str) -> None:
    knn = {"knn": {"teacher": teacher, "untrained": 50.0}, "num_queries": 1000, "majority": 30.0}
    found = of_rows(run(match, **knn, judged_on=SEEN | {"confirmed": 0, "color": 94.0}), 100)
    assert found.name == name
    assert found.evidence.startswith("crop matching") and f"{teacher:.1f}%" in found.evidence
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
    assert found.name == NOT_SHOWN and "% after 100 of 1,000 steps: " in found.evidence and not found.cure


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
    even_so = f". Even so, k-NN accuracy 50.0% (untrained network) → {teacher:.1f}%"
    assert (even_so in found.evidence) == said


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
