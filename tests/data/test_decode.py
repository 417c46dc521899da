"""Decoding: the right pixels, upright, at working size; and one-line reasons for bad files."""

from __future__ import annotations

import io
import multiprocessing
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from opendino.core.errors import BadImage
from opendino.core.types import ViewGroup, ViewSpec
from opendino.data import decode as module
from opendino.data.decode import decode, working_area_px
from opendino.data.intensity import Intensity
from opendino.data.readers import photograph
from opendino.data.readers.multi_page_files import Reading, StackQuestion
from opendino.views.settings import view


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A smooth gradient with a different color in every corner, which survives JPEG and resizing."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * x, 255 * y, 255 * (1 - x) * (1 - y)], axis=2).astype(np.uint8)


def close(one: np.ndarray, other: np.ndarray, tolerance: float) -> None:
    assert one.shape == other.shape
    assert np.abs(one.astype(float) - other).max() <= tolerance


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "TGA", "JPEG", "WEBP", "JPEG2000", "AVIF"])
def test_formats(form: str) -> None:
    image = smooth(40, 60)
    result = decode(encoded(image, form))
    close(result, image, 0 if form in ("PNG", "BMP", "TIFF", "PPM", "TGA") else 16)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert result.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("max_area_px", [None, 600])
def test_orientation(orientation: int, form: str, max_area_px: int | None) -> None:
    """The image is stored rotated, with the EXIF orientation that a camera would write."""
    upright = smooth(80, 120)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo[orientation](upright))
    result = decode(
        encoded(stored, form, exif=exif, **({"quality": 95} if form in ("JPEG", "WEBP") else {})), max_area_px
    )
    if max_area_px is not None:
        assert result.shape == (20, 30, 3)
        upright = smooth(20, 30)
    close(result, upright, 20)


def test_broken_exif_is_ignored() -> None:
    image = smooth(20, 30)
    close(decode(encoded(image, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage", quality=95)), image, 20)


def test_modes() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = np.repeat(gray[..., None], 3, axis=2)
    close(decode(encoded(gray)), rgb, 0)
    close(decode(encoded(Image.fromarray(gray > 99))), np.where(rgb > 99, 255, 0), 0)
    close(decode(encoded(Image.fromarray(gray).convert("P"))), rgb, 0)
    cmyk = Image.merge("CMYK", [Image.new("L", (8, 8), value) for value in (0, 255, 255, 0)])
    for form in ("JPEG", "TIFF"):
        close(decode(encoded(cmyk, form)), np.broadcast_to([255, 0, 0], (8, 8, 3)), 4)


def test_transparency_lies_on_white() -> None:
    alpha = np.array([[0, 255, 128]], np.uint8)
    black = np.zeros((1, 3, 3), np.uint8)
    expected = np.repeat(255 - alpha[..., None], 3, axis=2)
    close(decode(encoded(np.dstack([black, alpha]))), expected, 1)
    close(decode(encoded(Image.merge("LA", [Image.fromarray(black[..., 0]), Image.fromarray(alpha)]))), expected, 1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    white_then_color = np.array([[[255, 255, 255], [10, 20, 30]]])
    close(decode(encoded(palette, transparency=0)), white_then_color, 0)
    close(decode(encoded(palette, transparency=b"\x00\xff")), white_then_color, 0)
    close(decode(encoded(palette, "GIF", transparency=0)), white_then_color, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 30000, 65535]], np.uint16), [0, 117, 255]),
        (np.array([[0, 2048, 5000]], np.uint16), [0, 8, 19]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.25, 1]], np.float32), [0, 64, 255]),
        (np.array([[-1e38, 0, 3e38]], np.float32), [0, 64, 255]),
        (np.array([[np.nan, 2, 4]], np.float32), [0, 0, 255]),
        (np.array([[7, 7, 7]], np.float32), [0, 0, 0]),
        (np.array([[np.nan, np.inf, np.nan]], np.float32), [0, 0, 0]),
    ],
)
def test_grays_of_other_depths_without_the_range_of_a_set(values: np.ndarray, expected: list[int]) -> None:
    close(decode(encoded(values, "TIFF"))[..., 0], np.array([expected]), 1)
    if values.dtype == np.uint16:
        close(decode(encoded(values, "PNG"))[..., 2], np.array([expected]), 1)


