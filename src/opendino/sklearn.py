"""A trained model as a transformer of scikit-learn: images in, features out, in a Pipeline and in grid search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from opendino.core import distributed
from opendino.core.errors import UsageError
from opendino.loading import ImageModel, load


class Embedder(TransformerMixin, BaseEstimator):
    """Features of images.

    `make_pipeline(Embedder("runs/mine"), StandardScaler(), LogisticRegression())` is a classifier of images. There is
    nothing to fit: the model is trained already. A pickle holds the arguments, not the network: the model is loaded
    again from its folder.

    Args:
        model: As for `opendino.load`: a run folder, a model folder, or `timm:NAME`.
        which: "teacher" or "student"; None is the default network of the model.
        batch: Images per forward pass.
        device: auto, cuda, mps or cpu.
    """

    def __init__(self, model: str, which: str | None = None, batch: int = 64, device: str = "auto") -> None:
        self.model = model
        self.which = which
        self.batch = batch
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Embedder:  # noqa: N803 - scikit-learn's name
        """Load the model; the images are not looked at.

        Raises:
            UserError: There is no such model, or no such network in it.
        """
        self._network = self._load()
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Compute the features of images.

        Args:
            X: Paths, PIL images or arrays `[H W C]` or `[H W]`, uint8, uint16 or float in [0, 1], in a sequence; or an
                array `[N H W C]`.

        Returns:
            float32 `[N D]`, not L2-normalized.

        Raises:
            UsageError: X is not a sequence of images.
            UserError: There is no image, or one cannot be read.
        """
        images = [str(each) if isinstance(each, np.str_) else each for each in _sequence(X)]
        network = getattr(self, "_network", None) or self._load()
        return network.embed(images, self.batch).float().cpu().numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the features: embedder0, embedder1, ..."""
        network = getattr(self, "_network", None) or self._load()
        return np.array([f"embedder{number}" for number in range(network.backbone.embed_dim)], dtype=object)

    def _load(self) -> ImageModel:
        network = load(self.model, self.which)
        network.to(distributed.device(self.device))
        return network

    def __getstate__(self) -> dict[str, Any]:
        state = cast(dict[str, Any], super().__getstate__())
        return {name: value for name, value in state.items() if name != "_network"}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True  # paths
        tags.no_validation = True  # images are checked when they are read
        return tags


def _sequence(images: Any) -> Sequence[Any]:
    if hasattr(images, "to_numpy"):  # a column of a table
        images = images.to_numpy()
    if isinstance(images, np.ndarray) and images.ndim == 2 and images.shape[1] == 1:
        images = images[:, 0]  # a column of paths, as ColumnTransformer passes it
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OUS" and images.ndim not in (3, 4):
        raise UsageError(f"X is an array of shape {list(images.shape)}", "Give images as [N H W C], or a list of paths")
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] <= 4:
        raise UsageError(f"X is an array of shape {list(images.shape)}, which looks like one image", "Give [image]")
    if isinstance(images, str) or not isinstance(images, Sequence | np.ndarray):
        raise UsageError(f"X is a {type(images).__name__}", "Give a list of paths or images, or an array [N H W C]")
    return list(images)
