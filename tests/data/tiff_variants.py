"""Generated TIFF files: depth, sample format, planar configuration, photometric, compression, pages, byte order."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from tests.data.variants import HEIGHT, WIDTH, Variant, kept, values

from opendino.data.readers.multi_page_files import Reading

NODATA, ORIENTATION = 42113, 274


def tiff(array: np.ndarray, **options: Any) -> bytes:
    """A TIFF written by tifffile."""
    file = io.BytesIO()
    options.setdefault("metadata", None)
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def reference(data: bytes) -> np.ndarray:
    """What tifffile gives, with channels last, `[H W C]`."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        array, axes = file.series[0].asarray(), file.series[0].axes
    if axes[0] in "SCIQ" and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    return array[..., None] if array.ndim == 2 else array


def as_read(name: str, data: bytes, **words: Any) -> Variant:
    """A variant that must equal tifffile."""
    return Variant(name, data, kept(reference(data)), **words)


def types() -> Iterator[Variant]:
    """Every type, gray and two or five channels, both byte orders."""
    for dtype in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"):
        for order, channels in itertools.product("<>", (1, 2, 5)):
            layout = {"planarconfig": "contig", "extrasamples": [0] * (channels - 1)} if channels > 1 else {}
            data = tiff(values(dtype, channels), byteorder=order, photometric="minisblack", **layout)
            yield as_read(f"tiff {dtype} {order} {channels} channels", data)
    for bits in range(1, 32):
        if bits in (1, 2, 4, 8, 16):
            continue
        array = values("u1" if bits < 8 else "u2" if bits < 16 else "u4", bits=bits)
        yield as_read(f"tiff {bits} bits", tiff(array, bitspersample=bits, photometric="minisblack"))
    for bits in (10, 12, 14):
        data = tiff(values("u2", 3, bits), bitspersample=bits, photometric="rgb")
        yield as_read(f"tiff RGB {bits} bits", data, channels=("red", "green", "blue"))
    for dtype in ("c8", "c16"):
        yield Variant(f"tiff {dtype}", tiff(np.ones((9, 9), dtype), photometric="minisblack"), "complex numbers")
    offset = np.arange(HEIGHT * WIDTH, dtype=np.float64).reshape(HEIGHT, WIDTH) + 1e9
    yield Variant("tiff f8 with a large offset", tiff(offset, photometric="minisblack"), "cannot tell apart")
    yield Variant(
        "tiff u8 with a large offset", tiff(offset.astype("u8"), photometric="minisblack"), "cannot tell apart"
    )
    yield Variant("tiff f8 beyond float32", tiff(values("f8") * 1e300, photometric="minisblack"), "cannot tell apart")


def photographs() -> Iterator[Variant]:
    """8-bit gray and color: what Pillow gives, RGB."""
    for compression, channels in itertools.product((None, "zlib", "lzw", "packbits"), (1, 3)):
        array = values("u1", channels)
        data = tiff(array, compression=compression, photometric="rgb" if channels == 3 else "minisblack")
        yield as_read(f"tiff photograph {channels} {compression}", data)
    for bits in (1, 2, 4):
        array = (values("u1", bits=bits) > 0) if bits == 1 else values("u1", bits=bits)
        data = tiff(array, photometric="minisblack", **({} if bits == 1 else {"bitspersample": bits}))
        expected = reference(data).astype(int) * 255 // (2**bits - 1)
        yield Variant(f"tiff photograph {bits} bits, scaled to 0..255", data, expected)
    data = tiff(values("u1"), photometric="miniswhite")
    yield Variant("tiff photograph min-is-white, inverted", data, 255 - reference(data))
    colormap = np.random.default_rng(0).integers(0, 65536, (3, 256), np.uint16)
    data = tiff(values("u1"), photometric="palette", colormap=colormap)
    yield Variant(
        "tiff photograph palette, as colors", data, (colormap[:, reference(data)[..., 0]] >> 8).transpose(1, 2, 0)
    )
    smooth = np.linspace(0, 255, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    for photometric in ("rgb", "ycbcr"):
        data = tiff(smooth, compression="jpeg", photometric=photometric, compressionargs={"level": 95})
        with Image.open(io.BytesIO(data)) as image:
            yield Variant(f"tiff photograph JPEG {photometric}, as Pillow", data, np.array(image.convert("RGB")))
    data = tiff(values("u1", 4), photometric="separated", extrasamples=[])
    with Image.open(io.BytesIO(data)) as image:
        yield Variant("tiff photograph CMYK, as Pillow", data, np.array(image.convert("RGB")))
    rgba = values("u1", 4)
    data = tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])
    names = ("red", "green", "blue", "alpha")
    yield Variant("tiff infrared tagged as alpha: four channels", data, rgba, channels=names)
    rgba = values("u1", 4)
    rgba[..., 3] = 255 * (rgba[..., 3] > 99)
    data = tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])
    on_white = np.where(rgba[..., 3:] > 0, rgba[..., :3], 255)
    yield Variant("tiff photograph with transparency, on white", data, on_white, channels=("red", "green", "blue"))


