"""Whether a continued run is better than the run it started from, on old and new images that it did not train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendino import existing_runs, resolve
from opendino.config import ResolvedConfig
from opendino.core import distributed, log
from opendino.core.contracts import Source
from opendino.data.fingerprint import key_digests
from opendino.data.held_out import is_held_out, training_images
from opendino.data.source_files import exists
from opendino.data.subset import Subset, evenly_spaced
from opendino.data.video_file import split_every
from opendino.evals.knn import true_class_ranks
from opendino.features.crop_features import extract
from opendino.features.crop_matching import disjoint_crops, in_gray, match_scores
from opendino.features.eval_crops import center_crops
from opendino.features.feature_table import FeatureTable, table
from opendino.features.paired_change import Change, change
from opendino.models.load import Model, load

MOST_COMPARED = 1000  # images of each kind to compare on
_MOST_BANK = 5000  # labeled training images for the k-NN
_TELLING = 5.0  # points: "no better" needs two standard errors below it, else the images are too few
_MEASURES = {"knn": "k-NN accuracy", "crops": "crops of an image that find each other"}


def against_start(config: ResolvedConfig, folder: Path, device: torch.device) -> dict[str, Any]:
    """Compare a continued run with the run it started from.

    With confirmed labels by k-NN accuracy (the bank are training images), else by `features.crop_matching`.

    Args:
        config: Settings of the run, with `init_networks` "all".
        folder: The run's folder.
        device: Where to run the networks.

    Returns:
        "measure" (knn or crops), "verdict" (better, no better, worse, unknown), "new" and "old" (fields of `Change`),
        "before" and "after" (on the new images, or the old ones if there are none), and a sentence "says".
    """
    init = Path(config.init or "")
    if not (init / "config.yaml").is_file():
        return {"measure": None, "verdict": "unknown", "says": f"Cannot say whether it is better: {init} is not there"}
    with distributed.single_process():
        log.say(f"comparing with {init} on held-out images")
        by_labels = config.labels not in ("auto", "none")
        models = [load(str(run)).to(device) for run in (init, folder)]
        earlier, today = existing_runs.read_run_config(init), resolve.all_images(config)
        held_out = _held_out(config, init, earlier, today)
        sets = {name: source for name, source in held_out.items() if len(source) > 1}
        bank = thinned(training_images(today, config.hold_out), _MOST_BANK) if by_labels else None
        scores = [_scores(model, sets, bank, config.knn_k) for model in models]
    changes = {name: change(scores[0][name], scores[1][name]) for name in sets if len(scores[0][name]) > 1}
    measure = "knn" if by_labels else "crops"
    if not changes:
        return {"measure": measure, "verdict": "unknown", "says": "Cannot say whether it is better: no held-out images"}
    verdict, summary = _verdict(changes)
    trained = "old" in changes and not earlier.hold_out
    before, after = _written_alike(init, folder)
    seen = f"; the old ones are kept out of the new run only: {before} was trained on them" if trained else ""
    figures = "; ".join(f"{each} {name} images" for name, each in changes.items())
    first = next(iter(changes.values()))
    return {
        "measure": measure, "verdict": verdict, "before": first.before, "after": first.after,
        **{name: each.__dict__ for name, each in changes.items()},
        "says": f"{summary} ({_MEASURES[measure]}: {figures}{seen}). Before: {before}, after: {after}",
    }  # fmt: skip


def _written_alike(*folders: Path) -> list[Path]:
    """The folders by relative paths if all are in the current folder, else by absolute ones."""
    here, paths = Path.cwd(), [folder.absolute() for folder in folders]
    return [path.relative_to(here) for path in paths] if all(path.is_relative_to(here) for path in paths) else paths


def decides(found: Mapping[str, Any] | None) -> bool:
    """Whether what `against_start` returned is the answer of a continued run, and its verdict only explains."""
    return found is not None and found["measure"] in _MEASURES and found["verdict"] != "unknown"


def _verdict(changes: dict[str, Change]) -> tuple[str, str]:
    directions = {each.direction for each in changes.values()}
    if directions == {1, -1}:
        better, worse = (next(name for name, each in changes.items() if each.direction == way) for way in (1, -1))
        return "unknown", f"Cannot say whether it is better: better on {better} images, worse on {worse} ones"
    if 1 in directions:
        return "better", "Better than the model it started from"
    if -1 in directions:
        return "worse", "Worse than the model it started from: keep using that, or try a lower --optim.lr"
    if max(each.standard_error for each in changes.values()) * 2 > _TELLING:
        return "unknown", "Cannot say whether it is better: too few images for so small a difference"
    return "no better", "Not shown to be better than the model it started from: keep using that, or train longer"


def _held_out(config: ResolvedConfig, init: Path, earlier: ResolvedConfig, today: Source) -> dict[str, Source]:
    """Images that the run did not train on: "new", and "old" ones, which the run before it had."""
    digests, known = key_digests(today), existing_runs.read_keys(init)
    held = is_held_out(digests, config.hold_out)
    path, now = split_every(earlier.data)[0], split_every(config.data)[0]
    if now != path and exists(path):  # another folder: equal names are not the same images
        before = resolve.all_images(earlier)
        if not (Path(path).is_dir() and Path(path).is_relative_to(now)):
            old = is_held_out(key_digests(before), config.hold_out)
            return {"new": _subset(today, held), "old": _subset(before, old)}
        # The folder above it: the old images are among these, by longer names.
        names = {f"{Path(path).relative_to(now).as_posix()}/{before.key(i)}" for i in range(len(before))}
        is_old = np.array([today.key(i) in names for i in range(len(today))])
    else:
        is_old = np.zeros(len(held), bool) if known is None else np.isin(digests, known)
    return {"new": _subset(today, held & ~is_old), "old": _subset(today, held & is_old)}


def _subset(source: Source, chosen: np.ndarray) -> Source:
    return thinned(Subset(source, np.flatnonzero(chosen).tolist()), MOST_COMPARED)


def thinned(source: Source, most: int) -> Source:
    """At most that many images, evenly spaced."""
    return Subset(source, evenly_spaced(len(source), most))


def _scores(model: Model, sets: dict[str, Source], bank: Source | None, k: int) -> dict[str, Tensor]:
    """Score of each readable image of each set, float64 `[N]`, 0 to 1."""
    if bank is not None:
        known = table(model, bank).labeled()
        return {name: _knn_scores(known, table(model, source).labeled(), k) for name, source in sets.items()}
    return {name: crop_scores(model, source) for name, source in sets.items()}


def crop_scores(model: Model, source: Source) -> Tensor:
    """How often the two crops of each image find each other, see `features.crop_matching`."""
    mean, std, size_px = (model.preprocessing[name] for name in ("mean", "std", "image_px"))
    pairs = in_gray(disjoint_crops(center_crops(source, size_px)))
    if pairs.shape[1] < 2:
        return torch.zeros(0, dtype=torch.float64)
    device = next(model.backbone.parameters()).device
    return match_scores(*(extract(model.backbone, crops, mean, std, device) for crops in pairs))


def _knn_scores(bank: FeatureTable, queries: FeatureTable, k: int) -> Tensor:
    if not len(bank) or not len(queries):
        return torch.zeros(0, dtype=torch.float64)
    truth = queries.labels_by(bank.classes)
    ranks = true_class_ranks(bank.features, bank.labels, queries.features, truth, [k])[k]
    return (ranks == 0).double()
