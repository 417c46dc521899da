"""Messages for files of unsupported formats, and for images that are too large."""

from __future__ import annotations

import logging
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opendino.core.errors import BadImage, UserError
from opendino.data import unsupported
from opendino.data.decode import MAX_PIXELS, SUFFIXES, decode
from opendino.data.open_source import open_source

sys.path.append(str(Path(__file__).parent))
import bad_images


def tiff(samples: int, bits: int, form: int = 1, compression: int = 1) -> bytes:
    """A little-endian TIFF of 8 x 8 pixels."""
    pixels = bytes(64 * samples * bits // 8)
    lists = struct.pack(f"<{samples}H", *[bits] * samples), struct.pack(f"<{samples}H", *[form] * samples)
    bits_at, form_at = 8 + len(pixels), 8 + len(pixels) + max(4, len(lists[0]))
    tags = [
        (256, 1, 8), (257, 1, 8), (258, samples, bits if samples == 1 else bits_at), (259, 1, compression), (262, 1, 1),
        (273, 1, 8), (277, 1, samples), (278, 1, 8), (279, 1, len(pixels)),
        (339, samples, form if samples == 1 else form_at),
    ]  # fmt: skip
    after = form_at + max(4, len(lists[1]))
    body = b"".join(
        struct.pack("<HHII", tag, 3 if tag in (258, 339) else 4, count, value) for tag, count, value in tags
    )
    return (
        struct.pack("<2sHI", b"II", 42, after) + pixels + lists[0].ljust(4, b"\0") + lists[1].ljust(4, b"\0")
        + struct.pack("<H", len(tags)) + body + bytes(4)
    )  # fmt: skip


def reason(data: bytes, **words: Any) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **words)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 250
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(5, 8), "5 channels (0, 1, 2, 3, 4): choose 3 of them, e.g. --channels 0 1 2"),
        (tiff(12, 16), "12 channels (0, 1, 2, 3, 4, 5, 6, 7, …): choose 3 of them"),
        (tiff(1, 64, 6), "a TIFF of complex numbers: save real numbers"),
        (tiff(1, 16, 1, 34887), "a TIFF compressed by LERC, which is not read: save it with LZW or zlib"),
        (tiff(1, 40), "a TIFF of 40-bit unsigned samples, which are not read"),
        (b"ZISRAWFILE" + bytes(90), "Zeiss .czi, which is not supported: convert it: bfconvert FILE"),
        (b"\xda\xce\xbe\x0a" + bytes(90), "Nikon .nd2, which is not supported: convert"),
        (bytes(128) + b"DICM" + bytes(90), "DICOM"),
        (b"\0\0\0\x18ftypheic" + bytes(90), "HEIC, which is not supported: convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypmp42" + bytes(90), "a video, which is not supported: write its frames"),
        (b"RIFF\0\0\0\0AVI " + bytes(90), "a video, which is not supported: write its frames"),
        (b"%PDF-1.7\n" + bytes(90), "a PDF, which is not supported: write its pages"),
        (b"8BPS\0\1" + bytes(90), "Photoshop"),
        (b"PK\3\4" + bytes(90), "an archive, which is not supported: give"),
    ],
)
def test_the_kind_of_file_and_what_to_do(data: bytes, said: str) -> None:
    assert said in reason(data)


@pytest.mark.parametrize("data", [b"dear diary", bytes(500), b"\xff" * 500])
def test_unknown_bytes_get_no_advice(data: bytes) -> None:
    assert reason(data) == "not an image in a known format"


def test_nothing_that_is_read_is_called_unsupported() -> None:
    for name, data in bad_images.good().items():
        said = unsupported.kind_of(data)
        assert not said or "a TIFF" in said, name
    assert not any(unsupported.advice_for_suffix(ending) for ending in SUFFIXES)


def test_pillows_log_stays_quiet_in_here_and_as_it_was_outside(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "PIL.TiffImagePlugin"):
        reason(tiff(7, 8))
        assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
        assert not logging.getLogger("PIL.TiffImagePlugin").disabled


def test_too_many_pixels_name_the_options() -> None:
    side = 20_480
    for data in (bad_images.png_of(side, side, zlib.compress(b"")), bad_images.png_of(16_000, 16_000, b"")):
        said = reason(data)
        assert "pixels, more than 250 million: use opendino pack DATA --tiles 1024, or --max-pixels" in said
        assert "attack" not in said
    assert str(side * side) in reason(bad_images.png_of(side, side, b""))
    assert reason(bad_images.png_of(900, 900, b""), max_pixels=10**6 // 2) == "900 x 900 pixels, more than 0.5 million"


def test_a_limit_above_the_usual_one_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    image = bad_images.encoded(Image.new("L", (301, 301)), "PNG")
    monkeypatch.setattr("opendino.data.readers.limits.MAX_PIXELS", 10_000)
    assert "90,601 pixels" in reason(image, max_pixels=301 * 301 - 1)
    assert decode(image, max_pixels=301 * 301).shape == (301, 301, 3)
    assert "90,601 pixels" in reason(image, max_pixels=10_000), "Pillow's own limit is the usual one again"
    assert MAX_PIXELS == 250_000_000 and (Image.MAX_IMAGE_PIXELS or 0) > 10_000


def test_unsupported_files_beside_images_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for name in ("b.czi", "c.CZI", "d.txt", "e.zip"):
        (tmp_path / name).write_bytes(b"x")
    assert len(open_source(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "2 .czi files in folder" in said and "bfconvert" in said and ".zip" not in said and ".txt" not in said
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"No images.*\.czi is a Zeiss \.czi: convert"):
        open_source(tmp_path)
    with pytest.raises(UserError, match=r"b\.czi is a Zeiss \.czi, which is not supported\. Convert"):
        open_source(tmp_path / "b.czi")


@pytest.mark.parametrize("ending", [".czi", ".nd2", ".lif", ".vsi", ".oir", ".svs", ".mrxs", ".ndpi"])
def test_files_of_microscopes_and_slides_are_counted_with_the_command_that_converts_them(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for number in range(3):
        (tmp_path / f"{number}{ending}").write_bytes(b"x")
    open_source(tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert f"3 {ending} files in folder" in said and ("bfconvert FILE" in said or "vips dzsave FILE" in said)
