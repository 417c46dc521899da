"""Hundreds of damaged or unusual image files, written by real encoders and by hand."""

from __future__ import annotations

import functools
import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

FORMS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "TGA")
SUFFIX = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif"}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Encode an image in this format."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(width: int = 48, height: int = 40) -> Image.Image:
    """A smooth color gradient."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * (1 - x) * (1 - y)], axis=2).astype(np.uint8))


@functools.cache
def seeds() -> dict[str, bytes]:
    """An intact file of each format and mode, to be damaged."""
    image, files = picture(), {}
    for form in FORMS:
        files[form] = encoded(image, form)
    files["JPEG-progressive"] = encoded(image, "JPEG", progressive=True)
    files["JPEG-cmyk"] = encoded(image.convert("CMYK"), "JPEG")
    files["PNG-palette"] = encoded(image.convert("P"), "PNG", transparency=b"\0\x80\xff")
    files["PNG-16"] = encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG")
    files["PNG-1"] = encoded(image.convert("1"), "PNG")
    files["TIFF-lzw"] = encoded(image, "TIFF", compression="tiff_lzw")
    files["TIFF-jpeg"] = encoded(image, "TIFF", compression="jpeg")
    files["TIFF-float"] = encoded(Image.fromarray(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)), "TIFF")
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        files[f"{form}-frames"] = encoded(image, form, save_all=True, append_images=[image.rotate(90), image])
    return files


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says YCCK, as written by Photoshop."""
    data = encoded(picture().convert("CMYK"), "JPEG")
    place = data.index(b"Adobe") + 11
    return data[:place] + b"\x02" + data[place + 1 :]


@functools.cache
def good() -> dict[str, bytes]:
    """Unusual but valid files: all must decode."""
    image = picture()
    files = {f"good-{name}{SUFFIX.get(name.partition('-')[0], '.' + name.partition('-')[0].lower())}": data
             for name, data in seeds().items() if name != "TIFF-frames"}  # fmt: skip
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        files[f"good-turned-{turn}.jpg"] = encoded(image, "JPEG", exif=exif)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files["good-icc.png"] = encoded(image, "PNG", icc_profile=profile)
    files["good-icc-broken.jpg"] = encoded(image, "JPEG", icc_profile=profile[:50] + b"\xff" * 50)
    files["good-ycck.jpg"] = ycck()
    files["good-1x1.png"] = encoded(Image.new("RGB", (1, 1), "red"), "PNG")
    files["good-1x30000.png"] = encoded(Image.new("RGB", (1, 30_000), "red"), "PNG")
    files["good-30000x1.jpg"] = encoded(Image.new("RGB", (30_000, 1), "red"), "JPEG")
    files["good-named-png.jpg"] = encoded(image, "PNG")
    files["good-\u202etxt.png"] = encoded(image, "PNG")
    files["good-two\nlines, 'quoted' \"and\" comma.png"] = encoded(image, "PNG")
    files["good-" + "ü" * 100 + ".png"] = encoded(image, "PNG")
    files["-good --out.png"] = encoded(image, "PNG")
    return files


def png_of(width: int, height: int, content: bytes) -> bytes:
    """A PNG whose header claims a size, with any content."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def packed_zeros(megabytes: int) -> bytes:
    """zlib data of so many zeros, made at once: the same deflate block of 1 MiB again and again."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    adler = (megabytes * 2**20) % 65521 << 16 | 1
    return b"\x78\xda" + block * megabytes + b"\x03\x00" + struct.pack(">I", adler)


