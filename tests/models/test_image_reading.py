"""A run on images of science, and its model: the same channels and the same range everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import opendino
from opendino import config as configs
from opendino import resolve
from opendino.config import Config
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.data.image_files import WholeFiles
from opendino.models.description import check_preprocessing
from opendino.models.image_reading import ImageReading
from opendino.models.load import preprocessing
from opendino.recipes import demo

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def micrographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12-bit micrographs of two channels in 16 bits, two folders."""
    folder, rng = tmp_path_factory.mktemp("micrographs"), np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for number in range(24):
        wave = (np.sin(x / (2 + number % 2) + number) + 1) / 2
        cell = np.stack([100 + 800 * wave, 5 + 20 * rng.random((32, 32))]).astype(np.uint16)
        path = folder / f"class{number % 2}" / f"{number:02d}.ome.tif"
        path.parent.mkdir(exist_ok=True)
        names = {"axes": "CYX", "Channel": {"Name": ["light", "DNA"]}}
        tifffile.imwrite(path, cell, ome=True, photometric="minisblack", metadata=names)
    return folder


def small(data: Path, **changes: object) -> Config:
    config = demo.config(str(data))
    method = replace(config.method, out_dim=16, hidden_dim=16)
    changes = {"report": False, "eval_images": 0, **changes}
    return replace(config, backbone="conv4", drop_path=0.0, method=method, batch=8, steps=2, workers=0, **changes)


def test_a_run_finds_the_range_and_its_model_keeps_it(micrographs: Path, tmp_path: Path) -> None:
    result = opendino.train(small(micrographs, channels=("light",), out=str(tmp_path / "run"), device="cpu"))
    config = configs.from_tree(configs.read_tree(tmp_path / "run" / "config.yaml"))
    low, high = config.intensity
    assert 100 <= low < 110 and 890 < high <= 900
    assert len(set(config.mean)) == 1 and 0.4 < config.mean[0] < 0.6, "of the images, not of ImageNet"
    described = json.loads((tmp_path / "run" / "backbone.json").read_text())["preprocessing"]
    assert described["images"] == {
        "channels": ["light"], "stack": "ask", "channel_files": "", "intensity": [low, high], "names": ["light"],
        "channel_mode": "together", "bits": 16,
    }  # fmt: skip
    model = opendino.load(str(tmp_path / "run"))
    source = model.reading.open_images(str(micrographs))
    path = micrographs / source.key(3)
    expected = ((tifffile.imread(path)[0].astype(float) - low) / (high - low)).clip(0, 1)
    pixels = np.asarray(source.read(3))
    assert pixels.dtype == np.uint16 and np.abs(pixels[..., 0] / 65535 - expected).max() < 0.51 / 65535
    assert torch.equal(model.preprocess(path), model.prepare(pixels)), "a path as the image in the set"
    trained = resolve.images(config)
    assert np.array_equal(np.asarray(trained.read(3)), pixels), "training saw the same pixels"
    assert result


def test_channels_are_found_by_their_names(micrographs: Path) -> None:
    config, source = resolve.resolve_config(small(micrographs), CPU)
    assert config.channels == ("light", "DNA") and len(config.mean) == len(config.std) == 2 and config.bits == 16
    assert source.read(0).shape == (32, 32, 2)
    with pytest.raises(UserError, match=r"mean and std have 4 values.*2 channels \(0 light, 1 DNA\)"):
        resolve.resolve_config(small(micrographs, mean=(0.5,) * 4, std=(0.2,) * 4), CPU)
    with pytest.raises(UserError, match="no channel 'GFP'"):
        resolve.resolve_config(small(micrographs, channels=("GFP",)), CPU)


def test_settings_of_the_intensity(micrographs: Path) -> None:
    given, source = resolve.resolve_config(small(micrographs, channels=(0,), intensity=(0.0, 4095.0)), CPU)
    assert given.intensity == (0.0, 4095.0) and np.asarray(source.read(0)).max() < 60 * 257
    own, source = resolve.resolve_config(small(micrographs, channels=(1,), intensity=("per-image",)), CPU)
    assert own.intensity == ("per-image",) and np.asarray(source.read(0)).max() == 65535
    for wrong in (("robust",), (1.0,), (5.0, 1.0), ()):
        with pytest.raises(UsageError, match="intensity"):
            small(micrographs, intensity=wrong)
    with pytest.raises(UsageError, match="stack"):
        small(micrographs, stack="slices")


def test_photographs_need_nothing(tmp_path: Path) -> None:
    config, source = resolve.resolve_config(small(Path("toy:textures?n=16&size=32")), CPU)
    assert config.intensity == ("full",) and (config.mean, config.std) == (demo.config("x").mean, demo.config("x").std)
    assert isinstance(source, WholeFiles) and source.checksum(3) == source.source.checksum(3)
    assert ImageReading() == ImageReading(intensity="full")
    assert not isinstance(ImageReading().open_images("toy:textures?n=16&size=32"), WholeFiles)


def test_the_description_of_a_model_is_checked() -> None:
    wanted = {**preprocessing(), "images": {"channels": ["0"], "intensity": [0, 1]}}
    check_preprocessing(wanted, "a file")
    for wrong in ({"stack": "x"}, {"intensity": "auto"}, {"intensity": [1]}, {"path": "/"}, {"channels": "0"}):
        with pytest.raises(UserError, match="images"):
            check_preprocessing({**preprocessing(), "images": wrong}, "a file")


def test_one_file_is_not_an_image_of_a_file_per_channel() -> None:
    with pytest.raises(BadImage, match="give the folder"):
        ImageReading(channel_files="{id}_{channel}.tif", intensity=(0.0, 1.0)).decode(b"")


def test_stacks_and_files_per_channel_in_a_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(9):
        pages = rng.integers(0, 1000, (4, 24, 24)).astype(np.uint16)
        (tmp_path / "stacks").mkdir(exist_ok=True)
        (tmp_path / "files").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / f"stacks/{number}.tif", pages, photometric="minisblack", metadata=None)
        for channel in range(3):
            tifffile.imwrite(tmp_path / f"files/{number}_w{channel}.tif", pages[channel], photometric="minisblack")
    with pytest.raises(UserError, match=r"0\.tif: 4 pages of 24×24.*Choose --stack channels, max, mean, images"):
        resolve.resolve_config(small(tmp_path / "stacks"), CPU)
    _, largest = resolve.resolve_config(small(tmp_path / "stacks", stack="max"), CPU)
    _, first = resolve.resolve_config(small(tmp_path / "stacks", stack="0"), CPU)
    _, pages = resolve.resolve_config(small(tmp_path / "stacks", stack="images"), CPU)
    assert (len(largest), len(first), len(pages)) == (9, 9, 36)
    assert np.asarray(largest.read(0)).mean() > np.asarray(first.read(0)).mean() + 30
    chosen = {"stack": "channels", "channels": (3, 0, 1)}
    config, colored = resolve.resolve_config(small(tmp_path / "stacks", **chosen), CPU)
    assert len(config.intensity) == 6 and np.asarray(colored.read(0)).std(2).mean() > 10
    pattern = "{id}_w{channel}.tif"
    config, joined = resolve.resolve_config(small(tmp_path / "files", channel_files=pattern), CPU)
    assert len(joined) == 9 and joined.key(2) == "2" and config.channel_files == pattern
    stored = configs.resolved(configs.from_tree(configs.to_tree(config)))
    assert stored == config and np.array_equal(resolve.images(stored).read(4), joined.read(4))