def test_the_range_of_a_set_holds_for_every_file() -> None:
    micrograph = np.linspace(100, 900, 40 * 30).astype(np.uint16).reshape(40, 30)
    for form in ("PNG", "TIFF"):
        data = encoded(micrograph, form)
        with pytest.raises(BadImage, match="would be black"):
            decode(data)
        bright = decode(data, intensity=Intensity((100,), (900,)))
        close(bright[..., 0], (micrograph - 100) * (255 / 800), 0.51)
        dim = decode(encoded(micrograph // 2, form), intensity=Intensity((0,), (900,)))
        close(dim, decode(data, intensity=Intensity((0,), (900,))) / 2, 1)


def test_the_channels_of_a_science_image() -> None:
    bands = np.random.default_rng(0).integers(0, 65536, (20, 24, 12), np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, bands, photometric="minisblack", planarconfig="contig")
    with pytest.raises(BadImage, match=r"12 channels \(0, 1, .*--channels 0 1 2"):
        decode(file.getvalue())
    chosen = decode(file.getvalue(), reading=Reading(channels=("3", "2", "1")))
    close(chosen, bands[..., [3, 2, 1]] / 257, 0.51)
    assert decode(file.getvalue(), 100, reading=Reading(channels=("0",))).shape == (9, 10, 3)


def test_first_frame_but_no_guess_about_pages() -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue", "lime")]
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        lossless = {"lossless": True} if form == "WEBP" else {}
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **lossless)
        if form == "TIFF":
            with pytest.raises(StackQuestion, match="3 pages of 6×4"):
                decode(data)
            close(decode(data, reading=Reading("1")), np.broadcast_to([0, 0, 255], (4, 6, 3)), 0)
        else:
            close(decode(data), np.broadcast_to([255, 0, 0], (4, 6, 3)), 2)


@pytest.mark.parametrize("form", ["JPEG", "PNG", None])
@pytest.mark.parametrize(("height", "width"), [(300, 500), (1000, 1501), (1200, 400), (3, 5000)])
def test_shrunk_once_to_the_area(form: str | None, height: int, width: int) -> None:
    image = smooth(height, width)
    data = image if form is None else encoded(image, form, **({"quality": 95} if form == "JPEG" else {}))
    for area in (150_000, 20_000, 3_000, 1):
        result = decode(data, area)
        new_height, new_width, _ = result.shape
        assert new_height * new_width <= area
        assert max(new_height, new_width) <= max(1, 2 * area**0.5)
        if height * width <= area and max(height, width) <= 2 * area**0.5:
            assert result.shape == image.shape
        elif min(new_height, new_width) > 20:
            assert new_height * new_width > 0.9 * area
            assert new_height / new_width == pytest.approx(height / width, rel=0.05)
            close(result, smooth(new_height, new_width), 12)


@pytest.mark.parametrize("max_area_px", [None, 9000, 2300])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [30, 95])
def test_a_jpeg_is_what_pillow_makes_of_it_to_the_bit(quality: int, subsampling: int, max_area_px: int | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8)
    picture = Image.fromarray(noise).resize((203, 118), Image.Resampling.BICUBIC)
    data = encoded(picture, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(io.BytesIO(data)) as image:
        size = module.working_size(image.size, max_area_px)
        image.draft(None, size)
        expected = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0) if image.size != size else image
        assert (decode(data, max_area_px) == np.array(expected)).all()


def test_shrinking_is_antialiased() -> None:
    """Stripes one pixel wide become a uniform gray, whether the DCT or the filter removes them."""
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    for data in (stripes, encoded(stripes), encoded(stripes, "JPEG", quality=95)):
        for area in (100**2, 37**2):
            inner = decode(data, area)[3:-3, 3:-3].astype(float)
            assert abs(inner.mean() - 127.5) < 3
            assert inner.std() < 10


