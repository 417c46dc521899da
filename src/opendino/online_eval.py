"""While a run trains: weigh its networks on a fixed part of the data."""

from __future__ import annotations

import copy
import zlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from opendino import features
from opendino.config import Config
from opendino.core import distributed, log
from opendino.core.accuracy import BALANCED, Accuracy, chance_of_difference, standard_error
from opendino.core.contracts import Backbone, Method
from opendino.core.types import ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.open_source import open_source
from opendino.evals.knn import places
from opendino.evals.label_free import effective_rank
from opendino.features import eval_crops
from opendino.features.classification_metrics import accuracy, accuracy_of, majority

Scores = dict[str, dict[str, float]]


class OnlineEval:
    """k-NN of the networks against raw pixels and the network they began as; the effective rank without labels.

    Ranks share the images and all come to the same scores; every rank must take part in everything here.

    Attributes:
        origin: Where the query images come from, for people.
    """

    def __init__(self, config: Config, images: DecodedImages, spec: ViewSpec, device: torch.device) -> None:
        assert isinstance(config.eval_images, int) and isinstance(config.workers, int)
        self._spec, self._device, self._k, self._classes = spec, device, config.knn_k, images.source.classes
        self._init = config.init
        told = [config.eval_images, config.knn_k, config.val, spec.groups[0].size_px, spec.mean, spec.std]
        self._of = {"settings": float(zlib.crc32(repr(told).encode()))}
        val = DecodedImages(open_source(config.val), images.max_area_px) if config.val else None
        self._set = eval_crops.make(images, val, config.eval_images, spec.groups[0].size_px, config.workers)
        self.origin = self._set.origin
        # A method that learns from labels knows those of its own images: held-out ones alone say anything.
        self._judging = self._set.labeled and (config.val is not None or not spec.labeled_frac)
        if self._set.labeled and not self._judging:
            self.origin = "no held-out images; name some with --val to see accuracies"
        elif self._set.one_class:
            self.origin += ", all of one class: any answer would be right, so no accuracy is shown"
        self._seen = self._set.seen()
        if odd := eval_crops.oddities(self._seen):
            log.warn(odd)

    def __call__(self, method: Method, baselines: Scores) -> tuple[dict[str, Any], Scores]:
        """Judge a method.

        Args:
            method: The fresh one where there are no `baselines` yet.
            baselines: What never changes while a run trains, {} for not yet measured: {"knn": {name: percent}} of raw
                "pixels", of the "untrained" network (or of the "start", where weights were given) and of a frozen
                "teacher"; {"accuracy": ...} of the latter; {"effective_rank": {"start": ...}}; {"of": {"settings": a
                checksum of those they were measured with}}.

        Returns:
            {"effective_rank": of the network to use, "judged_on": see `EvalSet.seen`} and, with labels, {"knn": {name:
            top-1 in percent}} and {"accuracy": {name: of its classifier in percent}}, the network to use first, with
            {"balanced_accuracy", "standard_error"} of the k-NN, {"accuracy_balanced"} of the classifiers, "majority"
            and "num_queries", see `scores.Accuracy`; and the baselines.
        """
        first_time = not baselines
        if first_time:
            baselines = {"of": self._of}
        elif baselines.get("of", self._of) != self._of:
            log.warn("evaluation settings have changed since the run began: what was measured then is left out")
            baselines = {"of": self._of, "knn": {}, "accuracy": {}}
        networks = method.networks()
        first = next(iter(networks))
        bank = self._features(networks[first], self._set.bank)
        quality: dict[str, Any] = {"effective_rank": effective_rank(bank[:2048]), "judged_on": self._seen}
        if first_time and self._init:
            baselines = baselines | {"effective_rank": {"start": quality["effective_rank"]}}
        if not self._judging:
            return quality, baselines
        if "knn" not in baselines:
            baselines = baselines | self._baselines(method)
        scores = self._scores(method, networks, {first: bank})
        for kind in scores:
            if found := scores[kind] | baselines.get(kind, {}):
                quality[kind] = found
        num = len(self._set.query_labels)
        errors = {name: standard_error(value, num) for name, value in quality["knn"].items()}
        common = {"standard_error": errors, "majority": majority(self._set.query_labels), "num_queries": num}
        return quality | common, baselines

    def against_start(self, quality: dict[str, Any], baselines: Scores) -> dict[str, Any] | None:
        """Whether the network to use is better than the weights it started from; None where those were random.

        Returns:
            "measure" (knn, or effective_rank without labels), "before", "after", "verdict" (better, no better, worse,
            unknown) and what it "says" to people. k-NN accuracies differ where they are two standard errors apart.
            A higher rank is no proof of a better network; one of less than half is of a worse one.
        """
        if not self._init or "start" not in baselines.get("knn" if "knn" in quality else "effective_rank", {}):
            return None
        if "knn" in quality:
            measure, unit, num = "knn", " %", len(self._set.query_labels)
            before, after = baselines["knn"]["start"], next(iter(quality["knn"].values()))
            noise = chance_of_difference(before, after, num)
            verdict = "better" if after - before > noise else "worse" if before - after > noise else "no better"
            why = f"; on {num:,} queries {noise:.1f} points may be chance"
        else:
            measure, unit, why = "effective_rank", "", ""
            before, after = baselines["effective_rank"]["start"], quality["effective_rank"]
            verdict = "worse" if after < before / 2 else "unknown"
        shown = f"{measure.replace('knn', 'k-NN').replace('_', ' ')} {before:.1f}{unit} before, {after:.1f}{unit} after"
        told = {
            "better": "Better than the weights it started from",
            "no better": f"No better than the weights it started from: go on using {self._init}, or train longer",
            "worse": f"Worse than the weights it started from: go on using {self._init}, or try a lower --optim.lr",
            "unknown": "Better or not, a rank cannot tell: name some labeled images with --val",
        }[verdict]
        says = f"{told} ({shown}{why})"
        return {"measure": measure, "before": before, "after": after, "verdict": verdict, "says": says}

    def _baselines(self, method: Method) -> Scores:
        frozen = {} if "teacher" in method.product else {"teacher": method.teacher}
        first = copy.deepcopy(cast(Backbone, method.student["backbone"]))
        if not self._init:
            features.recalibrate_batch_norm(first, self._leading(512), self._spec.mean, self._spec.std, self._device)
        name = "start" if self._init else "untrained"
        scores = self._scores(method, frozen | {name: nn.ModuleDict({"backbone": first})}, {})
        pixels = (distributed.all_gather_rows(features.pixels(crops)) for crops in (self._set.bank, self._set.queries))
        _note(scores, "knn", "pixels", self._knn(*pixels))
        return scores

    def _leading(self, number: int) -> Tensor:
        """The first crops of the bank, whichever ranks hold them, on every rank."""
        before = sum(distributed.all_gather_object([len(self._set.bank)])[: distributed.rank()])
        return distributed.all_gather_rows(self._set.bank[: max(0, number - before)])

    def _scores(self, method: Method, networks: dict[str, nn.ModuleDict], banks: dict[str, Tensor]) -> Scores:
        """k-NN of each network, and the accuracy of its classifier where it has one for these classes; balanced too.

        Args:
            method: Theirs.
            networks: By name.
            banks: Features of the bank that are known already.
        """
        scores: Scores = {kind: {} for pair in BALANCED.items() for kind in pair}
        for name, network in networks.items():
            bank = banks[name] if name in banks else self._features(network, self._set.bank)
            queries = self._features(network, self._set.queries)
            _note(scores, "knn", name, self._knn(bank, queries))
            if "classifier" in network and self._classes == (method.classes or self._classes):
                _note(scores, "accuracy", name, self._accuracy(network["classifier"], queries))
        return scores

    def _features(self, network: nn.ModuleDict, crops: Tensor) -> Tensor:
        backbone = cast(Backbone, network["backbone"])
        mine = features.extract(backbone, crops, self._spec.mean, self._spec.std, self._device)
        return distributed.all_gather_rows(mine)

    def _knn(self, bank: Tensor, queries: Tensor) -> Accuracy:
        labels, truth = self._set.bank_labels, self._set.query_labels
        found = places(bank, labels, queries, truth, [self._k])[self._k]
        return accuracy_of(found, truth, len(labels.unique()), most=self._k)

    @torch.no_grad()
    def _accuracy(self, classifier: nn.Module, queries: Tensor) -> Accuracy:
        return accuracy(classifier(queries.to(self._device)).cpu(), self._set.query_labels)


def _note(scores: Scores, kind: str, name: str, found: Accuracy) -> None:
    scores[kind][name], scores[BALANCED[kind]][name] = found.top1, found.balanced_accuracy
