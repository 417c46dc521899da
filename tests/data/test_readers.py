"""Images of science: equal to the reference libraries, or refused with a reason; never a traceback or a bomb."""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import resource
import struct
import tarfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.data import bad_images, readers_table
from tests.data.array_variants import dicom, nifti
from tests.data.tiff_variants import tiff
from tests.data.variants import Variant, result

from opendino.core.errors import BadImage, UserError
from opendino.data import readers
from opendino.data.decode import decode
from opendino.data.image_files import image_files
from opendino.data.image_survey import survey
from opendino.data.open_source import open_source
from opendino.data.readers import tiff_checks
from opendino.data.readers.decoded_image import DecodedImage, from_array
from opendino.data.readers.multi_page_files import Reading
from opendino.data.readers.tiff import count

VARIANTS = readers_table.variants()


def test_the_table_is_large_enough() -> None:
    assert len(VARIANTS) > 150
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_equal_to_the_reference_or_refused(variant: Variant) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = result(variant)
    assert outcome.startswith("refused" if isinstance(variant.expected, str) else "equal"), outcome


@pytest.mark.parametrize(("entries", "nominal", "top"), [("<u2", 16, 65535), ("<u2", 8, 255), ("u1", 8, 255)])
def test_the_colors_of_a_palette_have_the_range_of_the_palette(entries: str, nominal: int, top: int) -> None:
    palette = np.linspace(0, 0.9 * top, 256).astype(entries)
    tags: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, color in enumerate(("Red", "Green", "Blue")):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, nominal]
        tags[f"{color}PaletteColorLookupTableData"] = np.roll(palette, number).tobytes()
    data = dicom(8, **tags)
    image = readers.read(data)
    assert image.value_range == (0, top) and image.channels == ("red", "green", "blue")
    assert 200 < decode(data).max() <= 0.9 * 255 + 1


@pytest.mark.parametrize(
    ("dtype", "missing", "text"), [("f4", np.nan, "nan"), ("i2", -9999, "-9999"), ("u2", 3, "-9999")]
)
@pytest.mark.parametrize("stack", ["max", "mean"])
def test_missing_pixels_of_one_page_are_taken_from_the_other(dtype: str, missing: float, text: str, stack: str) -> None:
    pages = np.full((2, 20, 20), 7, dtype)
    pages[0, :5] = missing
    file = io.BytesIO()
    tifffile.imwrite(file, pages, photometric="minisblack", metadata=None, extratags=[(42113, 2, 0, text, True)])
    found = readers.read(file.getvalue(), Reading(stack))
    there = 7 if text == "nan" or dtype == "i2" or stack == "max" else 5  # in u2 nothing is missing
    assert (found.pixels[:5] == there).all() and (found.pixels[5:] == 7).all()


def test_the_table_notices_a_difference() -> None:
    right = next(variant for variant in VARIANTS if variant.name == "tiff u2 < 1 channels")
    wrong = Variant("x", right.data, right.expected + 1)
    assert result(wrong) == "WRONG: other values"
    assert result(Variant("x", right.data, "a reason")).startswith("WRONG: read")