def test_a_hair_thin_image_does_not_stretch_the_canvas() -> None:
    image = np.zeros((30_000, 2, 3), np.uint8)
    assert decode(image, max_area_px=10_000).shape == (200, 1, 3)
    assert decode(image).shape == (30_000, 2, 3)


def test_arrays() -> None:
    image = smooth(8, 9)
    assert decode(image) is image
    frozen = image.copy()
    frozen.flags.writeable = False
    assert decode(frozen).flags.writeable
    assert decode(image[:, ::-1]).flags.c_contiguous
    for wrong in (image[..., 0], image.astype(np.float32), image[:0], np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(BadImage, match="not uint8"):
            decode(wrong)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_too_many_pixels_are_refused_before_decoding() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    start = time.perf_counter()
    for width, height in ((20_000, 12_501), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(BadImage, match=r"pixels"):
            decode(png_claiming(width, height), 100)
    assert time.perf_counter() - start < 2
    with pytest.raises(BadImage, match=r"truncated|broken|premature|incomplete"):  # the limit itself is allowed
        decode(png_claiming(100, 2000))
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty file"),
        (b"hello there, this is text", "not an image"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "PostScript"),
    ],
)
def test_what_is_no_image(data: bytes, says: str) -> None:
    with pytest.raises(BadImage, match=says) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "TGA"])
def test_damage_is_a_bad_image_and_nothing_else(form: str) -> None:
    """A truncated file is always refused. Random damage raises no error except `BadImage`."""
    whole = encoded(smooth(48, 64), form)
    for share in (0.1, 0.5, 0.8):
        with pytest.raises(BadImage) as caught:
            decode(whole[: int(len(whole) * share)])
        assert 0 < len(str(caught.value)) <= 200
        assert "\n" not in str(caught.value)
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 4):
            damaged[place] = rng.integers(256)
        try:
            assert decode(bytes(damaged), 10_000).shape[2] == 3
        except BadImage:
            failed += 1
    assert failed > 0 or form in ("BMP", "TGA"), "some damage was noticed"


def test_warnings_of_pillow_are_kept_from_the_user_and_only_those() -> None:
    corrupt = encoded(smooth(8, 8), "TIFF")
    palette = Image.new("P", (2, 1))
    data = encoded(palette, transparency=b"\x00\xff")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        decode(data)
        decode(corrupt)
        with photograph.quiet():
            Image.open(io.BytesIO(png_claiming(12_000, 12_000))).close()
            warnings.warn("ours", UserWarning, stacklevel=1)
        assert warnings.filters == before
        Image.open(io.BytesIO(png_claiming(12_000, 12_000))).close()
    assert [str(w.message)[:10] for w in caught] == ["ours", "Image size"]


def test_threads_leave_nothing_behind() -> None:
    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    data = [encoded(smooth(60, 60), "JPEG"), b"broken"]

    def work() -> None:
        for number in range(60):
            try:
                decode(data[number % 2])
            except BadImage:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == (before, limit)
    assert photograph._num_inside == 0


def test_a_process_forked_while_a_thread_decodes_can_decode() -> None:
    data = encoded(smooth(9, 9))
    child = multiprocessing.get_context("fork").Process(target=decode, args=(data,))
    with photograph.quiet(), photograph._guard:
        child.start()
    child.join(20)
    assert child.exitcode == 0


def test_working_area() -> None:
    small, large = view({"crop.scale": (0.05, 0.4)}), view({"crop.scale": (0.4, 1.0)})
    paper = ViewSpec((ViewGroup("global", 224, (large, large)), ViewGroup("local", 96, (small,) * 10)))
    assert working_area_px(paper) == 184_320  # 96² / 0.05, about 429²
    assert working_area_px(ViewSpec((ViewGroup("global", 224, (large,)), ViewGroup("local", 96, ())))) == 125_440
    assert (
        working_area_px(ViewSpec((ViewGroup("global", 10, (view({"crop.scale": (0.3, 1.0)}),)),))) == 334
    )  # rounded up