def layouts() -> Iterator[Variant]:
    """Depth x planar x compression x predictor x tiles, BigTIFF."""
    for dtype, planar, compression in itertools.product(
        ("u1", "u2", "f4"), ("contig", "separate"), (None, "zlib", "lzw", "packbits", "lzma", "zstd")
    ):
        array = values(dtype, 3)
        data = tiff(
            array if planar == "contig" else np.ascontiguousarray(np.moveaxis(array, 2, 0)),
            photometric="rgb", planarconfig=planar, compression=compression, rowsperstrip=5,
        )  # fmt: skip
        if dtype != "u1" or planar != "contig" or compression in ("lzma", "zstd"):
            yield as_read(f"tiff RGB {dtype} {planar} {compression}", data, channels=("red", "green", "blue"))
    for dtype, compression, order in itertools.product(("u2", "i2", "u4", "f4", "f8"), ("zlib", "lzw"), "<>"):
        data = tiff(values(dtype), predictor=True, compression=compression, byteorder=order, photometric="minisblack")
        yield as_read(f"tiff {dtype} {order} {compression} predictor", data)
    for dtype, compression, planar in itertools.product(("u2", "f4"), (None, "zlib", "lzw"), ("contig", "separate")):
        array = values(dtype, 5)
        array = array if planar == "contig" else np.ascontiguousarray(np.moveaxis(array, 2, 0))
        data = tiff(array, tile=(16, 16), compression=compression, planarconfig=planar, photometric="minisblack",
                    extrasamples=[0] * 4)  # fmt: skip
        yield as_read(f"tiff 5 bands {dtype} {planar} {compression} tiles", data)
    for compression in ("jpeg2000", "png", "webp"):
        channels = 3 if compression == "webp" else 1
        options = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
        data = tiff(values("u1" if compression == "webp" else "u2", channels), compression=compression,
                    photometric="rgb" if channels == 3 else "minisblack", **options)  # fmt: skip
        if compression != "webp":
            yield as_read(f"tiff u2 {compression}", data)
    for compression in ("lerc", "jpegxl", "jpegxr"):
        array = values("u2")
        yield Variant(
            f"tiff {compression}", tiff(array, compression=compression, photometric="minisblack"), "compressed by"
        )
    for dtype, big in itertools.product(("u2", "f4", "u1"), ("<", ">")):
        data = tiff(values(dtype, 2), bigtiff=True, byteorder=big, photometric="minisblack", planarconfig="contig")
        yield as_read(f"BigTIFF {dtype} {big}", data)