def reads(data: bytes, reading: Reading | None = None) -> str:
    """Reads without warnings, log lines, time or memory; the reason, or "" if it is read."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            readers.read(data, reading, 1_000_000)
            reason = ""
        except BadImage as error:
            reason = str(error)
            assert 0 < len(reason) <= 300 and "\n" not in reason
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024, "KiB"
    return reason


def test_damaged_files_give_pixels_or_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    files = [variant.data for variant in VARIANTS if len(variant.data) < 60_000][::3]
    refused = 0
    for number in range(600):
        broken = bytearray(files[number % len(files)])
        early = rng.random() < 0.7
        for place in rng.integers(0, min(len(broken), 400) if early else len(broken), 1 + number % 6):
            broken[place] = rng.integers(256)
        if number % 7 == 0:
            del broken[int(rng.integers(len(broken))) :]
        refused += bool(reads(bytes(broken), Reading(("ask", "channels", "max", "1")[number % 4])))
    assert refused > 100
    assert not [record for record in caplog.records if record.name == "tifffile"]
    logging.getLogger("tifffile").error("ours")
    assert [record.message for record in caplog.records] == ["ours"], "outside, its log works"


def test_a_zlib_strip_does_not_unpack_to_more_than_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiff(np.zeros((20, 20), np.uint16), photometric="minisblack", compression="zlib")
    bomb = bad_images.packed_zeros(400)
    changed = bytearray(whole) + bomb
    for code, value in ((273, len(whole)), (279, len(bomb))):
        with tifffile.TiffFile(io.BytesIO(whole)) as file:
            tag = file.pages[0].tags[code]
        struct.pack_into("<HHII", changed, tag.offset, code, 4, 1, value)
    assert reads(whole) == ""
    reads(bytes(changed))
    monkeypatch.setattr(tiff_checks, "_HAS_IMAGECODECS", False)
    assert "unpacks to more" in reads(bytes(changed))


def test_other_bombs() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        start = io.BytesIO()
        np.save(start, np.zeros((8, 8), np.uint8))
        file.writestr("a.npy", start.getvalue() + bytes(300 * 2**20))
    assert reads(archive.getvalue()) == "", "what follows the array is not unpacked"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", start.getvalue().replace(b"(8, 8)", b"(1<<9)"))
    assert reads(archive.getvalue())
    for claim in (b"(20000, 20000)", b"(-1, 8)", b"(8, 8, 8, 8, 8, 8)", b"((((((((((", b"(99**9999, 2)"):
        start = io.BytesIO()
        np.save(start, np.zeros((8, 8), np.uint8))
        assert reads(start.getvalue().replace(b"(8, 8), }" + b" " * (len(claim) - 6), claim + b", }")), claim
    deep = tiff(np.zeros((700, 64, 64), np.uint16), photometric="minisblack")
    assert "cut it into tiles" in reads(deep, Reading("channels"))
    assert reads(deep, Reading("699")) == "", "one page is small"


OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="8" SizeY="8" '
    'SizeZ="{z}" SizeC="{c}" SizeT="{t}">'
    '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData/></Pixels>'
    "</Image></OME>"
)


@pytest.mark.parametrize(
    "description",
    [
        OME.format(z=10**9, c=1, t=1), OME.format(z=3000, c=3000, t=3000), OME.format(z=9000, c=1, t=1),
        "ImageJ=1.54\nimages=1000000000\nslices=1000000000\n", "ImageJ=1.54\nimages=900\nchannels=30\nslices=30\n",
        '{"shape": [1000000000, 8, 8]}',
        '{"shape": [4, 8, 8], "axes": "CYX"}', '{"shape": [-1, 8, 8]}', "OME>", "<OME></OME>",
        "ImageJ=1.54\nimages=-5\n", '{"shape": [64], "axes": "Q"}', '{"shape": [8, 8], "axes": "ZC"}',
    ],
)  # fmt: skip
def test_descriptions_that_lie(description: str) -> None:
    """A claim of many planes is refused, or ignored if the file has what its tags say."""
    page = np.arange(64, dtype=np.uint16).reshape(8, 8)
    data = tiff(page, photometric="minisblack", description=description)
    for stack in ("ask", "channels", "max", "0", "1", "images"):
        if not reads(data, Reading(stack)):
            assert np.array_equal(readers.read(data, Reading(stack)).pixels[..., 0], page)
    with contextlib.suppress(BadImage):
        assert readers.count(data) <= 10_000


def test_arrays_that_lie_about_the_number_of_images() -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((4, 8, 8), np.uint8))
    assert readers.count(file.getvalue()) == 4
    with pytest.raises(BadImage, match="99,999 pages"):
        readers.count(file.getvalue().replace(b"(4, 8, 8), }    ", b"(99999, 8, 8), }"))


def test_a_number_of_pages_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = tiff(np.zeros((9, 8, 8), np.uint16), photometric="minisblack")
    assert count(pages) == 9
    monkeypatch.setattr("opendino.data.readers.tiff.MAX_PAGES", 8)
    assert "more than 8 pages" in reads(pages, Reading("max"))


def test_missing_pixels_are_left_out_of_projections() -> None:
    pages = np.full((3, 6, 8), 7.0, np.float32)
    pages[0, 0], pages[1, 1], pages[:, 2] = -9999, np.nan, -9999
    data = tiff(pages, photometric="minisblack", extratags=[(42113, 2, 0, "-9999", True)])
    for stack in ("mean", "max"):
        image = readers.read(data, Reading(stack))
        assert (image.pixels[0] == 7).all()
        assert image.nodata is not None and image.nodata[2].all() and not image.nodata[[0, 3, 4, 5]].any()


def test_values_that_float32_rounds_are_said() -> None:
    image = from_array(np.array([[[2**24 + 1], [0]]], np.uint32), ("gray",))
    assert image.notes == ("uint32 rounded to float32, by at most 1",) and image.value_range == (0, 2**32 - 1)
    assert from_array(np.array([[[2**24], [0]]], np.uint32), ("gray",)).notes == ()
    with pytest.raises(BadImage, match="cannot tell apart"):
        from_array(np.array([[[2**40 + 1], [2**40]]], np.int64), ("gray",))


def test_a_fill_value_is_only_one_far_from_all_others() -> None:
    heights = np.linspace(-9999, -9000, 50, dtype=np.float32).reshape(5, 10, 1)
    assert from_array(heights, ("gray",)).nodata is None
    signed = np.linspace(-32768, 32767, 50).astype(np.int16).reshape(5, 10, 1)
    assert from_array(signed, ("gray",)).nodata is None
    relief = np.where(np.arange(50).reshape(5, 10, 1) < 5, -9999, 400 + heights / 1000)
    image = from_array(relief.astype(np.float32), ("gray",))
    assert image.nodata is not None and image.nodata.sum() == 5 and "10.0% of the values are -9999" in image.notes[0]


def test_volumes_of_a_folder_are_slices_after_the_question(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(-500, 1500, (40, 36, 5)).astype(np.int16)
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(nifti(volume)))
    (tmp_path / "b.nii").write_bytes(nifti(volume[..., :2]))
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress(b"no image"))
    files = open_source(str(tmp_path))
    assert [files.key(n) for n in range(len(files))] == ["b.nii", "scan.nii.gz"]
    with pytest.raises(UserError, match=r"b\.nii: 2 slices of 36×40, 1 channel") as asked:
        survey(image_files(files, Reading()))
    assert "--stack channels, max, mean, images" in (asked.value.hint or "")
    slices = image_files(files, Reading("images"))
    assert len(slices) == 7 and slices.key(6) == "scan.nii.gz#4"
    image = slices.image(6)
    assert isinstance(image, DecodedImage) and np.array_equal(image.pixels[..., 0], volume[..., 4])
    found = survey(slices)
    assert found.channels == ("gray",) and -505 < found.low[0] < -480 and 1480 < found.high[0] < 1505


def test_damaged_headers_of_volumes() -> None:
    data = nifti(np.arange(19 * 24 * 2, dtype=np.int16).reshape(19, 24, 2), slope=0.5)
    for place in range(0, 352, 2):
        for value in (b"\xff\xff", b"\x00\x00", b"\x7f\x80"):
            damaged = data[:place] + value + data[place + 2 :]
            for stack in ("ask", "mean"):
                reads(damaged, Reading(stack))
                reads(gzip.compress(damaged, 1), Reading(stack))
    assert "cut short" in reads(gzip.compress(data[:353] + bytes(9)), Reading("0"))
    assert reads(gzip.compress(data + bytes(300 * 2**20)), Reading("0")) == "", "what follows is not unpacked"


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    assert 'NIfTI needs nibabel: pip install "opendino[medical]"' in reads(
        next(v.data for v in VARIANTS if v.name.startswith("nifti.gz"))
    )
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert 'pip install "opendino[medical]"' in reads(next(v.data for v in VARIANTS if v.name.startswith("dicom 12")))
    monkeypatch.setattr(tiff_checks, "_HAS_IMAGECODECS", False)
    packed = tiff(np.zeros((20, 20), np.uint16), photometric="minisblack", compression="lzw")
    assert 'compressed by LZW needs imagecodecs: pip install "opendino[science]"' in reads(packed)


@pytest.mark.parametrize("pack", ["fluorescence", "multispectral"])
def test_real_packs_are_read_as_tifffile_reads_them(pack: str, data_folder: Path) -> None:
    compared = 0
    with tarfile.open(data_folder / f"{pack}.tar.gz") as archive:
        for number, member in enumerate(archive):
            if not member.name.endswith((".tif", ".npy")) or (number % 25 and "originals" not in member.name):
                continue
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            expected = np.load(io.BytesIO(data)) if member.name.endswith("npy") else tifffile.imread(io.BytesIO(data))
            if expected.ndim == 2 or len(expected) == 3:  # gray, or three planar channels
                expected = np.moveaxis(np.atleast_3d(expected.T), (0, 1), (1, 0))
            image = readers.read(data)
            assert image.pixels.dtype == np.uint16 and np.array_equal(image.pixels, expected), member.name
            compared += 1
    assert compared > 10
