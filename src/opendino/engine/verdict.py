"""The verdict on a run: learned, not shown to learn, or collapsed (kind), against the network it started from.

Classes decide, by k-NN accuracy, where they are known to be classes. Without them, or where the queries are too few,
crops decide: how often is a crop nearer to the other crop of its image than to a crop of another image
(`features/crop_matching.py`)? docs/verdicts.md says on which runs the thresholds were set and how often they are wrong.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opendino.core import accuracy
from opendino.engine.collapse_detection import CURE, Collapse, Monitor
from opendino.features.crop_matching import NUM_IMAGES

LEARNED, NOT_SHOWN = "learned", "not shown to learn"
KNN_GAIN = 2.0
"""Points of k-NN accuracy above the start below which a run has not learned, however many queries there are."""
MATCH_GAIN = 10.0
"""Points of crop matching above the start that a run needs to be called learned without classes."""
COLOR_GAIN = 7.0
"""Points of crop matching in color that show learning too, unless it fell in gray: color may tell images apart."""
COLOR_LOSS = 1.0
"""Points of crop matching in color that a run may lose: where classes differ in color, they are lost with it."""
UNDECIDED_ENTROPY = 0.98
"""A teacher with this share of ln K or more, and not falling, has no opinion about any image."""
RANK_ONE = 1.05
"""Effective rank below which the features of all images lie on one line."""
_FELL = 1.0
"""Points below the start from which the evidence says that training lowered a measure; it decides no verdict."""
_NEAR_CHANCE, _BELOW_CHANCE = 60.0, 45.0
"""Percent of crop matching: where no network and no baseline has more than the first, it cannot tell images apart; less
than the second is below chance."""
EXAMINED = (
    "loss", "ok", "entropy_frac", "effective_rank", "crop_match", "crop_match_color", "knn", "balanced_accuracy",
    "majority", "num_queries", "judged_on",
)  # fmt: skip
"""The metrics that `judge` uses."""
_STARTS = "start", "untrained"
_NAMES = {"start": "at the start", "untrained": "untrained network", "pixels": "raw pixels", "color": "color histogram"}
_FEWEST_TO_STALL = 6  # evaluations
LONGER = "Train longer"
"""How the cure of a run starts that more steps may help."""
_CURE = (
    f"{LONGER} (the same command with more --minutes, or opendino resume RUN --epochs N); check with "
    "`opendino visualize crops` that the views do not share a shortcut (constant color, "
    "watermark); try another --optim.lr or a smaller --backbone"
)
_RECIPE = "the recipe for such images (`opendino list recipes`) if this is another one"
_OTHER = (
    f"Longer training is not likely to help: try a higher or lower --optim.lr, {_RECIPE}, or trained weights (--init "
    "MODEL); check the views with `opendino visualize crops`"
)
_LOWERED = (
    f"Longer training is not likely to help: try a third of --optim.lr, or {_RECIPE}; until then use the untrained "
    "network or trained weights as they are (timm:NAME)"
)
_KEEP, _TRY = "Keep using the weights it started from", "train again with a lower --optim.lr"
"""The cure of a run with --init that has not become better."""
_LABEL = (
    "Label about 50 images and compare: opendino eval linear RUN --train labels.csv (a line path,class for each image)"
)
Columns = Mapping[str, tuple[Any, ...]]
"""Metric name (nested: "knn.teacher") → (steps, values, ...), as `core.metrics_log.columns` returns it."""


@dataclass(frozen=True)
class Verdict:
    """What a run came to so far.

    Attributes:
        name: "learned", "not shown to learn" or "collapsed (KIND)".
        evidence: The metrics it is based on, one line: the deciding fact in the first sentence, the rest after it.
        cure: What to change, one line; empty if nothing.
        collapse: KIND, one of `collapse_detection.KINDS` or "rank 1"; None if the run is not collapsed.
        by_crops: Whether crop matching decided: there are no classes, or too few queries.
    """

    name: str
    evidence: str
    cure: str = ""
    collapse: str | None = None
    by_crops: bool = False


@dataclass(frozen=True)
class _Finding:
    """What one measure says.

    Attributes:
        learned: Whether it shows that the run has learned.
        fact: What was before, what is after, and what that means; no full stop.
        rest: More sentences, without full stops.
        gain: Points above the start.
        chance: Points that chance explains; 0 if not known.
        blind: Whether it cannot tell networks apart on these images.
    """

    learned: bool
    fact: str
    rest: tuple[str, ...] = ()
    gain: float = 0.0
    chance: float = 0.0
    blind: bool = False

    @property
    def text(self) -> str:
        return ". ".join([self.fact, *self.rest])


def of_rows(rows: Sequence[Mapping[str, Any]], total_steps: int, cures: Mapping[str, str] = {}) -> Verdict:
    """The verdict from the rows of a run's metrics.jsonl, in order, see `judge`; `cures` are those of the method."""
    monitor, collapse, since = Monitor(total_steps, cures), None, 0
    for row in rows:
        if "loss" in row:
            before, collapse = collapse, monitor.watch(row)
            if collapse is not None and (before is None or before.name != collapse.name):
                since = row["step"]
    if collapse is not None:
        collapse = replace(collapse, evidence=f"since step {since:,} of {total_steps:,}, {collapse.evidence}")
    return judge(_columns(rows), total_steps, collapse)


