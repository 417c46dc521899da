"""A loaded model takes folders: search, duplicates, selection; arrays of two dimensions are images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_folder, noise_folder, noise_image, small_vit

import opendino
from opendino.core.errors import UsageError, UserError
from opendino.data.open_source import open_source
from opendino.embedded_images import EmbeddedImages
from opendino.loading import ImageModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    return opendino.load(model_folder(tmp_path_factory.mktemp("model"), small_vit()))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = noise_folder(tmp_path_factory.mktemp("photos"), 9)
    noise_image(seed=4).save(folder / "copy.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def embedded(model: ImageModel, photos: Path) -> EmbeddedImages:
    found = model.embed(str(photos))
    assert isinstance(found, EmbeddedImages)
    return found


def test_a_folder_gives_the_vectors_of_its_images(model: ImageModel, photos: Path, embedded: EmbeddedImages) -> None:
    assert len(embedded) == 10 and embedded.paths[0] == "0.png" and embedded.bad[0][0] == "broken.png"
    one_by_one = model.embed([photos / path for path in embedded.paths])
    assert isinstance(one_by_one, torch.Tensor)
    assert torch.allclose(embedded.vectors, one_by_one, atol=1e-5)
    assert np.asarray(embedded).shape == tuple(one_by_one.shape)
    assert torch.equal(model.embed(open_source(str(photos))).vectors, embedded.vectors)
    assert repr(embedded) == "10 images with 24 features each, 1 unusable: .search, .duplicates, .select"


def test_one_image_is_still_one_vector(model: ImageModel, photos: Path) -> None:
    assert model.embed(str(photos / "0.png")).shape == (1, 24)
    with pytest.raises(UserError, match="gone"):
        model.embed(str(photos / "gone"))
    with pytest.raises(UserError, match=r"gone\.png"):
        model.embed(str(photos / "gone.png"))


def test_search_finds_the_image_itself_and_its_copy(photos: Path, embedded: EmbeddedImages) -> None:
    hits = embedded.search(photos / "4.png", k=3)
    assert {hit.path for hit in hits[:2]} == {"4.png", "copy.png"} and len(hits) == 3
    assert hits[0].score == pytest.approx(1, abs=1e-5) and hits[1].score >= hits[2].score
    assert embedded.source.key(hits[2].position) == hits[2].path
    assert len(embedded.search(photos / "4.png", k=99)) == 10
    with pytest.raises(UsageError, match="k=0"):
        embedded.search(photos / "4.png", k=0)


def test_duplicates_are_groups(embedded: EmbeddedImages) -> None:
    (group,) = embedded.duplicates(threshold=0.99999)
    assert [hit.path for hit in group] == ["4.png", "copy.png"]
    assert embedded.duplicates(threshold=1.0) == [] or len(embedded.duplicates(threshold=1.0)) == 1
    assert embedded.duplicates()._repr_png_() is None or embedded.duplicates()


def test_a_selection_is_diverse_and_repeats(embedded: EmbeddedImages) -> None:
    chosen = embedded.select(9)
    assert len({hit.path for hit in chosen}) == 9 and {"4.png", "copy.png"} - {hit.path for hit in chosen}
    assert chosen == embedded.select(9) and chosen[0].score >= chosen[-1].score
    with pytest.raises(UsageError, match="num is 11"):
        embedded.select(11)


def test_hits_are_drawn_in_notebooks(photos: Path, embedded: EmbeddedImages) -> None:
    for found in (embedded.search(photos / "1.png"), embedded.duplicates(threshold=0.99999)):
        png = found._repr_png_()
        assert png is not None
        assert Image.open(io.BytesIO(png)).width > 300


def test_a_model_and_the_package_say_what_they_have(model: ImageModel) -> None:
    assert repr(model).startswith("vit/8, the teacher: 16 px → 24 features; .embed")
    assert {"train", "load", "evaluate", "Config", "__version__"} <= set(dir(opendino))
    with pytest.raises(AttributeError, match="has no attribute 'trian'; it has Callback"):
        opendino.trian  # noqa: B018


@pytest.mark.parametrize("as_tensor", [False, True])
def test_arrays_of_two_dimensions_are_gray_images(model: ImageModel, as_tensor: bool) -> None:
    gray = np.array(noise_image().convert("L"))
    expected = model.embed(np.repeat(gray[..., None], 3, axis=2))
    for values in (gray, gray.astype(np.uint16) * 257):
        given = torch.from_numpy(values) if as_tensor else values
        assert torch.allclose(model.embed(given), expected, atol=1e-5)
        assert torch.allclose(model.embed([given, given])[1:], expected, atol=1e-5)


def test_datasets_are_taken_as_in_training(model: ImageModel) -> None:
    images = [Image.new("RGB", (24, 24), (200 * (number % 2), 9, number)) for number in range(12)]
    labeled = [(image, number % 2) for number, image in enumerate(images)]
    vectors = model.embed(images)
    assert isinstance(vectors, torch.Tensor)
    for dataset in (labeled, [{"image": image} for image in images], torch.utils.data.Subset(labeled, range(12))):
        found = model.embed(dataset)
        assert isinstance(found, EmbeddedImages) and torch.allclose(found.vectors, vectors, atol=1e-5)
        assert found.search(images[3], k=1)[0].position == 3
        known = not isinstance(dataset[0], dict)
        assert found.labels.tolist() == [number % 2 if known else -1 for number in range(12)]
        assert found.classes == ("0", "1") * known
    report = opendino.evaluate.knn(model, train=labeled, val=labeled[:6], k=[1], device="cpu")
    assert (report.fields["top1"], report.fields["num_train"], report.fields["num_val"]) == (100, 12, 6)
    with pytest.raises(UsageError, match="A int is not a dataset of images"):
        model.embed(7)
    with pytest.raises(UsageError, match="A int is not a dataset of images"):
        opendino.evaluate.knn(model, train=7)


def test_evaluations_are_functions(model: ImageModel, tmp_path: Path) -> None:
    train, val = tmp_path / "train", tmp_path / "val"
    for name, color in (("red", (200, 9, 9)), ("blue", (9, 9, 200))):
        for folder in (train / name, val / name):
            folder.mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (24, 24), color).save(folder / f"{number}.png")
    report = opendino.evaluate.knn(model, train=train, val=str(val), k=[3], device="cpu")
    assert report.fields["top1"] == 100 and repr(report) == report.text
    assert {"knn", "linear", "label_free"} <= set(dir(opendino.evaluate))
    assert "opendino eval label-free --help" in (opendino.evaluate.label_free.__doc__ or "")
    with pytest.raises(UsageError, match="knn has no setting 'neighbors'"):
        opendino.evaluate.knn(model, neighbors=3)
    with pytest.raises(AttributeError, match="There is no evaluation 'kmn'; there are attention_segmentation"):
        opendino.evaluate.kmn  # noqa: B018
