"""Online evaluation: k-NN accuracy, crop matching and effective rank of a run's networks, on a part of the data."""

from __future__ import annotations

import copy
import functools
import zlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from opendino import features, run_images
from opendino.config import ResolvedConfig
from opendino.core import distributed, log
from opendino.core.accuracy import BALANCED, Accuracy, standard_error
from opendino.core.contracts import Backbone, Method
from opendino.core.progress import Progress
from opendino.core.types import ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.channel_images import ChannelImages
from opendino.data.held_out import held_out_labeled
from opendino.engine import precision
from opendino.engine.verdict import told_apart_by_color
from opendino.evals.knn import true_class_ranks
from opendino.evals.label_free import effective_rank
from opendino.features import eval_crops
from opendino.features.classification_metrics import accuracy, accuracy_of, majority
from opendino.features.crop_matching import NUM_IMAGES, disjoint_crops, in_gray, match_rate
from opendino.features.pixel_baseline import color_histogram
from opendino.models.separate_channels import SeparateChannels

_BY_COLOR_FRAC = 0.75  # of the errors of the most frequent class that color must mend for a warning
_BATCH = 64  # images per forward pass
Scores = dict[str, dict[str, float]]


class OnlineEval:
    """Evaluates a run's networks by k-NN and crop matching, next to raw pixels and the initial network.

    The images are split over the ranks, and all ranks get the same scores. Collective: every rank must make every call.
    Features are computed in the precision of the run, and compared in float32.

    Args:
        config: Settings of the run.
        images: The training images.
        spec: The views; its first group gives the image size and normalization.
        device: This process's device.

    Attributes:
        origin: Where the query images come from, for the log.
    """

    def __init__(self, config: ResolvedConfig, images: DecodedImages, spec: ViewSpec, device: torch.device) -> None:
        self._spec, self._device, self._k, self._classes = spec, device, config.knn_k, images.source.classes
        self._init, self._dtype = config.init, getattr(torch, config.precision)
        settings = [config.eval_images, config.knn_k, config.val, spec.groups[0].short_px, spec.mean, spec.std]
        self._settings_checksum = {"settings": float(zlib.crc32(repr(settings).encode()))}
        held_out = None
        if config.val:
            held_out = run_images.open_images(config, config.val)
        elif spec.labeled_frac:
            held_out = held_out_labeled(images.source, config.hold_out)
        val = DecodedImages(held_out, images.max_area_px) if held_out else None
        self._separate = isinstance(images.source, ChannelImages)
        if isinstance(images.source, ChannelImages):  # trained on channels, but judged by whole images
            images = DecodedImages(images.source.source, images.max_area_px)
        self._set = eval_crops.make(images, val, config.eval_images, spec.groups[0].short_px, config.workers)
        self.origin = self._set.origin
        # A method that trains on labels has seen those of the training images, so only held-out ones are a test.
        self._has_accuracies = self._set.labeled and (val is not None or not spec.labeled_frac)
        if self._set.labeled and not self._has_accuracies:
            self.origin = "no held-out images (use --val or --hold-out to get accuracies)"
        elif self._set.one_class:
            self.origin += ", all of one class: every answer would be right, so no accuracy is shown"
        self._content_counts: dict[str, float] = dict(self._set.content_counts())
        if self._has_accuracies:
            self._content_counts |= self._folders(config, images.source.folder_classes and not spec.labeled_frac)
        if warning := eval_crops.content_warning(self._content_counts):
            log.warn(warning)

    def _folders(self, config: ResolvedConfig, only_folders: bool) -> dict[str, float]:
        """Whether the classes are known to be classes ("confirmed" 1), and "color" if colors tell sub-folders apart.

        Nobody may have sorted the images by class: sub-folders can be dates, devices or batches.
        """
        if config.labels != "auto" or config.val or not only_folders:
            return {"confirmed": 1}
        log.say(
            f"{len(self._classes)} sub-folders: k-NN accuracy with them as classes is shown at the end, for "
            "information only. Near chance is good if they are dates or batches (--labels none leaves it out); if they "
            "are classes, --labels folders lets it decide the verdict"
        )
        crops = self._set.bank, self._set.queries
        found = self._knn(*(distributed.all_gather_rows(color_histogram(each)) for each in crops))
        if found.top1 < found.majority + _BY_COLOR_FRAC * (100 - found.majority):
            return {"confirmed": 0}
        log.warn(told_apart_by_color(found.top1))
        return {"confirmed": 0, "color": found.top1}

    def __call__(self, method: Method, baselines: Scores) -> tuple[dict[str, Any], Scores]:
        """Evaluate a method.

        Args:
            method: With full weights; at the first call (no `baselines`) before its first step.
            baselines: Scores that do not change during a run, {} if not yet measured: {"knn": {name: percent}} of raw
                "pixels", of the "untrained" network (or, with `init`, of the network at the "start") and of a frozen
                "teacher"; {"accuracy": ...} of the latter; {"crop_match": ...} and {"crop_match_color": ...} of the
                initial network, raw "pixels" and "color" histograms; {"of": {"settings": checksum of the settings they
                were measured with}}.

        Returns:
            The metrics and the baselines. The metrics are "effective_rank" of the network to use; "crop_match" and
            "crop_match_color", {name: percent}, the network to use first: `crop_matching.match_rate` of crops in gray
            and in color; and "judged_on" (see `EvalSet.content_counts`). With labels also, the network to use first,
            {"knn": {name: top-1 accuracy in percent}} with "balanced_accuracy" and "standard_error"; {"accuracy":
            {name: of its classifier in percent}} with "accuracy_balanced"; "majority" and "num_queries", see
            `core.accuracy`.
        """
        first_time = not baselines
        if first_time:
            baselines = {"of": self._settings_checksum}
        elif baselines.get("of", self._settings_checksum) != self._settings_checksum:
            log.warn("evaluation settings have changed since the run started: earlier baselines are not shown")
            baselines = {
                "of": self._settings_checksum,
                "knn": {},
                "accuracy": {},
                "crop_match": {},
                "crop_match_color": {},
            }
        what = "images, evaluating" + " the network before training" * first_time
        with Progress(what, self._num_to_embed(method, first_time)) as self._progress:
            self._num_embedded = 0
            return self._evaluate(method, baselines, first_time)

    def _evaluate(self, method: Method, baselines: Scores, first_time: bool) -> tuple[dict[str, Any], Scores]:
        networks = method.networks()
        main_network = next(iter(networks))
        bank = self._features(networks[main_network], self._set.bank)
        quality: dict[str, Any] = {"effective_rank": effective_rank(bank[:2048]), "judged_on": self._content_counts}
        if first_time:
            baselines = baselines | self._baselines(method)
        for kind, rate in self._match(networks[main_network]).items():
            quality[kind] = {main_network: rate} | baselines.get(kind, {})
        if not self._has_accuracies:
            return quality, baselines
        scores = self._scores(method, networks, {main_network: bank})
        for kind in scores:
            if found := scores[kind] | baselines.get(kind, {}):
                quality[kind] = found
        num = len(self._set.query_labels)
        errors = {name: standard_error(value, num) for name, value in quality["knn"].items()}
        common = {"standard_error": errors, "majority": majority(self._set.query_labels), "num_queries": num}
        return quality | common, baselines

    def _baselines(self, method: Method) -> Scores:
        """Scores that do not change during the run; see `__call__`."""
        initial = self._initial_network(method)
        name = "start" if self._init else "untrained"
        matched: Scores = {kind: {name: rate} for kind, rate in self._match(initial).items()}
        for kind, pairs in self._crop_pairs.items():
            for other, describe in (("pixels", features.pixels), ("color", color_histogram)):
                matched[kind][other] = match_rate(*(describe(crops) for crops in pairs))
        if not self._has_accuracies:
            return matched
        frozen = {"teacher": method.teacher} if _has_frozen_teacher(method) else {}
        scores = self._scores(method, frozen | {name: initial}, {})
        pixels = (distributed.all_gather_rows(features.pixels(crops)) for crops in (self._set.bank, self._set.queries))
        _record(scores, "knn", "pixels", self._knn(*pixels))
        return matched | scores

    def _initial_network(self, method: Method) -> nn.ModuleDict:
        """A copy of the network before its first step, with BatchNorm statistics of the images if it is untrained."""
        backbone = copy.deepcopy(cast(Backbone, method.student["backbone"]))
        if not self._init:
            with precision.autocast(self._device, self._dtype):
                features.recalibrate_batch_norm(
                    self._for_images(backbone), self._first_crops(512), self._spec.mean, self._spec.std, self._device
                )
        return nn.ModuleDict({"backbone": backbone})

    @functools.cached_property
    def _crop_pairs(self) -> dict[str, Tensor]:
        """Two disjoint crops of a few images by metric, the same on every rank: `[2 M C H W]`."""
        in_color = disjoint_crops(self._first_crops(NUM_IMAGES))
        return {"crop_match": in_gray(in_color), "crop_match_color": in_color}

    def _match(self, network: nn.ModuleDict) -> dict[str, float]:
        """How often the network finds the other crop of an image, in percent, by metric; each rank computes a part."""
        rates = {}
        for kind, pairs in self._crop_pairs.items():
            mine = pairs[:, distributed.rank_slice(pairs.shape[1])]
            rates[kind] = match_rate(*(self._features(network, crops) for crops in mine))
        return rates

    def _first_crops(self, number: int) -> Tensor:
        """The first `number` crops of the bank, gathered from all ranks: `[number C H W]` on every rank."""
        before = sum(distributed.all_gather_object([len(self._set.bank)])[: distributed.rank()])
        crops = self._set.bank[: max(0, number - before)]
        return distributed.all_gather_rows(crops.view(torch.uint8)).view(crops.dtype)  # uint16 cannot be sent

    def _scores(self, method: Method, networks: dict[str, nn.ModuleDict], banks: dict[str, Tensor]) -> Scores:
        """k-NN accuracy of each network, and the accuracy of its classifier if it has one for these classes.

        Args:
            method: The method of the networks.
            networks: Name → network.
            banks: Name → features of the bank `[N D]`, if already computed.

        Returns:
            "knn", "accuracy" and their balanced versions: {name: percent}.
        """
        scores: Scores = {kind: {} for pair in BALANCED.items() for kind in pair}
        for name, network in networks.items():
            bank = banks[name] if name in banks else self._features(network, self._set.bank)
            queries = self._features(network, self._set.queries)
            _record(scores, "knn", name, self._knn(bank, queries))
            if "classifier" in network and not self._separate and self._classes == (method.classes or self._classes):
                _record(scores, "accuracy", name, self._accuracy(network["classifier"], queries))
        return scores

    def _features(self, network: nn.ModuleDict, crops: Tensor) -> Tensor:
        backbone = self._for_images(cast(Backbone, network["backbone"]))
        local = []
        for part in crops.split(_BATCH):
            with precision.autocast(self._device, self._dtype):
                local.append(features.extract(backbone, part, self._spec.mean, self._spec.std, self._device, _BATCH))
            self._num_embedded += len(part)
            self._progress.update(self._num_embedded)
        return distributed.all_gather_rows(torch.cat(local))

    def _num_to_embed(self, method: Method, first_time: bool) -> int:
        """Number of images that this rank passes through networks, each time counted."""
        bank, labeled = len(self._set.bank), (len(self._set.bank) + len(self._set.queries)) * self._has_accuracies
        mine = [crops[:, distributed.rank_slice(crops.shape[1])] for crops in self._crop_pairs.values()]
        pairs = sum(crops.shape[:2].numel() for crops in mine)
        of_run = max(bank, labeled) + (len(method.networks()) - 1) * labeled + pairs
        return of_run + first_time * (pairs + labeled * (1 + _has_frozen_teacher(method)))

    def _for_images(self, backbone: Backbone) -> Backbone:
        """The network as it is used: a network of one channel for all channels of an image."""
        return SeparateChannels(backbone, self._set.bank.shape[1]) if self._separate else backbone

    def _knn(self, bank: Tensor, queries: Tensor) -> Accuracy:
        labels, truth = self._set.bank_labels, self._set.query_labels
        found = true_class_ranks(bank, labels, queries, truth, [self._k])[self._k]
        return accuracy_of(found, truth, len(labels.unique()), most=self._k)

    @torch.no_grad()
    def _accuracy(self, classifier: nn.Module, queries: Tensor) -> Accuracy:
        return accuracy(classifier(queries.to(self._device)).cpu(), self._set.query_labels)


def _has_frozen_teacher(method: Method) -> bool:
    return "teacher" not in method.product and "backbone" in method.teacher


def _record(scores: Scores, kind: str, name: str, found: Accuracy) -> None:
    scores[kind][name], scores[BALANCED[kind]][name] = found.top1, found.balanced_accuracy