def meanings() -> Iterator[Variant]:
    """Photometric, extra samples, nodata, orientation."""
    for dtype, bits in (("u2", 16), ("u2", 12), ("u4", 32)):
        options = {} if bits in (16, 32) else {"bitspersample": bits}
        data = tiff(values(dtype, bits=bits), photometric="miniswhite", **options)
        yield Variant(
            f"tiff min-is-white {bits} bits, inverted", data, kept((2**bits - 1) - reference(data).astype("f8"))
        )
    yield Variant("tiff min-is-white float", tiff(values("f4"), photometric="miniswhite"), "smallest is white")
    yield Variant("tiff CFA", tiff(values("u2"), photometric="cfa"), "mosaic of a camera")
    yield Variant("tiff CMYK 16 bits", tiff(values("u2", 4), photometric="separated", extrasamples=[]), "CMYK or inks")
    yield Variant("tiff CIELab 16 bits", tiff(values("u2", 3), photometric="cielab"), "CIELab")
    yield Variant("tiff CIELab 8 bits", tiff(values("u1", 3), photometric="cielab"), "CIELab")
    yield Variant("tiff YCbCr 16 bits", tiff(values("u2", 3), photometric="ycbcr"), "YCbCr")
    colors = np.zeros((3, 65536), np.uint16)
    yield Variant("tiff palette 16 bits", tiff(values("u2"), photometric="palette", colormap=colors), "palette")
    deep = values("u2", 4)
    names = ("red", "green", "blue", "alpha")
    data = tiff(deep, photometric="rgb", extrasamples=["unassalpha"])
    yield as_read("tiff RGBA 16 bits: four channels", data, channels=names)
    deep[..., 3] = 65535
    data = tiff(deep, photometric="rgb", extrasamples=["unassalpha"])
    yield Variant("tiff RGBA 16 bits, opaque: RGB", data, deep[..., :3], channels=names[:3])
    data = tiff(values("u2", 4), photometric="rgb", extrasamples=["unspecified"])
    yield as_read("tiff RGB and one more", data, channels=("red", "green", "blue", "3"))
    for dtype, fill, text in (
        ("u2", 0, "0"), ("i2", -9999, "-9999"), ("f4", -9999, "-9999"), ("f4", np.nan, "nan"), ("u1", 255, "255"),
        ("f4", np.float32(-3.4028234663852886e38), "-3.4028234663852886e+38"), ("f8", -1.7e308, "-1.7e308"),
    ):  # fmt: skip
        array = values(dtype, 2) // 2 if dtype[0] != "f" else values(dtype, 2)
        array[:4, :, 0] = fill
        missing = np.isnan(array) if fill != fill else array == fill
        data = tiff(array, photometric="minisblack", planarconfig="contig", extratags=[(NODATA, 2, 0, text, True)])
        yield as_read(f"tiff {dtype} GDAL_NODATA {text}", data, missing=missing)
    for fill in (-9999, -3.4028234663852886e38, np.nan, np.inf):
        array = values("f4")
        array[:4] = fill
        yield as_read(f"tiff f4 filled with {fill:g}, no tag", tiff(array, photometric="minisblack"),
                      missing=(np.arange(HEIGHT)[:, None, None] < 4) | np.zeros((HEIGHT, WIDTH, 1), bool))  # fmt: skip
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90,
    }  # fmt: skip
    for turn, upright in turns.items():
        data = tiff(values("u2"), photometric="minisblack", extratags=[(ORIENTATION, 3, 1, turn, True)])
        yield Variant(f"tiff orientation {turn}, turned", data, upright(reference(data)))


