"""Images of pages, of chosen channels, and of one file per channel; the survey of a set and its range."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from opendino import run_images
from opendino.config import Config
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.types import PixelFormat
from opendino.data import readers
from opendino.data.decode import decode
from opendino.data.image_files import image_files
from opendino.data.image_survey import has_only_photographs, survey
from opendino.data.intensity import Intensity
from opendino.data.open_source import list_paths, not_files, open_source
from opendino.data.readers.decoded_image import DecodedImage
from opendino.data.readers.multi_page_files import Reading


class Files(Source):
    """Files in memory."""

    def __init__(self, files: dict[str, bytes], classes: tuple[str, ...] = ()) -> None:
        self.files, self.classes, self.reads = list(files.items()), classes, 0

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        return self.files[index][0]

    def label(self, index: int) -> int:
        return index % 2 if self.classes else -1

    def read(self, index: int) -> bytes:
        self.reads += 1
        return self.files[index][1]


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack", metadata=None, **options)
    return file.getvalue()


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def gray(value: int, side: int = 12, dtype: str = "u2") -> np.ndarray:
    return (np.arange(side * side).reshape(side, side) + value).astype(dtype)


def test_photographs_pass_through_undecoded() -> None:
    files = Files({"a.png": png(gray(0, dtype="u1")), "b.tif": tiff(gray(0, dtype="u1")), "c.png": b"broken"})
    images = image_files(files, Reading())
    for index in range(3):
        assert images.read(index) is files.files[index][1]
        assert images.checksum(index) == files.checksum(index)
    deep = image_files(
        Files({"a.png": png(gray(100)), "b.tif": tiff(gray(100))}), Reading(), "", Intensity((100,), (243,))
    )
    for index in range(2):
        pixels = deep.read(index)
        assert isinstance(pixels, np.ndarray) and pixels.shape == (12, 12, 3)
        assert (pixels.min(), pixels.max()) == (0, 255)
        assert deep.checksum(index) != deep.source.checksum(index), "a cache of other pixels is not used"


def test_chosen_channels() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    bands = np.random.default_rng(0).integers(0, 999, (9, 8, 5), np.uint16)
    bytes_ = tiff(bands, planarconfig="contig")
    chosen = image_files(Files({"a.png": png(rgb)}), Reading(channels=("2", "red", "green")))
    image = chosen.image(0)
    assert isinstance(image, DecodedImage) and np.array_equal(image.pixels, rgb[..., [2, 0, 1]])
    assert np.array_equal(np.asarray(chosen.read(0)), rgb[..., [2, 0, 1]])
    with pytest.raises(BadImage, match="5 channels"):
        image_files(Files({"a.tif": bytes_}), Reading()).read(0)
    assert (
        image_files(Files({"a.tif": bytes_}), Reading(channels=("4",)), "", Intensity((0,), (999,))).read(0).shape[2]
        == 3
    )


def test_an_image_per_page() -> None:
    stack = np.stack([gray(0), gray(500), gray(900)])
    movie = np.stack([gray(value, dtype="f4") for value in range(4)])
    npy = io.BytesIO()
    np.save(npy, movie)
    files = Files({"a.tif": tiff(stack), "b.png": png(gray(7, dtype="u1")), "c.npy": npy.getvalue(), "d.tif": b"II*\0"})
    images = image_files(files, Reading("images"))
    assert [images.key(i) for i in range(len(images))] == [
        "a.tif#0", "a.tif#1", "a.tif#2", "b.png#0", "c.npy#0", "c.npy#1", "c.npy#2", "c.npy#3", "d.tif#0",
    ]  # fmt: skip
    for index in range(3):
        image = images.image(index)
        assert isinstance(image, DecodedImage) and np.array_equal(image.pixels[..., 0], stack[index])
    assert images.image(3) == files.files[1][1]
    with pytest.raises(BadImage):
        images.image(8)
    assert len({images.checksum(index) for index in range(9)}) == 9


NAMES = {
    f"{folder}/{plate}_w{channel}_{i}{channel}.tif": tiff(gray(100 * channel + i))
    for folder in ("treated", "control")
    for i, plate in enumerate(("p1_A01", "p1_A02"))
    for channel in (1, 2, 10)
}


def test_a_file_per_channel(capsys: pytest.CaptureFixture[str]) -> None:
    files = dict(NAMES)
    del files["control/p1_A02_w2_12.tif"]
    files["notes_w1.txt"] = b""
    images = image_files(Files(files), Reading(), "{id}_w{channel}_*.tif")
    assert [images.key(i) for i in range(len(images))] == ["control/p1_A01", "treated/p1_A01", "treated/p1_A02"]
    image = images.image(2)
    assert isinstance(image, DecodedImage) and image.channels == ("1", "2", "10")
    assert np.array_equal(image.pixels, np.stack([gray(101), gray(201), gray(1001)], -1))
    said = " ".join(capsys.readouterr().err.split())
    assert "1 images without all channels are left out: control/p1_A02 lacks 2" in said
    assert "1 files do not match" in said and "notes_w1.txt" in said
    two = image_files(Files(files), Reading(channels=("10", "1")), "{id}_w{channel}_*.tif")
    assert len(two) == 4, "the missing channel is not wanted"
    assert two.image(0).pixels[0, 0].tolist() == [1000, 100]


def test_files_per_channel_that_do_not_fit() -> None:
    for pattern in ("{id}.tif", "{channel}.tif", "x"):
        with pytest.raises(UsageError, match="Write a pattern with"):
            image_files(Files(NAMES), Reading(), pattern)
    with pytest.raises(UserError, match=r"No file matches --channel-files .*e\.g\. treated/p1_A01_w1_01\.tif"):
        image_files(Files(NAMES), Reading(), "{id}_ch{channel}.tif")
    with pytest.raises(UserError, match=r"No files have the channel 'w9'\. Found: 1 2 10"):
        image_files(Files(NAMES), Reading(channels=("w9",)), "{id}_w{channel}_*.tif")
    for wanted, reason in ((("0", "1"), "the channel '0'"), (("1", "1"), "A channel is named twice: 1 1")):
        with pytest.raises(UserError, match=reason):  # the names are numbers: 0 is not the first of them
            image_files(Files(NAMES), Reading(channels=wanted), "{id}_w{channel}_*.tif")
    stains = Files({"a_DAPI.tif": tiff(gray(0)), "a_GFP.tif": tiff(gray(5))})
    assert image_files(stains, Reading(channels=("1", "0")), "{id}_{channel}.tif").image(0).channels == ("GFP", "DAPI")
    with pytest.raises(UserError, match="are both channel 1 of a"):
        image_files(Files({"a_w1_x.tif": b"", "a_w1_y.tif": b""}), Reading(), "{id}_w{channel}_*.tif")
    odd = Files({"a_w1.tif": tiff(gray(0)), "a_w2.tif": tiff(gray(0, side=9)), "b_w1.tif": tiff(gray(0)),
                 "b_w2.tif": tiff(np.zeros((12, 12, 3), "u2"), planarconfig="contig")})  # fmt: skip
    images = image_files(odd, Reading(), "{id}_w{channel}.tif")
    with pytest.raises(BadImage, match="its channels differ in size or type: 9×9 uint16, 12×12 uint16"):
        images.image(0)
    with pytest.raises(BadImage, match="the file of channel 2 has 3 channels"):
        images.image(1)


def test_the_survey_finds_the_range_without_missing_pixels() -> None:
    rng = np.random.default_rng(0)
    files = {}
    for number in range(40):
        bands = np.stack([rng.uniform(100, 900, (30, 30)), rng.uniform(5, 7, (30, 30))], -1).astype("f4")
        bands[:6] = -9999
        bands[7, 7] = 60_000  # a hot pixel
        files[f"{number}.tif"] = tiff(bands, planarconfig="contig", extratags=[(42113, 2, 0, "-9999", True)])
    files["odd.tif"], files["bad.tif"] = tiff(gray(0)), b"II*\0"
    found = survey(image_files(Files(files), Reading()))
    assert (found.channels, found.dtype, found.photographs, found.num_images) == (("0", "1"), "float32", False, 40)
    assert dict(found.others)["odd.tif"] == "1 channel (0 gray), most have 2" and "bad.tif" in dict(found.others)
    intensity, why = found.intensity(["auto"])
    assert isinstance(intensity, Intensity) and "40 images" in why
    assert np.allclose(intensity.low, (100, 5), atol=2) and intensity.high[0] > 895 and intensity.high[1] > 6.9
    mean, std = found.mean_and_std(Intensity((0, 0), (1000, 10)))
    assert np.allclose(mean, (0.5, 0.6), atol=0.02) and np.allclose(std, (0.231, 0.058), atol=0.03)
    assert found.intensity(["full"])[0] == "full"
    assert found.intensity(["per-image"])[0] == "per-image"
    assert found.intensity(["0", "5"]) == (Intensity((0,), (5,)), "as configured")
    with pytest.raises(UserError, match="3 ranges, but the images have 2 channels"):
        found.intensity(["0", "5", "0", "5", "0", "5"])
    assert replace(found, low=(98.5, 5), high=(902, 7)).describe() == [
        "40 images surveyed: 2 channels of float32 (channel 0: 98.5 to 902, channel 1: 5 to 7)",
        f"2 more surveyed but not trained on, e.g. bad.tif: {dict(found.others)['bad.tif']}. "
        "The number of images below includes such ones; training uses others in their place",
        *found.notes,
    ]


def test_photographs_and_8_bit_images_keep_their_values() -> None:
    rng = np.random.default_rng(0)
    photos = Files({f"{i}.png": png(rng.integers(0, 256, (9, 9, 3), np.uint8)) for i in range(5)})
    found = survey(image_files(photos, Reading()))
    assert found.photographs and found.intensity(["auto"]) == ("full", "8-bit photographs")
    bands = {f"{i}.tif": tiff(rng.integers(0, 200, (9, 9, 5)).astype("u1"), planarconfig="contig") for i in range(5)}
    assert survey(image_files(Files(bands), Reading())).intensity(["auto"])[0] == "full"
    dark = {f"{i}.tif": tiff(rng.integers(0, 20, (9, 9, 5)).astype("u1"), planarconfig="contig") for i in range(5)}
    stretched = survey(image_files(Files(dark), Reading())).intensity(["auto"])[0]
    assert isinstance(stretched, Intensity) and stretched.high == (19,) * 5


def test_only_photographs_need_no_survey() -> None:
    photos = {f"{i}.png": png(gray(0, dtype="u1")) for i in range(5)} | {"bad.png": b""}
    assert has_only_photographs(image_files(Files(photos), Reading()))
    assert not has_only_photographs(image_files(Files(photos | {"a.png": png(gray(0))}), Reading()))
    assert not has_only_photographs(image_files(Files(photos), Reading(channels=("0",))))
    images = image_files(Files({"a.tif": tiff(gray(300, dtype="f4"))}), Reading())
    with pytest.raises(
        BadImage, match="floating-point values from 300 to 443 have no full range: --intensity LOW HIGH"
    ):
        images.read(0)
    images.intensity = "per-image"
    assert np.asarray(images.read(0)).max() == 255


def test_deep_color_keeps_its_colors() -> None:
    color = np.random.default_rng(0).integers(0, (500, 2000, 4000), (20, 20, 3)).astype("u2")
    file = io.BytesIO()
    tifffile.imwrite(file, color, photometric="rgb")
    found = survey(image_files(Files({"a.tif": file.getvalue()}), Reading())).intensity(["auto"])[0]
    assert isinstance(found, Intensity) and len(set(found.low)) == len(set(found.high)) == 1 and found.high[0] > 3900


def test_a_stack_is_a_question_at_the_start() -> None:
    stack = Files({"a.tif": tiff(np.stack([gray(0)] * 5))})
    with pytest.raises(UserError) as caught:
        survey(image_files(stack, Reading()))
    assert caught.value.message == "a.tif: 5 pages of 12×12, 1 channel (0 gray), 16 bit: channels, or slices"
    assert caught.value.hint == "Choose --stack channels, max, mean, images, or a page from 0 to 4"
    with pytest.raises(UserError, match="None of 1 images can be read"):
        survey(image_files(Files({"a.tif": b""}), Reading()))


def test_a_constant_channel_and_a_channel_without_data() -> None:
    bands = np.full((9, 9, 2), 7, "f4")
    bands[..., 1] = np.nan
    found = survey(image_files(Files({"a.tif": tiff(bands, planarconfig="contig")}), Reading()))
    intensity, _ = found.intensity(["auto"])
    assert isinstance(intensity, Intensity) and intensity.low[0] == 7 < intensity.high[0]
    assert all(np.isfinite(found.mean_and_std(intensity)).flat)


def test_the_survey_reads_a_sample_of_the_whole_set_and_few_shards() -> None:
    files = Files({f"{i}": png(np.full((4, 4), i % 256, np.uint8)) for i in range(600)})
    found = survey(image_files(files, Reading()), num=100)
    assert found.num_images == 100 and files.reads < 250
    assert found.low[0] < 30 and found.high[0] > 220
    assert survey(image_files(files, Reading()), num=100).high == found.high, "the same sample every time"
    files.shard_sizes, files.reads = np.full(60, 10), 0
    assert survey(image_files(files, Reading()), num=400).num_images == 160, "16 shards of 10"


@pytest.mark.parametrize("pack", ["fluorescence", "multispectral"])
def test_real_packs_are_surveyed(pack: str, data_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(data_folder / f"{pack}.tar.gz") as archive:
        members = [m for m in archive if "/val/" in f"/{m.name}" and m.name.endswith(".tif")]
        archive.extractall(tmp_path, members, filter="data")
    source = image_files(open_source(str(tmp_path)), Reading())
    found = survey(source)
    assert len(found.channels) == (3 if pack == "fluorescence" else 12) and found.dtype == "uint16" and not found.others
    if pack == "fluorescence":  # the ranges in the pack's README
        assert np.allclose(found.high, (989, 1400, 278), rtol=0.25)
        assert readers.read(source.source.read(0)).pixels.shape == (40, 40, 3)  # pyright: ignore[reportArgumentType]


def test_photographs_among_deeper_images_are_refused_not_black() -> None:
    files = {f"{number}.tif": tiff(gray(500 * number)) for number in range(6)}
    images = image_files(Files(files | {f"p{number}.png": png(gray(90, dtype="u1")) for number in range(3)}), Reading())
    found = survey(images)
    assert (found.dtype, found.num_images, found.photographs) == ("uint16", 6, False)
    assert [key for key, _ in found.others] == ["p0.png", "p1.png", "p2.png"] and "8 bits" in found.others[0][1]
    images.intensity, _ = found.intensity(["auto"])
    images.pixel_format = PixelFormat(1, 16)
    assert images.read(3).max() > 30_000
    with pytest.raises(BadImage, match=r"8 bits, but the range of the set ends at 26\d\d"):
        images.read(6)


def test_dark_deep_images_among_photographs_are_refused_not_black() -> None:
    color = np.repeat(gray(90, dtype="u1")[..., None], 3, 2)
    files = {f"{number}.png": png(color) for number in range(6)}
    deep = {"dark.tif": tiff(gray(3000)), "bright.tif": tiff(gray(60_000))}
    images = image_files(Files(files | deep), Reading())
    found = survey(images)
    assert found.photographs and found.channels == ("red", "green", "blue") and found.intensity(["auto"])[0] == "full"
    assert [key for key, _ in found.others] == ["dark.tif"] and "it would be black" in found.others[0][1]
    with pytest.raises(BadImage, match="as a photograph it would be black"):
        images.read(6)
    assert np.asarray(images.read(7)).max() > 230


def test_a_list_of_pages_says_that_it_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(gray(0)))
    data = str(tmp_path)
    assert not_files(list_paths(data, ["a.tif"])) == not_files([]) == not_files(["in.tar/a.tif"]) == ""
    assert "a.tif#3 is no file: it is a page" in not_files(list_paths(data, ["a.tif#3"]))


@pytest.mark.parametrize("colors", [1, 3])
def test_a_deep_image_among_photographs_changes_nothing_for_them(tmp_path: Path, colors: int) -> None:
    """In a run too, which finds channels and range of its images first."""
    for number in range(8):
        pixels = gray(20 * number, dtype="u1")
        pixels = np.repeat(pixels[..., None], 3, 2) if number < colors else pixels
        (tmp_path / f"{number}.png").write_bytes(png(pixels))
    (tmp_path / "deep.tif").write_bytes(tiff(gray(60_000)))
    files = image_files(open_source(str(tmp_path)), Reading())
    config, is_rgb, _ = run_images.resolve_intensity(Config(data=str(tmp_path)), files)
    assert is_rgb and config.channels == () and config.bits == 8
    for index in range(len(files)):
        data = files.read(index)
        assert decode(data, reading=files.reading, intensity=files.intensity).shape == (12, 12, 3), files.key(index)
