"""One scene in files of any depth: the same for the network, brightness kept, 16 bits at most twice the memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tests.factories import small_vit
from torch.profiler import ProfilerActivity, profile

from opendino import run_images
from opendino.config import Config
from opendino.core.types import PixelFormat, ViewGroup, ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.decode import decode
from opendino.data.loader import pad_to_batch
from opendino.data.sources.python import PythonSource
from opendino.methods import dino
from opendino.views.crop_resize import crop_resize
from opendino.views.functional import normalize, to_float
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import sample_views
from opendino.views.settings import AUGMENTATIONS, changed, view

DEPTHS = (8, 10, 12, 14, 16, 32)  # 32: floating point in [0, 1]


def scenes(count: int = 6) -> np.ndarray:
    """Two channels of smooth patterns with black and white spots, float64 `[count 32 32 2]` in [0, 1]."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((count, 2, 6, 6)))
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1).movedim(1, -1).numpy()
    smooth[:, :4, :4], smooth[:, -4:, -4:] = 0, 1
    return smooth


def written(folder: Path, values: np.ndarray, bits: int) -> Path:
    """TIFF files of scenes in [0, 1] with this many bits."""
    folder.mkdir()
    for number, scene in enumerate(values):
        dtype = np.float32 if bits == 32 else np.uint8 if bits == 8 else np.uint16
        pixels = scene if bits == 32 else np.rint(scene * (2**bits - 1))
        path = folder / f"{number:02d}.tif"
        tifffile.imwrite(path, pixels.astype(dtype), photometric="minisblack", planarconfig="contig")
    return folder


def read_all(folder: Path, **settings: object) -> tuple[Config, list[np.ndarray]]:
    """The images of a folder as a run reads them, with the range of the set."""
    config = Config(str(folder), **settings)
    files = run_images.open_images(config, str(folder))
    config, _, _ = run_images.resolve_intensity(config, files)
    return config, [decode(files.read(index), pixel_format=files.pixel_format) for index in range(len(files))]


def test_the_same_images_in_any_depth_have_the_same_features(tmp_path: Path) -> None:
    network, found = small_vit(in_chans=2, image_px=32, depth=2).eval(), {}
    for bits in DEPTHS:
        config, images = read_all(written(tmp_path / str(bits), scenes(), bits), intensity=("auto",))
        assert config.bits == (8 if bits == 8 else 16)
        batch = torch.stack([to_float(torch.from_numpy(image)) for image in images]).movedim(-1, 1)
        with torch.no_grad():
            found[bits] = network([normalize(batch, config.mean, config.std)])[0]
    for bits in DEPTHS:
        assert torch.cosine_similarity(found[bits], found[16]).min() > 1 - 1e-3, bits
    assert torch.cosine_similarity(found[16][:1], found[16][1:]).max() < 1 - 1e-3, "the network tells scenes apart"


def test_another_exposure_keeps_its_ratio(tmp_path: Path) -> None:
    bright = scenes()
    _, images = read_all(written(tmp_path / "pairs", np.concatenate([bright, bright / 4]), 12))
    for one, other in zip(images[:6], images[6:], strict=True):
        lit = one > 8000
        assert np.abs(other[lit] / one[lit].astype(float) - 0.25).max() < 0.005


@pytest.mark.parametrize(
    ("low", "high", "bits", "expected"), [(0, 255, 16, 8), (100, 300, 16, 8), (0, 300, 16, 16), (0, 1, 32, 16)]
)
def test_a_range_that_8_bits_hold_needs_no_16(low: int, high: int, bits: int, expected: int, tmp_path: Path) -> None:
    folder = written(tmp_path / "set", scenes(), bits)
    config, images = read_all(folder, intensity=(float(low), float(high)))
    assert config.bits == expected and images[0].dtype.itemsize * 8 == expected
    forced, images = read_all(folder, intensity=(float(low), float(high)), bits=8)
    assert forced.bits == 8 and images[0].dtype == np.uint8