def stacks() -> Iterator[Variant]:
    """Pages, OME and ImageJ axes."""
    pages = np.stack([values("u2", bits=9 + page) for page in range(5)])  # [N H W]
    plain = tiff(pages, photometric="minisblack")
    channels_last = np.moveaxis(pages, 0, 2)
    yield Variant("tiff 5 pages", plain, "5 pages of 24×19, 1 channel (0 gray), 16 bit: channels, or slices?")
    yield Variant("tiff 5 pages as channels", plain, channels_last, Reading("channels"), tuple("01234"))
    yield Variant("tiff 5 pages, maximum", plain, pages.max(0)[..., None], Reading("max"))
    yield Variant("tiff 5 pages, mean", plain, pages.mean(0, dtype="f4")[..., None], Reading("mean"))
    yield Variant("tiff page 3 of 5", plain, pages[3][..., None], Reading("3"))
    yield Variant("tiff page 7 of 5", plain, "there is no page 7", Reading("7"))
    yield Variant("tiff 5 pages, channels 4 and 0", plain, channels_last[..., [4, 0]], Reading("channels", ("4", "0")))
    yield Variant("tiff 5 pages, channel 9", plain, "no channel '9'", Reading("channels", ("9",)))
    yield Variant("tiff 5 pages, a channel twice", plain, "twice", Reading("channels", ("1", "1")))
    shaped = tiff(pages, photometric="minisblack", metadata={})
    yield Variant("tiff 5 pages by tifffile, no axes", shaped, "5 pages of")
    yield Variant("tiff 5 pages by tifffile as channels", shaped, channels_last, Reading("channels"))
    axes = tiff(pages, photometric="minisblack", metadata={"axes": "CYX"})
    yield Variant("tiff 5 pages by tifffile, axes CYX", axes, channels_last)
    planar = tiff(pages, photometric="minisblack", planarconfig="separate")
    yield Variant("tiff 5 planar bands", planar, channels_last)
    color = np.stack([values("u1", 3), values("u1", 3)[::-1]])
    yield Variant("tiff 2 RGB pages", tiff(color, photometric="rgb"), "2 pages of 24×19, 3 channels")
    yield Variant("tiff RGB page 1 of 2", tiff(color, photometric="rgb"), color[1], Reading("1"))
    two = io.BytesIO()
    with tifffile.TiffWriter(two) as writer:
        writer.write(values("u2"), photometric="minisblack", metadata=None)
        writer.write(values("u2")[:7, :8], photometric="minisblack", metadata=None)
    yield Variant("tiff pages of two sizes", two.getvalue(), "2 images of different kinds")
    yield Variant("tiff page 1 of two sizes", two.getvalue(), values("u2")[:7, :8, None], Reading("1"))
    thumbnail = io.BytesIO()
    with tifffile.TiffWriter(thumbnail) as writer:
        writer.write(values("u2"), photometric="minisblack", metadata=None)
        writer.write(values("u2")[::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
    yield Variant("tiff with a thumbnail", thumbnail.getvalue(), values("u2")[..., None])
    yield from _ome(pages)
    yield from _imagej(pages)


def _ome(pages: np.ndarray) -> Iterator[Variant]:
    names = {"Channel": {"Name": ["DAPI", "GFP", "Cy3", "Cy5", "light"]}}
    ome = tiff(pages, ome=True, photometric="minisblack", metadata={"axes": "CYX", **names})
    last = np.moveaxis(pages, 0, 2)
    yield Variant("OME CYX", ome, last, channels=("DAPI", "GFP", "Cy3", "Cy5", "light"))
    chosen = Reading(channels=("Cy5", "0"))
    yield Variant("OME CYX, channels Cy5 0", ome, last[..., [3, 0]], chosen, ("Cy5", "DAPI"))
    slices = np.stack([pages, pages[::-1]])  # [Z C H W]
    ome = tiff(slices, ome=True, photometric="minisblack", metadata={"axes": "ZCYX", **names})
    yield Variant("OME ZCYX", ome, "2 slices of 24×19, 5 channels (0 DAPI")
    yield Variant("OME ZCYX, maximum", ome, np.moveaxis(slices.max(0), 0, 2), Reading("max"))
    yield Variant("OME ZCYX, slice 1", ome, np.moveaxis(slices[1], 0, 2), Reading("1"))
    ome = tiff(slices, ome=True, photometric="minisblack", metadata={"axes": "TCYX", **names})
    yield Variant("OME TCYX", ome, "2 time points of")
    yield Variant("OME TCYX, mean", ome, np.moveaxis(slices.mean(0, dtype="f4"), 0, 2), Reading("mean"))
    folded = np.moveaxis(slices.reshape(10, HEIGHT, WIDTH), 0, 2)
    yield Variant("OME TCYX as channels", ome, folded, Reading("channels"))
    five = np.stack([slices, slices + 1, slices + 2])  # [T Z C H W]
    ome = tiff(five, ome=True, photometric="minisblack", metadata={"axes": "TZCYX"})
    yield Variant("OME TZCYX", ome, "3 time points and 2 slices of")
    yield Variant("OME TZCYX, page 3", ome, np.moveaxis(five[1, 1], 0, 2), Reading("3"))
    yield Variant("OME TZCYX, maximum", ome, np.moveaxis(five.max((0, 1)), 0, 2), Reading("max"))


def _imagej(pages: np.ndarray) -> Iterator[Variant]:
    last = np.moveaxis(pages, 0, 2)
    composite = tiff(pages, imagej=True, photometric="minisblack", metadata={"axes": "CYX", "mode": "composite"})
    yield Variant("ImageJ CYX", composite, last)
    stack = tiff(pages, imagej=True, photometric="minisblack", metadata={"axes": "ZYX"})
    yield Variant("ImageJ ZYX", stack, "5 slices of 24×19")
    yield Variant("ImageJ ZYX, maximum", stack, pages.max(0)[..., None], Reading("max"))
    yield Variant("ImageJ ZYX, slice 4", stack, pages[4][..., None], Reading("4"))
    movie = np.stack([pages, pages + 1])
    data = tiff(movie, imagej=True, photometric="minisblack", metadata={"axes": "TCYX"})
    yield Variant("ImageJ TCYX", data, "2 time points of 24×19, 5 channels")
    yield Variant("ImageJ TCYX, time 1", data, np.moveaxis(movie[1], 0, 2), Reading("1"))


def damage() -> Iterator[Variant]:
    """Damaged and hostile files."""
    whole = tiff(values("u2"), photometric="minisblack")
    packed = tiff(values("u2"), photometric="minisblack", compression="zlib", rowsperstrip=4)
    yield Variant("tiff cut short", whole[:-100], "")
    yield Variant("tiff zlib cut short", packed[:-60], "")
    yield Variant("tiff header only", whole[:8], "")
    yield Variant("tiff empty of pages", b"II*\0\0\0\0\0", "")
    for width in (2**31 - 1, 60_000):
        place = whole.index(b"\0\1\3\0\1\0\0\0") if b"\0\1\3\0\1\0\0\0" in whole else whole.index(b"\0\1\4\0\1\0\0\0")
        claim = whole[:place] + b"\0\1\4\0\1\0\0\0" + width.to_bytes(4, "little") + whole[place + 12 :]
        place = claim.index(b"\1\1\3\0\1\0\0\0") if b"\1\1\3\0\1\0\0\0" in claim else claim.index(b"\1\1\4\0\1\0\0\0")
        claim = claim[:place] + b"\1\1\4\0\1\0\0\0" + width.to_bytes(4, "little") + claim[place + 12 :]
        yield Variant(f"tiff that claims {width} x {width}", claim, "pixels, more than 250 million")
    circle = bytearray(tiff(np.stack([values("u2")] * 2), photometric="minisblack"))
    first = int.from_bytes(circle[4:8], "little")
    after = first + 2 + 12 * int.from_bytes(circle[first : first + 2], "little")
    circle[after : after + 4] = first.to_bytes(4, "little")
    yield Variant("tiff whose pages form a circle", bytes(circle), "")


GROUPS = (types, photographs, layouts, meanings, stacks, damage)
