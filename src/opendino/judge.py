"""While a run trains: weigh its teacher and student on a fixed part of the data."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor

from opendino import features
from opendino.config import Config
from opendino.core.contracts import Backbone, Method
from opendino.core.types import ViewSpec
from opendino.data import evalset
from opendino.data.cache import Images
from opendino.data.open import open_source
from opendino.evals.knn import knn
from opendino.evals.label_free import effective_rank


class Judge:
    """k-NN of teacher and student against raw pixels and the untrained network; the effective rank without labels.

    Attributes:
        origin: Where the query images come from, for people.
    """

    def __init__(self, config: Config, images: Images, spec: ViewSpec, device: torch.device) -> None:
        assert isinstance(config.eval_images, int)
        self._spec, self._device, self._k = spec, device, config.knn_k
        val = Images(open_source(config.val), images.max_area_px) if config.val else None
        self._set = evalset.make(images, val, config.eval_images, spec.groups[0].size_px)
        self.origin = self._set.origin

    def __call__(self, method: Method, baselines: dict[str, float]) -> tuple[dict[str, Any], dict[str, float]]:
        """Judge a method.

        Args:
            method: The fresh one where there are no `baselines` yet.
            baselines: k-NN in percent of "pixels" and the "untrained" network; {} for not yet measured.

        Returns:
            {"effective_rank": of the teacher's features} and, with labels, {"knn": {name: top-1 in percent}}; and the
            baselines.
        """
        teacher, student = (cast(Backbone, network["backbone"]) for network in (method.teacher, method.student))
        bank = self._features(teacher, self._set.bank)
        quality: dict[str, Any] = {"effective_rank": effective_rank(bank[:2048])}
        if not self._set.labelled:
            return quality, baselines
        if not baselines:
            fresh = copy.deepcopy(teacher)
            features.settle(fresh, self._set.bank[:512], self._spec.mean, self._spec.std, self._device)
            baselines = {
                "pixels": self._knn(features.pixels(self._set.bank), features.pixels(self._set.queries)),
                "untrained": self._knn(self._features(fresh, self._set.bank), self._features(fresh, self._set.queries)),
            }
        quality["knn"] = {
            "teacher": self._knn(bank, self._features(teacher, self._set.queries)),
            "student": self._knn(self._features(student, self._set.bank), self._features(student, self._set.queries)),
            **baselines,
        }
        return quality, baselines

    def _features(self, backbone: Backbone, crops: Tensor) -> Tensor:
        return features.extract(backbone, crops, self._spec.mean, self._spec.std, self._device)

    def _knn(self, bank: Tensor, queries: Tensor) -> float:
        return knn(bank, self._set.bank_labels, queries, self._set.query_labels, [self._k])[self._k][0]