def judge(columns: Columns, total_steps: int, collapse: Collapse | None) -> Verdict:
    """The verdict on a run, finished or not.

    Args:
        columns: The metrics in `EXAMINED`.
        total_steps: Length of the run.
        collapse: What `collapse_detection.Monitor` says at the end of these metrics.
    """
    done = int(columns["loss"][0][-1]) if "loss" in columns else 0
    collapse = collapse or _rank_one(columns)
    name = f"collapsed ({collapse.name})" if collapse else NOT_SHOWN
    if problem := _useless_images(columns) or _skipped_steps(columns):
        return Verdict(name, *problem, collapse.name if collapse else None)
    when = f"after all {total_steps:,} steps" if done >= total_steps else f"after {done:,} of {total_steps:,} steps"
    if collapse:
        return Verdict(name, collapse.evidence + _even_so(columns, when), collapse.cure, collapse.name)
    found, others, by_crops = _deciding(columns, when)
    cure = "" if found.learned or done < total_steps else _cure(columns, found)
    evidence = ". ".join([found.text, *others])
    return Verdict(LEARNED if found.learned else NOT_SHOWN, evidence, cure, by_crops=by_crops)


def told_apart_by_color(percent: float) -> str:
    """Warning that sub-folders are told apart by color, with the accuracy of k-NN on color histograms in percent."""
    return f"folders are told apart by color alone ({percent:.0f}%): they may be dates, devices or batches"


def _deciding(columns: Columns, when: str) -> tuple[_Finding, list[str], bool]:
    """The finding that decides, what other measures say, and whether crops decide."""
    if not _evaluated(columns):
        nothing = f"no evaluation {when} shows that it has learned (see --eval-images and --eval-every)"
        return _Finding(False, nothing), [], False
    by_crops, by_classes, others = _by_crops(columns, when), _by_classes(columns, when), _by_teacher(columns)
    if by_classes is None:
        return by_crops, others, not by_crops.blind
    if _last(columns, "judged_on.confirmed") == 0:
        others.append(f"For information, with sub-folders as classes (--labels folders if they are): {by_classes.text}")
        if color := _last(columns, "judged_on.color"):
            others.append(_sentence(told_apart_by_color(color)))
        return by_crops, others, not by_crops.blind
    if KNN_GAIN <= by_classes.gain <= by_classes.chance and not by_crops.blind:
        return by_crops, [*others, by_classes.text], True
    return by_classes, others, False


def _cure(columns: Columns, found: _Finding) -> str:
    """What to do about a finished run that is not shown to have learned."""
    if found.blind:
        return _LABEL
    fell = found.gain <= -_FELL
    if _from_trained_weights(columns):
        return f"{_KEEP}, or {_TRY}" if fell else f"{_KEEP}, or train longer, or {_TRY}"
    if fell:
        return _LOWERED
    cure = _OTHER if _stalled(columns) else _CURE
    return cure if _by_classes(columns, "") else f"{cure}; give labeled images with --val"