@functools.cache
def bombs() -> dict[str, bytes]:
    """Decompression bombs: small files that claim or decompress to more than the memory."""
    bomb = {"bad-bomb.png": png_of(60_000, 60_000, zlib.compress(bytes(10**6)))}
    whole = encoded(picture(), "GIF")
    bomb["bad-bomb.gif"] = whole[:6] + struct.pack("<HH", 65535, 65535) + whole[10:]
    whole = encoded(picture(), "JPEG")
    place = whole.index(b"\xff\xc0") + 5
    bomb["bad-bomb.jpg"] = whole[:place] + struct.pack(">HH", 65500, 65500) + whole[place + 4 :]
    whole = encoded(picture(), "BMP")
    bomb["bad-bomb.bmp"] = whole[:18] + struct.pack("<ii", 100_000, 100_000) + whole[26:]
    whole = bytearray(encoded(picture(), "TIFF"))
    for tag in (256, 257):  # width and height
        place = whole.index(struct.pack("<HHI", tag, 4 if struct.pack("<HHI", tag, 4, 1) in whole else 3, 1))
        whole[place : place + 12] = struct.pack("<HHII", tag, 4, 1, 200_000)
    bomb["bad-bomb.tif"] = bytes(whole)
    whole = encoded(picture(), "JPEG2000")
    place = whole.index(b"\xff\x51") + 6
    bomb["bad-bomb.jp2"] = whole[:place] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + whole[place + 8 :]
    bomb["bad-bomb.ppm"] = b"P6 99999999 99999999 255\n" + bytes(100)
    bomb["bad-bomb.tga"] = bytes([0, 0, 2, *[0] * 9]) + struct.pack("<HH", 65535, 65535) + bytes([24, 0]) + bytes(100)
    text = packed_zeros(200)  # a note of 200 MB in 200 kB
    body = b"note\0\0" + text
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = encoded(picture(), "PNG")
    bomb["bad-note.png"] = whole[:33] + chunk + whole[33:]
    return bomb


def bad() -> dict[str, bytes]:
    """Files that are not images: all must be listed with a reason."""
    files: dict[str, bytes] = {}
    for name, data in seeds().items():
        ending = SUFFIX.get(name.partition("-")[0], "." + name.partition("-")[0].lower())
        if "frames" not in name:  # their first frame may be whole
            for share in (0.0, 0.01, 0.1, 0.3):
                files[f"bad-{name}-{share}{ending}"] = data[: int(share * len(data))]
    words = {
        "text": b"dear diary", "html": b"<!DOCTYPE html><html>not found</html>", "json": b'{"error": 404}',
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "pdf": b"%PDF-1.7\n", "zeros": bytes(5000),
        "ones": b"\xff" * 5000, "zip": b"PK\x03\x04" + bytes(100), "exe": b"MZ" + bytes(500),
        "heic": b"\0\0\0\x18ftypheic", "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "lfs": b"version https://git-lfs.github.com",
        "python": b"import os; os.system('true')",
        "pickle": b"cos\nsystem\n(S'true'\ntR.",
        "lone": b"\xff\xd8",
        "png": b"\x89PNG\r\n\x1a\n", "ico": b"\0\0\x01\0", "riff": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    }  # fmt: skip
    for name, data in words.items():
        for ending in (".jpg", ".png", ".tif"):
            files[f"bad-{name}{ending}"] = data
    files["bad-TIFF-pages.tif"] = seeds()["TIFF-frames"]  # nothing says what its pages are
    return files | bombs()


def fuzzed(count: int, seed: int = 0) -> dict[str, bytes]:
    """Intact files with damage in their first part: some decode, some do not."""
    rng, files, whole = random.Random(seed), {}, sorted(seeds().items())
    for number in range(count):
        name, data = whole[number % len(whole)]
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            broken[rng.randrange(min(len(broken), 300))] = rng.randrange(256)
        ending = SUFFIX.get(name.partition("-")[0], "." + name.partition("-")[0].lower())
        files[f"fuzzed-{number:03d}-{name}{ending}"] = bytes(broken)
    return files


def write(folder: Path, count: int = 100) -> tuple[set[str], set[str], set[str]]:
    """Write all of them to a folder, with entries that are not files.

    Returns:
        Names that are to be used, that are to be listed, and that may be either.
    """
    folder.mkdir()
    fine, wrong, either = good(), bad(), fuzzed(count)
    for name, data in (fine | wrong | either).items():
        (folder / name).write_bytes(data)
    odd = {"bad-pipe.png", "bad-loop.png", "bad-gone.png", "bad-device.png", "bad-device-endless.png", "bad-huge.png"}
    os.mkfifo(folder / "bad-pipe.png")
    (folder / "bad-loop.png").symlink_to("bad-loop.png")
    (folder / "bad-gone.png").symlink_to("nowhere")
    (folder / "bad-device.png").symlink_to("/dev/null")
    (folder / "bad-device-endless.png").symlink_to("/dev/zero")
    with open(folder / "bad-huge.png", "wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    (folder / "up").symlink_to(folder)
    (folder / "named.png").mkdir()
    return set(fine), set(wrong) | odd, set(either)
