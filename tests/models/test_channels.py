"""Models of 1, 2, 5 and 12 channels: files, arrays and sets are read alike, and wrong channels are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tests.factories import small_vit

from opendino.core.errors import UserError
from opendino.features.feature_table import table
from opendino.models.description import check_preprocessing
from opendino.models.image_reading import ImageReading
from opendino.models.load import Model, load, preprocessing, save_backbone

NUMBERS = [1, 2, 5, 12]
LOW, HIGH = 100, 3000


def channel_model(folder: Path, channels: int, **images: Any) -> Model:
    """A small ViT of C channels "c0", "c1" …, with the range 100 to 3,000."""
    wanted = preprocessing(16, [0.4] * channels, [0.2] * channels)
    wanted["images"] = {"names": [f"c{i}" for i in range(channels)], "intensity": [LOW, HIGH], **images}
    save_backbone(folder, {"teacher": small_vit(in_chans=channels)}, preprocessing=wanted)
    return load(folder)


def values(channels: int, seed: int = 0) -> np.ndarray:
    """12-bit values uint16 `[24 20 C]`."""
    return np.random.default_rng(seed).integers(0, 4096, (24, 20, channels), dtype=np.uint16)


def channel_folder(folder: Path, channels: int, count: int = 8) -> Path:
    """TIFF files of C channels in 16 bits, two classes."""
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        planes = np.moveaxis(values(channels, number), 2, 0) // (1 + number % 2)
        metadata = {"axes": "CYX", "Channel": {"Name": [f"c{i}" for i in range(channels)]}}
        tifffile.imwrite(path, planes, ome=True, photometric="minisblack", metadata=metadata)
    return folder


@pytest.mark.parametrize("channels", NUMBERS)
def test_a_file_an_array_and_a_set_give_the_same_vectors(tmp_path: Path, channels: int) -> None:
    model = channel_model(tmp_path / "model", channels)
    source = model.reading.open_images(str(channel_folder(tmp_path / "images", channels)))
    path = tmp_path / "images" / source.key(3)
    array = np.moveaxis(tifffile.imread(path).reshape(channels, 24, 20), 0, 2)
    from_set = table(model, source).features[3]
    assert torch.equal(model.embed(path)[0], model.embed(array)[0])
    torch.testing.assert_close(model.embed(path)[0], from_set)
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array.astype(np.int32), 2, 0)))
    torch.testing.assert_close(model.embed(tensor), model.embed(array))
    assert model.embed(np.stack([array, array])).shape == (2, 24)


@pytest.mark.parametrize("channels", NUMBERS)
def test_values_are_mapped_by_the_range_of_the_model(tmp_path: Path, channels: int) -> None:
    model, image = channel_model(tmp_path, channels), values(channels)
    expected = ((image.astype(np.float64) - LOW) / (HIGH - LOW)).clip(0, 1)
    pixels = model.pixels(image)
    assert pixels.dtype == np.uint16 and np.abs(pixels / 65535 - expected).max() < 0.51 / 65535
    normalized = model.normalize(pixels)
    torch.testing.assert_close(
        normalized, torch.from_numpy((expected - 0.4) / 0.2).permute(2, 0, 1).float(), atol=1e-4, rtol=0
    )


def test_the_same_values_of_any_type_give_the_same_vector(tmp_path: Path) -> None:
    model, image = channel_model(tmp_path, 5), values(5)
    wanted = model.embed(image)
    for dtype in ("int32", "uint32", "float32", "float64", ">u2"):
        torch.testing.assert_close(model.embed(image.astype(dtype)), wanted)
    brighter = model.embed((image + 500).clip(0, 4095))
    assert not torch.allclose(brighter, wanted, atol=1e-3), "no image is scaled by its own values"


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bit_depth_does_not_matter_where_the_range_is_full(tmp_path: Path, bits: int) -> None:
    names = {"names": ["a", "b"], "intensity": [0, 2**bits - 1]}
    deep = channel_model(tmp_path / "deep", 2, **names)
    unit = channel_model(tmp_path / "unit", 2, names=["a", "b"], intensity="full")
    scene = np.random.default_rng(0).random((24, 20, 2))
    stored = np.rint(scene * (2**bits - 1)).astype(np.uint16)
    cosine = torch.nn.functional.cosine_similarity(deep.embed(stored), unit.embed(scene.astype(np.float32)))
    assert cosine.item() > 1 - 1e-3


def test_other_channels_are_one_clear_error(tmp_path: Path) -> None:
    model = channel_model(tmp_path / "model", 5)
    wanted = r"but the model takes 5 channels \(0 c0, 1 c1, 2 c2, 3 c3, 4 c4\)"
    for image in (values(3), Image.new("RGB", (20, 24)), torch.zeros(3, 24, 20, dtype=torch.uint8)):
        with pytest.raises(UserError, match=f"it has 3 channels .*, {wanted}"):
            model.embed(image)
    (path,) = channel_folder(tmp_path / "images", 2, count=1).rglob("*.tif")
    with pytest.raises(UserError, match=rf"0\.tif' is not a usable image: it has 2 channels \(0 c0, 1 c1\), {wanted}"):
        model.embed(path)
    found = model.reading.open_images(str(tmp_path / "images"))
    with pytest.raises(UserError, match=rf"None of the 1 images can be read.*2 channels \(0 c0, 1 c1\).*{wanted}"):
        table(model, found)
    photographs = Model(small_vit(), preprocessing(16), {})
    with pytest.raises(
        UserError, match=r"2 channels \(0, 1\), but the model takes 3 channels \(0 red, 1 green, 2 blue"
    ):
        photographs.embed(values(2))


def test_models_of_photographs_take_16_bits_and_gray_too() -> None:
    model = Model(small_vit(), preprocessing(16), {})
    shallow = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    deep = shallow.astype(np.uint16) * 257
    torch.testing.assert_close(model.embed(deep), model.embed(shallow))
    gray = np.repeat(shallow[..., :1], 3, 2)
    assert torch.equal(model.embed(shallow[..., :1]), model.embed(gray))


def test_pillow_images_of_one_channel(tmp_path: Path) -> None:
    model, image = channel_model(tmp_path, 1), values(1)
    assert torch.equal(model.embed(Image.fromarray(image[..., 0])), model.embed(image))


def test_names_belong_to_the_description(tmp_path: Path) -> None:
    model = channel_model(tmp_path / "named", 2)
    assert model.reading.channel_names == ("c0", "c1")
    described = dict(model.preprocessing)
    del described["images"]
    assert ImageReading.of(described).channel_names == ("0", "1"), "channels without names are numbered"
    assert ImageReading.of(preprocessing()).channel_names == ("red", "green", "blue")
    with pytest.raises(UserError, match="names"):
        check_preprocessing({**described, "images": {"names": [1]}}, "a file")
