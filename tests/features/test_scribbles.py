"""A head from brush strokes: what it learns, what it repeats, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_of, noise_image, small_vit

from opendino.core.errors import UserError
from opendino.datasets import mask_files
from opendino.evals.segmentation import Config, evaluate
from opendino.features import scribbles
from opendino.features.scribbles import PatchCache, Scribbled, mask, train, write
from opendino.models.load import Model
from opendino.models.segmentation_head import load_head


@pytest.fixture
def model() -> Model:
    return model_of(small_vit("vit/4", depth=2))


def halves(name: str = "a", classes: tuple[int, int] = (0, 1), seed: int = 0) -> tuple[Scribbled, np.ndarray]:
    """An image whose left half is darker, a short stroke in each half, and its true mask."""
    pixels = np.array(noise_image(48, 32, seed)) // 4
    pixels[:, 24:] += 150
    truth = np.full((32, 48), classes[0], np.uint8)
    truth[:, 24:] = classes[1]
    strokes = np.full_like(truth, 255)
    strokes[10:14, 4:12], strokes[20:24, 34:42] = classes
    return Scribbled(name, pixels, strokes), truth


@pytest.mark.parametrize("quick", [True, False])
def test_two_strokes_are_enough_for_two_halves(model: Model, quick: bool) -> None:
    scribbled, truth = halves(classes=(3, 1))
    cache = PatchCache()
    head = train(model, [scribbled], cache, quick)
    assert head.classes == (1, 3)
    assert (mask(model, head, scribbled.image, cache) == truth).mean() > 0.9
    other, _ = halves(seed=7)
    assert (mask(model, head, other.image, cache) == truth).mean() > 0.9, "an image without a stroke"


def test_classes_may_be_painted_on_different_images(model: Model) -> None:
    (one, truth), (two, _) = halves("a"), halves("b", seed=1)
    one.strokes[one.strokes == 1] = 255
    two.strokes[two.strokes == 0] = 255
    with pytest.raises(UserError, match="Two classes are needed"):
        train(model, [one], PatchCache())
    blank = Scribbled("c", one.image, np.full_like(one.strokes, 255))
    cache = PatchCache()
    head = train(model, [one, blank, two], cache, quick=True)
    assert (mask(model, head, one.image, cache) == truth).mean() > 0.9


def test_features_are_computed_once_for_an_image_and_a_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encoder = scribbles.patch_encoder
    monkeypatch.setattr(scribbles, "patch_encoder", lambda *args: seen.append(1) or encoder(*args))
    scribbled, _ = halves()
    cache = PatchCache()
    for _ in range(2):
        mask(model, train(model, [scribbled], cache, quick=True), scribbled.image.copy(), cache)
    assert len(seen) == 1
    other = model_of(small_vit("vit/4", seed=1, depth=2))
    train(other, [scribbled], cache, quick=True)
    assert len(seen) == 2
    monkeypatch.setattr(scribbles, "_KEPT_BYTES", 1)  # room for the last one only
    cache.features(model, halves(seed=3)[0].image)
    cache.features(model, halves(seed=3)[0].image)
    assert len(seen) == 3
    train(model, [scribbled], cache, quick=True)
    assert len(seen) == 4


def test_what_is_written_gives_the_same_head_again_by_the_command(model: Model, tmp_path: Path) -> None:
    scribbled = [halves(name, seed=seed)[0] for seed, name in enumerate("abc")]
    scribbled.insert(1, Scribbled("blank", scribbled[0].image, np.full_like(scribbled[0].strokes, 255)))
    cache = PatchCache()
    head = write(tmp_path, model, scribbled, cache, {0: "dark side"})
    readme = (tmp_path / "README.txt").read_text()
    command = "opendino eval segmentation head --train scribbles --names 'dark side' 'class 1' --out head-again"
    assert command in readme and "0 dark side\n" in readme
    assert "--names" not in scribbles.repeating_command(replace(head, names=()))
    found = evaluate(
        Config(
            str(tmp_path / "head"), train=str(tmp_path / "scribbles"), num_images=(1,), num_draws=1, device="cpu",
            out=str(tmp_path / "again"), names=("dark side", "class 1"),
        )
    )  # fmt: skip
    again = load_head(tmp_path / "again")[1]
    for written in (head, load_head(tmp_path / "head")[1]):
        torch.testing.assert_close(again.weight, written.weight)
        torch.testing.assert_close(again.bias, written.bias)
        assert again.classes == written.classes and again.blocks == written.blocks
        assert again.names == written.names == ("dark side", "class 1")
    assert found.fields["num_train"] == 3
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.png", "b.png", "blank.png", "c.png"]
    stored, _ = mask_files.read(tmp_path / "masks" / "b.png")
    assert np.array_equal(stored, mask(model, head, scribbled[2].image, cache))


def test_images_of_instruments_are_written_as_the_model_reads_them(tmp_path: Path) -> None:
    model = model_of(small_vit("vit/4", in_chans=2))
    model.preprocessing.update(mean=[0.5] * 2, std=[0.5] * 2)
    model.preprocessing["images"] = {"names": ["DAPI", "GFP"], "channels": ["DAPI", "GFP"], "intensity": [0, 4095]}
    pixels = np.random.default_rng(0).integers(0, 4096, (20, 28, 2), np.uint16)
    strokes = np.full((20, 28), 255, np.uint8)
    strokes[:4], strokes[12:] = 0, 1
    write(tmp_path, model, [Scribbled("cell", pixels, strokes)], PatchCache())
    content = (tmp_path / "scribbles/images/cell.npz").read_bytes()
    assert np.array_equal(model.reading.decode(content), model.pixels(pixels))
    photo = np.array(noise_image(28, 20))
    write(tmp_path, model_of(small_vit("vit/4")), [Scribbled("photo", photo, strokes)], PatchCache())
    with Image.open(tmp_path / "scribbles/images/photo.png") as image:
        assert np.array_equal(np.array(image), photo)
