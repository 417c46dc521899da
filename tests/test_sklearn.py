"""The transformer of scikit-learn: in pipelines, grid search, clones and pickles."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from tests.factories import model_folder, small_vit

import opendino
from opendino.core.errors import UsageError, UserError
from opendino.sklearn import Embedder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return model_folder(folder, small_vit(), student=small_vit(seed=1))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[int]]:
    """Dark and bright images, and which they are."""
    folder, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(12):
        pixels = noise.integers(0, 60, (20, 20, 3)) + 190 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    paths = sorted(map(str, folder.iterdir()))
    return paths, [number % 2 for number in range(12)]


def test_features_are_those_of_the_model(model: str, photos: tuple[list[str], list[int]]) -> None:
    paths, _ = photos
    expected = opendino.load(model).embed(paths).numpy()
    pictures = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(each) for each in pictures])
    for images in (paths, np.array(paths), np.array(paths)[:, None], pictures, arrays):
        found = Embedder(model, device="cpu", batch=5).fit_transform(images)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    names = Embedder(model, device="cpu").get_feature_names_out()
    assert [*names[:2]] == ["embedder0", "embedder1"] and len(names) == expected.shape[1]


def test_a_pipeline_classifies_images_and_grid_search_tries_its_settings(
    model: str, photos: tuple[list[str], list[int]]
) -> None:
    pipeline = make_pipeline(Embedder(model, device="cpu"), LogisticRegression())
    grid = GridSearchCV(pipeline, {"embedder__which": ["teacher", "student"], "logisticregression__C": [1.0]}, cv=2)
    grid.fit(*photos)
    assert grid.best_score_ == 1 and len(grid.cv_results_["params"]) == 2


def test_clones_and_pickles_hold_the_arguments_only(model: str, photos: tuple[list[str], list[int]]) -> None:
    fitted = Embedder(model, which="student", device="cpu").fit(photos[0])
    text = pickle.dumps(fitted)
    assert len(text) < 500
    others: list[Any] = [pickle.loads(text), clone(fitted)]
    for other in others:
        assert other.get_params() == fitted.get_params()
        np.testing.assert_array_equal(other.transform(photos[0]), fitted.transform(photos[0]))


def test_scikit_learns_own_checks_pass(model: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Can't test estimator")  # those that need tables of numbers
        results = check_estimator(Embedder(model, device="cpu"), on_fail=None)
    assert results and {each["status"] for each in results} == {"passed"}


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ("photo.png", "X is a str"),
        (7, "X is a int"),
        (np.zeros((3, 5)), r"shape \[3, 5\]"),
        (np.zeros((9, 9, 3), np.uint8), r"looks like one image\. Give \[image\]"),
    ],
)
def test_what_is_not_a_list_of_images_is_refused(model: str, images: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Embedder(model, device="cpu").transform(images)


def test_a_missing_model_or_image_is_one_line(model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        Embedder(str(tmp_path / "nowhere"), device="cpu").fit([])
    with pytest.raises(UserError, match="missing"):
        Embedder(model, device="cpu").transform([str(tmp_path / "missing.png")])
