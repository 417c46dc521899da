"""Names of the channels of a TIFF, from OME-XML, GDAL metadata, or its color space."""

from __future__ import annotations

from xml.etree import ElementTree

from tifffile import TiffFile, TiffPage

from opendino.data.readers.decoded_image import GRAY, RGB, clean_name, numbered

_GDAL_METADATA = 42112
_MAX_XML = 2**22


def channel_names(file: TiffFile, page: TiffPage, count: int) -> tuple[str, ...]:
    """One name per channel, all different: from the file where it has `count` names, else colors, else numbers.

    Channels that the file tags as alpha are called "alpha".
    """
    found = _ome(file) or _gdal(page)
    if len(found) == count and len(set(found)) == count:
        return found
    if count == page.samplesperpixel and page.photometric in (2, 6):
        base = RGB
    elif count == 1:
        base = GRAY
    else:
        base = numbered(count)[: count - len(page.extrasamples)] if count == page.samplesperpixel else numbered(count)
    rest = [str(number) for number in range(len(base), count)]
    if count == page.samplesperpixel and page.extrasamples and int(page.extrasamples[-1]) in (1, 2):
        rest[-1:] = ["alpha"]
    return (*base, *rest)


def _ome(file: TiffFile) -> tuple[str, ...]:
    """Names of the channels of the first image in OME-XML; empty if one has no name."""
    text = file.ome_metadata if file.is_ome else None
    if not text or len(text) > _MAX_XML:
        return ()
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return ()
    pixels = root.find(".//{*}Pixels")
    names = (
        [clean_name(channel.get("Name", "")) for channel in pixels.findall("{*}Channel")] if pixels is not None else []
    )
    return tuple(names) if all(names) else ()


def _gdal(page: TiffPage) -> tuple[str, ...]:
    """Descriptions of the bands in GDAL's metadata; empty if one has none."""
    text = page.tags.valueof(_GDAL_METADATA)
    if not isinstance(text, str) or len(text) > _MAX_XML:
        return ()
    try:
        root = ElementTree.fromstring(text.strip("\0 "))
    except ElementTree.ParseError:
        return ()
    found = {
        item.get("sample", ""): clean_name(item.text or "")
        for item in root.iter("Item")
        if item.get("role") == "description"
    }
    names = [found.get(str(band), "") for band in range(page.samplesperpixel)]
    return tuple(names) if all(names) else ()
