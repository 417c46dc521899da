"""Toy images: pure functions, balanced classes, hard to classify from pixels, with exact masks."""

from __future__ import annotations

import numpy as np
import pytest

from opendino.core.errors import UsageError
from opendino.data.sources import toy


def images(spec: str, indices: range) -> np.ndarray:
    source = toy.build(spec)
    return np.stack([source.read(index) for index in indices])


def pixels(spec: str) -> tuple[np.ndarray, np.ndarray]:
    """16 × 16 gray pixels of unit length, and labels."""
    source = toy.build(spec)
    gray = images(spec, range(len(source)))[..., :3].mean(3)
    small = gray.reshape(-1, 16, 2, 16, 2).mean((2, 4)).reshape(len(gray), 256)
    return small / np.linalg.norm(small, axis=1, keepdims=True), np.array([source.label(i) for i in range(len(source))])


@pytest.mark.parametrize("kind", ["textures", "forms", "colorful", "plates"])
def test_an_image_depends_on_seed_split_and_index_only(kind: str) -> None:
    base = images(f"{kind}?n=30", range(30))
    assert base.shape == (30, 32, 32, 3)
    assert base.dtype == np.uint8
    np.testing.assert_array_equal(base[::-1], images(f"{kind}?n=1000", range(29, -1, -1)))
    for other in (f"{kind}?seed=1", f"{kind}?split=val"):
        assert (images(other, range(30)) != base).any(axis=(1, 2, 3)).all()
    assert len({image.tobytes() for image in base}) == 30


@pytest.mark.parametrize("kind", ["textures", "forms", "colorful", "plates"])
def test_the_same_scene_at_every_size(kind: str) -> None:
    small, large = (images(f"{kind}?size={size}", range(20)).astype(float) for size in (32, 128))
    reduced = large.reshape(20, 32, 4, 32, 4, 3).mean((2, 4))
    for one, same, another in zip(small, reduced, np.roll(reduced, 1, axis=0), strict=True):
        assert np.corrcoef(one.ravel(), same.ravel())[0, 1] > 0.8 > abs(np.corrcoef(one.ravel(), another.ravel())[0, 1])


def test_classes_are_balanced_and_color_is_only_in_colorful() -> None:
    source = toy.build("toy:")
    assert (len(source), source.size, len(source.classes)) == (2000, 32, 10)
    assert np.bincount([source.label(i) for i in range(2000)]).tolist() == [200] * 10
    assert source.key(12) == "textures/train/chequers/000012"
    for kind in ("textures", "forms"):
        gray = images(kind, range(20))
        assert (gray == gray[..., :1]).all()
    assert (np.ptp(images("colorful", range(20)).astype(int).mean((1, 2)), axis=1) > 5).mean() > 0.9


def test_colorful_draws_the_patterns_of_textures() -> None:
    gray, color = images("textures", range(20)), images("colorful", range(20)).astype(float)
    for one, other in zip(gray[..., 0], color, strict=True):
        channel = other[..., other.std((0, 1)).argmax()]
        assert abs(np.corrcoef(one.ravel(), channel.ravel())[0, 1]) > 0.97


def test_plates_are_textures_with_an_effect_that_grows() -> None:
    plain = images("textures?n=80", range(80))
    assert (images("plates?n=80&strength=0", range(80)) == plain).all()
    source = toy.build("plates?n=80")
    plates = np.array([source.plate(i) for i in range(80)])
    assert [np.bincount(plates[i::10]).tolist() for i in range(10)] == [[2] * 4] * 10

    def effect(strength: float, split: str = "train") -> np.ndarray:
        """Mean color of each plate, relative to that of the gray images."""
        seen = images(f"plates?n=80&strength={strength}&split={split}", range(80)).mean((1, 2))
        gray = images(f"textures?n=80&split={split}", range(80)).mean((1, 2))
        return np.stack([(seen / gray)[plates == plate].mean(0) for plate in range(4)])

    weak, strong = effect(0.2), effect(1)
    assert weak.std() < 0.5 * strong.std() and strong.std() > 0.05
    assert np.abs(effect(1, "val") - strong).max() < 0.05, "the plates of both splits are the same"
    roughness = [
        np.abs(np.diff(images(f"plates?n=40&strength={s}", range(40)).astype(int), axis=2)).mean() for s in (0, 3)
    ]
    assert roughness[1] < 0.8 * roughness[0], "blurred"


def test_pixels_say_little_about_the_class() -> None:
    train, labels = pixels("textures?n=1000")
    val, truth = pixels("textures?n=500&split=val")
    similarity = val @ train.T
    nearest = np.argsort(-similarity, axis=1)[:, :10]
    votes = np.zeros((500, 10))
    np.add.at(
        votes, (np.arange(500)[:, None], labels[nearest]), np.exp(np.take_along_axis(similarity, nearest, 1) / 0.07)
    )
    assert 12 < 100 * (votes.argmax(1) == truth).mean() < 50


def test_masks_cover_the_form() -> None:
    source = toy.build("forms?size=64&n=200")
    for index in range(0, 200, 7):
        image, mask = source.read(index)[..., 0].astype(float), source.mask(index)
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, 1}
        assert 0.02 < mask.mean() < 0.6
        assert mask.sum() == mask[1:-1, 1:-1].sum(), "the form is whole"
        assert abs(image[mask == 1].mean() - image[mask == 0].mean()) > 30, "the form stands out"


def test_films_move_and_begin_alike() -> None:
    source = toy.build("forms?size=48")
    for index in (0, 1):
        frames, masks = source.video(index, 30)
        assert (frames.shape, masks.shape) == ((30, 48, 48, 3), (30, 48, 48))
        assert set(np.unique(masks[0])) == set(range(2 + index % 2)), "all forms are to be seen at first"
        short_frames, short_masks = source.video(index, 7)
        np.testing.assert_array_equal(short_frames, frames[:7])
        np.testing.assert_array_equal(short_masks, masks[:7])
        centers = np.array([np.argwhere(mask == 1).mean(0) for mask in masks if (mask == 1).sum() > 20])
        steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
        assert np.ptp(centers, axis=0).max() > 4, "it moves"
        assert np.median(steps) < 3, "smoothly"
        met = (masks > 0).any(0)
        met = np.any([np.roll(met, shift, (0, 1)) for shift in np.ndindex(3, 3)], axis=0)
        near = np.roll(met, (-1, -1), (0, 1))  # forms have soft edges one pixel wide
        assert 0.2 < near.mean() < 0.8
        assert (frames[:, ~near] == frames[0, ~near]).all(), "the ground stays"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("toy:texture", "textures"),
        ("toy:forms?sise=3", "size"),
        ("toy:forms?split=vall", "val"),
        ("toy:forms?size=4", "from 8 to 1024"),
        ("toy:?n=many", "n=many"),
        ("toy:?n=0", "n is a whole number"),
        ("toy:?seed=", "seed is a whole number"),
        ("toy:plates?strength=11", "strength is a number from 0 to 10"),
        ("toy:plates?strength=nan", "strength is a number"),
        ("toy:textures?strength=1", "strength"),
    ],
)
def test_a_wrong_word_is_named(spec: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        toy.build(spec)


def test_only_forms_have_masks() -> None:
    source = toy.build("toy:textures")
    with pytest.raises(UsageError, match="toy:forms"):
        source.mask(0)
    with pytest.raises(UsageError, match="toy:forms"):
        source.video(0, 2)
    with pytest.raises(IndexError):
        source.read(2000)