def _stalled(columns: Columns) -> bool:
    """Whether crop matching rose in the last third of the evaluations by less than a tenth of all it has risen."""
    values: Sequence[float] = next((columns[name][1] for name in columns if name.startswith("crop_match.")), [])
    if len(values) < _FEWEST_TO_STALL:
        return False
    return values[-1] - values[(len(values) - 1) * 2 // 3] < (values[-1] - values[0]) / 10


def _even_so(columns: Columns, when: str) -> str:
    """That a collapsed run's features are better than at its start, to be added to the evidence; empty if not."""
    found = _by_classes(columns, when)
    if found is None or _last(columns, "judged_on.confirmed") == 0:
        return ""
    return f". Even so, {found.text}" if found.gain >= KNN_GAIN and found.gain > found.chance else ""


def _by_crops(columns: Columns, when: str) -> _Finding:
    """What the measures say that need no labels."""
    scores = {name: _last(columns, name) for name in columns if name.startswith("crop_match.")}
    match = {name.partition(".")[2]: score for name, score in scores.items() if score is not None}
    first = next((name for name in _STARTS if name in match), None)
    if first is None:
        return _Finding(False, f"nothing was measured {when} that shows learning without labels")
    best, *_ = match
    before, after = match[first], match[best]
    gain, num = after - before, min(NUM_IMAGES, int(_last(columns, "judged_on.images") or 0))
    chance = accuracy.chance_of_difference(before, after, num)
    change = f"crop matching {before:.1f}% ({_NAMES[first]}) → {after:.1f}% {when}"
    others = [f"{_NAMES[name]} {match[name]:.1f}%" for name in ("pixels", "color") if name in match]
    meaning = f"how often two crops of one image find each other; {', '.join(['chance 50%', *others])}"
    color = _pair(columns, "crop_match_color", first, best)
    in_color = f"in color {color[0]:.1f}% → {color[1]:.1f}%" if color else ""
    learned, judgment = gain >= MATCH_GAIN, _judgment(gain, chance, MATCH_GAIN)
    by_color = color is not None and color[1] - color[0] >= COLOR_GAIN and -_FELL < gain < MATCH_GAIN
    if color and by_color:
        judgment = f"{gain:+.1f} points, and {in_color}, a gain of {color[1] - color[0]:.1f} points"
        learned, in_color = True, ""
    # A larger gain may still become enough.
    if max(match.values()) <= _NEAR_CHANCE and gain < MATCH_GAIN / 2 and not by_color:
        nothing = "without labels nothing can be said of these images: half of an image does not tell which one it is"
        below = "below 50% the crops of one image differ more than those of two, as opposite halves of one object do"
        lowest = f"; {below}" * (min(match.values()) < _BELOW_CHANCE)
        return _Finding(False, nothing, (_sentence(f"{change} ({meaning}{lowest})"),), gain, chance, blind=True)
    entropy = _half_and_end(columns, "entropy_frac")
    if learned and color and color[0] - color[1] > COLOR_LOSS:
        learned, judgment, in_color = False, f"{judgment}, but {in_color}: it forgets color", ""
    elif learned and entropy and entropy[1] >= UNDECIDED_ENTROPY and entropy[1] > entropy[0] - 0.002:
        learned, judgment = False, f"{judgment}, but {_whose(columns)} has no opinion about any image"
    pace = [] if by_color else _pace(columns, gain)
    rest = [*pace, f"Crop matching is {meaning}{f'; {in_color}' if in_color else ''}"]
    return _Finding(learned, f"{change}: {judgment}", tuple(rest), gain, chance)


def _by_teacher(columns: Columns) -> list[str]:
    """Sentences about the teacher's entropy and the effective rank."""
    found = []
    if entropy := _half_and_end(columns, "entropy_frac"):
        found.append(
            f"{_sentence(_whose(columns))}'s entropy is {entropy[1]:.1%} of its maximum, ln K (halfway "
            f"{entropy[0]:.1%}; 0% is certain of one answer, 100% has no opinion; between is healthy)"
        )
    if "effective_rank" in columns:
        rank = columns["effective_rank"][1]
        found.append(f"The effective rank is {rank[-1]:.1f} ({rank[0]:.1f} at the start)")
    return found


def _whose(columns: Columns) -> str:
    """Whose entropy a run measures: a method without a teacher computes targets from the student."""
    return "the teacher" if any(name.endswith(".teacher") for name in columns) else "the target"


def _judgment(gain: float, chance: float, needed: float) -> str:
    """A change of so many points in words."""
    if gain <= -_FELL:
        return f"it fell by {-gain:.1f} points{_against_chance(gain, chance)}"
    if gain < needed:
        return f"{f'a gain of {gain:.1f} points' if gain >= 1 else 'no change'}, {needed:g} points would show learning"
    return f"a gain of {gain:.1f} points"


def _against_chance(gain: float, chance: float) -> str:
    if not chance:
        return ""
    return f", {'more than chance explains' if abs(gain) > chance else 'which may be chance'} (±{chance:.1f})"


def _pace(columns: Columns, gain: float) -> list[str]:
    """How far crop matching, which rose by `gain` points, is from showing that a run has learned; empty if it does."""
    if gain >= MATCH_GAIN:
        return []
    if _stalled(columns):
        return ["It has not risen in the last third of the run"]
    if gain < 1:
        return []
    return [f"At the pace so far that takes about {max(1.1, MATCH_GAIN / gain):.1f} times as many steps"]


def _by_classes(columns: Columns, when: str) -> _Finding | None:
    """What k-NN accuracy says; None without classes.

    The gain is 0 at most where balanced accuracy has not risen: then one class is only answered more often.
    """
    names = [name.partition(".")[2] for name in columns if name.startswith("knn.")]
    first = next((name for name in _STARTS if name in names), None)
    if first is None:
        return None
    best, num = names[0], int(_last(columns, "num_queries") or 0)
    before, after = (float(columns[f"knn.{name}"][1][-1]) for name in (first, best))
    balanced = _pair(columns, "balanced_accuracy", first, best)
    chance, gain = accuracy.chance_of_difference(before, after, num), after - before
    judgment = _judgment(gain, chance, KNN_GAIN)
    if gain >= KNN_GAIN:
        judgment += _against_chance(gain, chance)
    rest = [f"On {num:,} queries (most frequent class: {_last(columns, 'majority') or 0:.1f}%)"] if num else []
    if balanced:
        rest.append(f"Balanced accuracy {balanced[0]:.1f}% → {balanced[1]:.1f}%")
        if balanced[1] <= balanced[0] and gain > 0:
            gain, judgment = 0.0, f"{judgment}, but balanced accuracy has not risen: one class is answered more often"
    if (pixels := _last(columns, "knn.pixels")) is not None and pixels >= after:
        rest.append(f"Raw pixels reach {pixels:.1f}%: the views may change what tells these classes apart, e.g. light")
    fact = f"k-NN accuracy {before:.1f}% ({_NAMES[first]}) → {after:.1f}% {when}: {judgment}"
    return _Finding(gain >= KNN_GAIN and gain > chance, fact, tuple(rest), gain, chance)


def _pair(columns: Columns, kind: str, first: str, best: str) -> tuple[float, float] | None:
    """The last values of a metric per network: of the network at the start, and of the one to use; None without."""
    before, after = (_last(columns, f"{kind}.{name}") for name in (first, best))
    return None if before is None or after is None else (before, after)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _useless_images(columns: Columns) -> tuple[str, str] | None:
    """Evidence and cure if almost all images are of one color or copies of each other, else None."""
    images, distinct, flat = (_last(columns, f"judged_on.{name}") or 0 for name in ("images", "distinct", "flat"))
    if flat > 0.9 * images:
        return (
            f"{flat:,.0f} of {images:,.0f} images checked have a single color each",
            "There is nothing to learn from them: check how they are read with `opendino visualize crops`",
        )
    if distinct < 0.1 * images:
        return (
            f"only {distinct:,.0f} of {images:,.0f} images checked differ, the rest are exact copies",
            "Use images that differ; from a video take frames that are seconds apart",
        )
    return None


def _skipped_steps(columns: Columns) -> tuple[str, str] | None:
    """Evidence and cure if more than a tenth of the last hundred steps had a non-finite loss, else None."""
    last = [float(value) for value in columns["ok"][1][-100:]] if "ok" in columns else [1.0]
    skipped = sum(1 - value for value in last)
    if skipped <= len(last) / 10:
        return None
    return (
        f"{skipped:.0f} of the last {len(last)} steps had a non-finite loss and were skipped",
        "Lower --optim.lr or --optim.clip, or use --precision float32",
    )


def _rank_one(columns: Columns) -> Collapse | None:
    if not _evaluated(columns) or (rank := _last(columns, "effective_rank")) is None or rank >= RANK_ONE:
        return None
    first = columns["effective_rank"][1][0]
    return Collapse(
        "rank 1",
        f"the features of all images lie on one line: their effective rank is {rank:.2f} ({first:.2f} at the start)",
        f"Check that the images differ (opendino visualize crops). {CURE}",
    )


def _from_trained_weights(columns: Columns) -> bool:
    """Whether the run started from trained weights (--init)."""
    return any(name.endswith(".start") for name in columns)


def _evaluated(columns: Columns) -> bool:
    """Whether there was an evaluation after the first step."""
    return "effective_rank" in columns and columns["effective_rank"][0][-1] > 0


def _half_and_end(columns: Columns, name: str) -> tuple[float, float] | None:
    """Medians of a metric over a tenth of the run, halfway and at the end; None if it was not measured.

    Not at the start, where the entropy of a healthy run may rise together with the teacher's temperature.
    """
    if name not in columns:
        return None
    values = columns[name][1]
    half, tenth = len(values) // 2, max(1, len(values) // 10)
    return statistics.median(values[half : half + tenth]), statistics.median(values[-tenth:])


def _last(columns: Columns, name: str) -> float | None:
    return float(columns[name][1][-1]) if name in columns else None


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """As `core.metrics_log.columns`, from rows in memory."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name in EXAMINED:
            value = row.get(name)
            parts = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
            for key, each in parts.items():
                if isinstance(each, int | float) and math.isfinite(each):
                    steps, values = found.setdefault(key, ([], []))
                    steps.append(row["step"])
                    values.append(each)
    return found
