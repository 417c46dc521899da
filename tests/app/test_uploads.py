"""Uploads are checked before other code opens them."""

from __future__ import annotations

import io
import struct
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.app.conftest import scene

from opendino.app import uploads
from opendino.core.errors import UserError
from opendino.datasets import video_frames


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    "raw",
    ["text", 3, {}, {"path": None}, {"path": "/etc/passwd"}, {"path": "../secret"}, {"path": "a\0b"}, {"path": "."}],
)
def test_only_files_below_the_uploads_folder_count(tmp_path: Path, raw: object) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "secret").write_text("x")
    with pytest.raises(UserError, match="not an uploaded file"):
        uploads.resolve_upload(raw, tmp_path / "up")


def test_a_link_out_of_the_uploads_folder_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "up/link").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="not an uploaded file"):
        uploads.resolve_upload({"path": str(tmp_path / "up/link")}, tmp_path / "up")
    assert uploads.resolve_upload({"path": str(tmp_path / "secret")}, tmp_path) == (tmp_path / "secret").resolve()
    assert uploads.resolve_upload(None, tmp_path) is None


def test_a_picture_is_shrunk_to_what_a_page_shows() -> None:
    assert uploads.load_image(encoded(scene(1))).shape == (72, 96, 3)
    large = uploads.load_image(encoded(Image.new("RGB", (4000, 3000)), "JPEG"))
    assert large.shape == (1385, 1847, 3)  # 4:3 within 1600² pixels


def test_gray_of_16_bits_keeps_its_values() -> None:
    values = np.arange(300, 300 + 48 * 64, dtype=np.uint16).reshape(48, 64)
    kept = uploads.load_image(encoded(Image.fromarray(values)))
    assert kept.dtype == np.uint16 and (kept[..., 0] == values).all()


@pytest.mark.parametrize(("shape", "dtype"), [((2048, 2048), "u2"), ((5, 1700, 1700), "u2"), ((1700, 1700), "f4")])
def test_a_large_image_of_science_is_shrunk_not_refused(shape: tuple[int, ...], dtype: str) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.full(shape, 700, dtype), photometric="minisblack")
    kept = uploads.load_image(file.getvalue(), "channels")
    assert kept.shape == (1600, 1600, 5 if len(shape) == 3 else 1) and kept.dtype == dtype and (kept == 700).all()


def test_missing_values_are_not_mixed_with_others_when_shrunk() -> None:
    values = np.random.default_rng(0).random((1700, 1700), np.float32)
    values[::7, ::5] = np.nan
    file = io.BytesIO()
    np.save(file, values)
    kept = uploads.load_image(file.getvalue())
    assert kept.shape == (1600, 1600, 1) and 0.02 < np.isnan(kept).mean() < 0.04  # 1 of 35


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x7fELF" + bytes(100), "not an image"),
        (b"", "empty file"),
        (b"<html>", "a web page"),
        (encoded(scene(1))[:300], "cannot be used"),
        (encoded(Image.new("1", (9000, 9000))), "9000 x 9000 pixels, more than 64 million"),
        (encoded(Image.new("L", (500, 100))), "aspect ratio of this image is more than 4:1"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript, which is not supported"),
    ],
)
def test_bad_pictures_are_refused_in_a_sentence(content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        uploads.load_image(content)


def test_a_films_first_frame(tmp_path: Path) -> None:
    frames = (np.asarray(scene(number, (160, 120))) for number in range(3))
    video_frames.write(tmp_path / "film.mp4", frames, Fraction(3))
    assert uploads.first_frame(tmp_path / "film.mp4").size == (160, 120)


@pytest.mark.parametrize("content", [b"#EXTM3U\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n", b"GIF89a"])
def test_playlists_are_no_films(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(UserError, match="not a supported video"):
        uploads.first_frame(tmp_path / "film.mp4")


def test_films_of_huge_frames_are_refused_before_one_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    monkeypatch.setattr(video_frames, "size", lambda path: (8192, 8192))
    with pytest.raises(UserError, match="8192 × 8192 pixels"):
        uploads.first_frame(tmp_path / "film.mp4")


def test_a_zip_of_images_may_be_trained_on(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", encoded(scene(number)))
    assert uploads.check_zip(tmp_path / "a.zip") == 3


def test_zip_bombs_are_refused_unopened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(uploads._ZIP_MEMBER_BYTES + 1))
    with pytest.raises(UserError, match="would unpack to 64 MB"):
        uploads.check_zip(tmp_path / "one.zip")
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", b"0")
        for info in archive.filelist:
            info.file_size = 2**29  # as the list of files then says
    with pytest.raises(UserError, match="would unpack to 1,536 MB"):
        uploads.check_zip(tmp_path / "many.zip")


def end_of_list(num_bytes: int, at: int, zip64: bool) -> bytes:
    """What a .zip ends with; in zip64 the true length stands in a record of its own, and the usual one says little."""
    if not zip64:
        return b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 65535, 65535, num_bytes, at, 0)
    record = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 10**6, 10**6, num_bytes, at)
    where = b"PK\6\7" + struct.pack("<IQI", 0, at + num_bytes, 1)
    return record + where + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 1, 1, 46, 0, 0)


@pytest.mark.parametrize("zip64", [False, True])
def test_a_zip_whose_list_is_huge_is_refused_before_it_is_read(tmp_path: Path, zip64: bool) -> None:
    num_bytes = uploads._ZIP_LIST_BYTES + 1
    (tmp_path / "a.zip").write_bytes(b"PK\3\4" + bytes(num_bytes) + end_of_list(num_bytes, 4, zip64))
    with pytest.raises(UserError, match="too many files"):
        uploads.check_zip(tmp_path / "a.zip")


@pytest.mark.parametrize(("name", "content"), [("a.zip", b"MZ" + bytes(100)), ("a.zip", b""), ("a.exe", b"PK")])
def test_what_is_no_zip_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"no archive|not a \.zip|damaged"):
        uploads.check_zip(tmp_path / name)


def test_a_zip_without_images_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner.zip", b"PK")
    with pytest.raises(UserError, match="No images"):
        uploads.check_zip(tmp_path / "a.zip")


def test_of_a_stack_one_says_what_its_pages_are() -> None:
    out = io.BytesIO()
    pages = np.arange(3 * 20 * 30, dtype=np.uint16).reshape(3, 20, 30)
    tifffile.imwrite(out, pages, photometric="minisblack")
    with pytest.raises(uploads.StackRefused, match=r"This is a stack: 3 pages of .* 16 bit\. Say below") as caught:
        uploads.load_image(out.getvalue())
    assert "--stack" not in str(caught.value)
    assert uploads.load_image(out.getvalue(), "channels").shape == (20, 30, 3)
    assert (uploads.load_image(out.getvalue(), "max")[..., 0] == pages[2]).all()
    assert (uploads.load_image(out.getvalue(), "0")[..., 0] == pages[0]).all()