def test_images_of_any_channels_are_shrunk_as_pillow_shrinks_a_channel() -> None:
    values = (scenes(1)[0] * 65535).astype(np.uint16)
    shrunk = decode(values, 200, pixel_format=PixelFormat(2, 16))
    assert shrunk.dtype == np.uint16 and shrunk.shape == (14, 14, 2)
    expected = Image.fromarray(values[..., 1].astype(np.float32)).resize(
        (14, 14), Image.Resampling.BICUBIC, reducing_gap=2
    )
    assert np.abs(shrunk[..., 1] - np.clip(np.asarray(expected), 0, 65535)).max() <= 0.5
    small = decode(np.rint(values / 257).astype(np.uint8), 200, pixel_format=PixelFormat(2, 8))
    assert small.dtype == np.uint8 and np.abs(small - shrunk / 257).mean() < 0.5


@pytest.mark.parametrize("size", [12, 20, 40])
def test_crops_of_16_bits_are_those_of_floating_point(size: int) -> None:
    values = (20_000 + scenes(3) * 20_000).astype(np.uint16)  # nothing to clip between the two products
    canvas, _ = pad_to_batch(list(values))
    box = torch.tensor([[3, 5, 20, 24], [0, 0, 32, 32], [10, 2, 9, 9]], dtype=torch.int32)[None]
    crops = crop_resize(canvas, box, torch.zeros(1, 3, dtype=torch.bool), size)
    assert crops.dtype == torch.uint16 and crops.shape == (1, 3, 2, size, size)
    for number, (top, left, height, width) in enumerate(box[0].tolist()):
        plane = Image.fromarray(values[number, ..., 0].astype(np.float32))
        part = plane.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
        expected = np.asarray(part).clip(0, 65535)
        assert np.abs(crops[0, number, 0].numpy() - expected).max() < 0.6


def test_16_bits_take_at_most_twice_the_memory_of_8() -> None:
    views = changed(dino.VIEWS, {"global.size": 64, "local.size": 32, "local.number": 4})
    groups = dino.views(dino.Config(), views).groups
    peaks, sizes = [], []
    for bits in (8, 16):
        pixels = PixelFormat(3, bits)
        images = [np.random.default_rng(0).integers(0, 2**bits, (96, 96, 3), pixels.dtype) for _ in range(4)]
        source = PythonSource(images)
        source.pixel_format = pixels
        cache = DecodedImages(source, 96 * 96)
        canvas, image_px = pad_to_batch(images)
        draws = sample_views(ViewSpec(groups), 0, 0, range(4), image_px)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            multi_crop(canvas, draws, ViewSpec(groups))
        events = found.profiler.kineto_results.events()
        peaks.append(np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max())
        sizes.append((cache._offset(2) - cache._offset(1), canvas.nbytes))
    assert sizes[1] == tuple(2 * size for size in sizes[0])
    assert peaks[0] > 10**6 and peaks[1] <= 2 * peaks[0], peaks


def test_flips_and_turns_of_16_bits_are_exact() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 32, 32, 2), np.uint16)
    canvas, image_px = pad_to_batch(list(values))
    off = {f"{name}.p": 0.0 for name in AUGMENTATIONS if name != "crop"} | {"crop.scale": (1.0, 1.0)}
    settings = view(off | {"vertical_flip.p": 0.5, "quarter_turns.p": 1.0})
    spec = ViewSpec((ViewGroup("g", 32, (settings,)),), (0.0, 0.0), (1.0, 1.0))
    draws = sample_views(spec, 0, 0, range(8), image_px)
    out = multi_crop(canvas, draws, spec)["g"][0]
    turns = draws["g"]["quarter_turns"]["turns"][0].tolist()
    assert len(set(turns)) > 1
    for number, turn in enumerate(turns):
        expected = to_float(canvas[number])
        expected = expected.flip(-2) if draws["g"]["vertical_flip"]["flip"][0, number] else expected
        assert torch.equal(out[number], torch.rot90(expected, turn, (-2, -1)))
