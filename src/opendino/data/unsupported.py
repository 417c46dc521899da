"""Recognize files of unsupported formats by their content or suffix, and say how to convert them."""

from __future__ import annotations

ARCHIVE = "an archive"

_BIO = "convert it: bfconvert FILE FILE.ome.tiff (Bio-Formats), or save it as TIFF in Fiji"
_SLIDE = "cut it into tiles: vips dzsave FILE TILES --depth one --tile-size 256 --overlap 0"
_RAW = "develop it to JPEG or TIFF, e.g. with darktable-cli or dcraw -T"
_VIDEO = "write its frames as images: ffmpeg -i FILE frames/%06d.jpg; or give it as a file by its own path"
_NIFTI = "save both as one .nii file"
_HEIC = "convert it to JPEG or PNG, e.g. with heif-convert"
_SAVE = "save it as PNG, JPEG or TIFF"
_PAGES = "write its pages as images: pdftoppm -png FILE page"
_ARRAY = "save each image in it as PNG or TIFF"
_UNPACK = "give an archive by its own path, or unpack it"

_VIDEO_BRANDS = (
    b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"3gp", b"MSNV", b"dash",
)  # fmt: skip
_VIDEO_MARKS = (
    *((4, b"ftyp" + brand) for brand in _VIDEO_BRANDS), (4, b"moov"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "),
    (0, b"\0\0\1\xba"), (0, b"\0\0\1\xb3"),
)  # fmt: skip

_KINDS: tuple[tuple[str, str, tuple[str, ...], tuple[tuple[int, bytes], ...]], ...] = (
    ("a Zeiss .czi", _BIO, (".czi",), ((0, b"ZISRAWFILE"),)),
    ("a Nikon .nd2", _BIO, (".nd2",), ((0, b"\xda\xce\xbe\x0a"),)),
    ("a Leica .lif", _BIO, (".lif",), ((0, b"\x70\0\0\0"),)),
    ("a microscope file", _BIO,
     (".oib", ".oif", ".oir", ".zvi", ".vsi", ".dv", ".lof", ".stk"),
     ((0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),)),
    ("an HDF5 file", _BIO, (".h5", ".hdf5", ".ims"), ((0, b"\x89HDF\r\n\x1a\n"),)),
    ("a whole-slide image", _SLIDE, (".svs", ".ndpi", ".mrxs", ".scn", ".bif"), ()),
    ("a NIfTI header without its values", _NIFTI, (), ((344, b"ni1\0"), (4, b"ni2\0"))),
    ("HEIC", _HEIC, (".heic", ".heif"), tuple((4, b"ftyp" + brand) for brand in (b"heic", b"heix", b"hevc", b"mif1"))),
    ("JPEG XL", _SAVE, (".jxl",), ((0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL "))),
    ("a camera raw file", _RAW, (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"),
     ((8, b"CR\2\0"), (4, b"ftypcrx "), (0, b"FUJIFILMCCD-RAW"), (0, b"IIRO"), (0, b"IIU\0"))),
    ("a video", _VIDEO, (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"),
     _VIDEO_MARKS),
    ("a PDF", _PAGES, (".pdf",), ((0, b"%PDF-"),)),
    ("PostScript", _SAVE, (".eps", ".ps"), ((0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6"))),
    ("a Photoshop file", _SAVE, (".psd", ".psb"), ((0, b"8BPS"),)),
    ("SVG", _SAVE, (".svg",), ((0, b"<svg"),)),
    ("an icon", _SAVE, (".ico",), ((0, b"\0\0\1\0"),)),
    ("OpenEXR", _SAVE, (".exr",), ((0, b"v/1\x01"),)),
    ("Radiance HDR", _SAVE, (".hdr",), ((0, b"#?RADIANCE"),)),
    ("FITS", _ARRAY, (".fits", ".fit"), ((0, b"SIMPLE  ="),)),
    ("a MATLAB file", _ARRAY, (".mat",), ((0, b"MATLAB 5.0"),)),
    (ARCHIVE, _UNPACK, (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"),
     ((0, b"PK\3\4"), (0, b"\x1f\x8b"), (0, b"7z\xbc\xaf\x27\x1c"), (0, b"Rar!"), (257, b"ustar"))),
)  # fmt: skip
"""(kind, what to do, suffixes, magic numbers as (offset, bytes)); the first kind that matches is used."""


def kind_of(data: bytes) -> str:
    """The kind of a file that Pillow cannot read, and what to do about it; "" if it is unknown."""
    for kind, way, _, marks in _KINDS:
        if any(data[offset : offset + len(mark)] == mark for offset, mark in marks):
            return f"{kind}, which is not supported: {way}"
    return ""


def advice_for_suffix(suffix: str) -> tuple[str, str] | None:
    """The kind of files with this suffix, and what to do about them; None if it is unknown."""
    return next(((kind, way) for kind, way, suffixes, _ in _KINDS if suffix in suffixes), None)
