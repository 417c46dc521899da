"""Photographs prepared by a graph: the pixels of Pillow, and in ONNX the features of `embed`, also by the examples."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageFilter
from tests.factories import model_folder, model_of, noise_image, small_vit

from opendino.core.errors import UserError
from opendino.interop.exporting import export_model
from opendino.interop.formats import onnx as onnx_writer
from opendino.interop.photograph_input import PhotographInput
from opendino.models.build import backbone
from opendino.models.load import Model, load, preprocessing

EXAMPLES = Path(__file__).parents[2] / "examples"
HEADERS = Path(os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
SIZES = ((30, 40), (41, 37), (200, 31), (16, 16), (18, 18), (19, 300), (301, 257), (1, 1), (1, 5), (7, 9))
"""(height, width): reduced, enlarged, kept, odd, and longer than wide."""


@pytest.mark.parametrize(
    ("filter_name", "image_px", "resize_px"),
    [("bicubic", 16, 18), ("bicubic", 48, 40), ("bicubic", 24, 31), ("bilinear", 64, 73), ("lanczos", 32, 32)],
)
def test_pixels_are_those_of_pillow(filter_name: str, image_px: int, resize_px: int) -> None:
    model = model_of(small_vit(), image_px)
    model.preprocessing |= {"interpolation": filter_name, "resize_px": resize_px}
    graph = PhotographInput(model)
    for height, width in SIZES:
        pixels = np.array(noise_image(width, height))
        ours, theirs = graph(torch.from_numpy(pixels)[None])[0], model.prepare(pixels)
        # Pillow 13 starts some tall images with the other direction: a level of 255 then
        assert (ours - theirs).abs().max() <= (
            0 if int(PIL.__version__.partition(".")[0]) < 13 else 1.01 / 255 / 0.224
        ), (height, width)


def test_other_images_than_photographs_are_refused() -> None:
    gray = Model(small_vit(in_chans=1), preprocessing(16, [0.4], [0.2]), {})
    with pytest.raises(UserError, match=r"images of 1 channels .*Leave --photographs out"):
        PhotographInput(gray)
    nearest = model_of(small_vit())
    nearest.preprocessing["interpolation"] = "nearest"
    with pytest.raises(UserError, match=r"'nearest', a graph can with bilinear, bicubic, lanczos"):
        PhotographInput(nearest)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model, and its ONNX file that takes photographs."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    name, out = model_folder(folder / "model", backbone("conv4", width=8), 32), folder / "net.onnx"
    _, difference = export_model(name, "onnx", str(out), None, onnx_writer.Config(photographs=True))
    assert difference <= 1e-5
    return name, out


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    """JPEG files of several sizes, one to be turned upright."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for number, size in enumerate([(90, 60), (33, 47), (200, 150)]):
        image = noise_image(*size, seed=number).filter(ImageFilter.GaussianBlur(1 + number))
        image.save(tmp_path / f"{number}.jpg", quality=90, **({"exif": turned} if number == 1 else {}))
    return [str(tmp_path / f"{number}.jpg") for number in range(3)]


@pytest.mark.slow
def test_the_example_gives_the_features_of_embed(exported: tuple[str, Path], photographs: list[str]) -> None:
    spec = importlib.util.spec_from_file_location("onnx_embed", EXAMPLES / "onnx_embed.py")
    assert spec and spec.loader
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found, wanted = example.vectors(str(exported[1]), photographs), load(exported[0]).embed(photographs).numpy()
    assert np.abs(found - wanted).max() <= 1e-5
    cosines = example.cosines(found)
    assert cosines[0] == pytest.approx(1) and cosines[1:].max() < 0.99999


@pytest.mark.slow
@pytest.mark.skipif(not (HEADERS / "onnxruntime_cxx_api.h").is_file(), reason="no C++ headers of onnxruntime")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_example_in_cpp_gives_the_same(
    exported: tuple[str, Path], photographs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    program = tmp_path / "onnx_embed"
    command = ["g++", "-std=c++17", "-Wall", "-Werror", EXAMPLES / "onnx_embed.cpp", "-isystem", HEADERS, library]
    subprocess.run([*command, f"-Wl,-rpath,{tmp_path}", "-o", program], check=True)
    bitmaps = []
    for path in photographs[::2]:
        bitmaps.append(str(Path(path).with_suffix(".ppm")))
        Image.open(path).save(bitmaps[-1])
    told = subprocess.run([program, exported[1], *bitmaps], check=True, capture_output=True, text=True).stdout
    vectors = torch.nn.functional.normalize(load(exported[0]).embed(bitmaps), dim=1)
    wanted = [f"{float(vectors[0] @ vector):.4f} {path}" for vector, path in zip(vectors, bitmaps, strict=True)]
    assert told.splitlines() == wanted
    refused = subprocess.run([program, exported[1], photographs[0]], capture_output=True, text=True)
    assert refused.returncode == 1 and "is not a binary .ppm file" in refused.stderr
