"""Generated NumPy, DICOM and NIfTI files."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from tests.data.variants import HEIGHT, WIDTH, Variant, kept, values

from opendino.data.readers.multi_page_files import Reading


def arrays() -> Iterator[Variant]:
    """.npy and .npz."""

    def npy(array: np.ndarray, **options: Any) -> bytes:
        file = io.BytesIO()
        np.save(file, array, **options)
        return file.getvalue()

    for dtype in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "?"):
        for order, channels in itertools.product("<>", (1, 4)):
            array = values(dtype, channels).astype(np.dtype(dtype).newbyteorder(order))
            yield Variant(
                f"npy {dtype} {order} {channels} channels", npy(array), kept(array.reshape(HEIGHT, WIDTH, -1))
            )
    array = values("u2", 4)
    yield Variant("npy in Fortran's order", npy(np.asfortranarray(array)), array)
    first = np.ascontiguousarray(np.moveaxis(array, 2, 0))
    yield Variant("npy [4 H W]", npy(first), "4 pages of 24×19")
    yield Variant("npy [4 H W] as channels", npy(first), array, Reading("channels"))
    yield Variant("npy [4 H W], maximum", npy(first), array.max(2)[..., None], Reading("max"))
    many = np.stack([array, array[::-1]])
    yield Variant("npy [2 H W 4]", npy(many), "2 pages of 24×19, 4 channels")
    yield Variant("npy [2 H W 4], page 1", npy(many), many[1], Reading("1"))
    yield Variant("npy [2 4 H W], page 1", npy(np.moveaxis(many, 3, 1)), many[1], Reading("1"))
    yield Variant("npy complex", npy(values("f4").astype("c8")), "complex numbers")
    yield Variant("npy of objects", npy(np.array([[{}, 1]], object), allow_pickle=True), "objects")
    yield Variant("npy of text", npy(np.array([["a", "b"]])), "save numbers")
    yield Variant("npy of records", npy(np.zeros((4, 4), "u1,u2")), "save numbers")
    yield Variant("npy of one axis", npy(np.arange(9.0)), "shape [9]")
    yield Variant("npy empty", npy(np.zeros((0, 9))), "an image of")
    yield Variant("npy cut short", npy(array)[:-1], "cut short")
    claim = npy(array).replace(b"(19, 24, 4), }", b"(19999999,24)}")
    yield Variant("npy that claims 480 million pixels", claim, "more than 250 million")
    nan = values("f4")
    nan[3:5] = np.nan
    yield Variant("npy NaN", npy(nan), nan[..., None], missing=np.isnan(nan)[..., None])
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, array=array)
        yield Variant(f"npz one array ({save.__name__})", file.getvalue(), array)
        file = io.BytesIO()
        save(file, DAPI=array[..., 0], GFP=array[..., 1])
        yield Variant(f"npz channels ({save.__name__})", file.getvalue(), array[..., :2], channels=("DAPI", "GFP"))
    file = io.BytesIO()
    np.savez(file, a=array, b=array[:3])
    yield Variant("npz of different arrays", file.getvalue(), "several arrays")
    file = io.BytesIO()
    np.savez(file, a=np.array([{}], object))
    yield Variant("npz of objects", file.getvalue(), "objects")


def medical() -> Iterator[Variant]:
    """DICOM."""
    import pydicom
    from pydicom.pixels import apply_modality_lut

    for bits, signed in ((8, 0), (12, 0), (16, 0), (12, 1), (16, 1)):
        for slope, intercept in ((1, 0), (1, -1024), (0.5, 3)):
            data = dicom(bits, signed, RescaleSlope=slope, RescaleIntercept=intercept)
            found = pydicom.dcmread(io.BytesIO(data))
            expected = apply_modality_lut(found.pixel_array, found)
            yield Variant(
                f"dicom {bits} bits signed {signed} x {slope} + {intercept}", data, expected[..., None].astype("f4")
            )
    for bits in (8, 12, 16):
        data = dicom(bits, PhotometricInterpretation="MONOCHROME1")
        expected = (2**bits - 1) - pydicom.dcmread(io.BytesIO(data)).pixel_array.astype(int)
        yield Variant(f"dicom MONOCHROME1 {bits} bits, inverted", data, expected[..., None])
    data = dicom(12, frames=3)
    frames = pydicom.dcmread(io.BytesIO(data)).pixel_array
    yield Variant("dicom 3 frames", data, "3 time points of 24×19")
    yield Variant("dicom frame 2", data, frames[2][..., None], Reading("2"))
    yield Variant("dicom 3 frames, maximum", data, frames.max(0)[..., None], Reading("max"))
    yield Variant("dicom 3 frames as channels", data, np.moveaxis(frames, 0, 2), Reading("channels"))
    for planar in (0, 1):
        data = dicom(8, samples=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar)
        expected = pydicom.dcmread(io.BytesIO(data)).pixel_array
        yield Variant(f"dicom RGB planar {planar}", data, expected, channels=("red", "green", "blue"))
    yield Variant("dicom cut short", dicom(12)[:-80], "")
    yield Variant("dicom without pixels", dicom(12, keep_pixels=False), "without an image")
    yield Variant("dicom that claims 65535 x 65535", dicom(16, Rows=65535, Columns=65535), "more than 250 million")


def volumes() -> Iterator[Variant]:
    """NIfTI, by nibabel."""
    import nibabel

    for kind, dtype, slope in itertools.product(
        (nibabel.Nifti1Image, nibabel.Nifti2Image), ("u1", "i2", "u2", "f4"), (1, 0.5)
    ):
        data = nifti(values(dtype)[..., None], kind, slope)
        expected = np.asarray(kind.from_bytes(data).dataobj).T  # [1 H W]
        expected = kept(np.moveaxis(expected, 0, 2)) if slope == 1 else np.moveaxis(expected, 0, 2).astype("f4")
        yield Variant(f"nifti {kind.__name__} {dtype} x {slope}", data, expected)
    many = np.random.default_rng(0).integers(0, 4000, (HEIGHT, WIDTH, 3, 2)).astype("u2")  # [H W Z T]
    for packed in (False, True):
        data, what = nifti(many), "nifti.gz" if packed else "nifti"
        data = gzip.compress(data) if packed else data
        yield Variant(f"{what} 3 slices, 2 time points", data, "2 time points and 3 slices of 24×19")
        yield Variant(f"{what} slice 1 of time point 1", data, many[..., 1, 1][..., None], Reading("4"))
        yield Variant(f"{what} maximum", data, many.max((2, 3))[..., None], Reading("max"))
        yield Variant(f"{what} as channels", data, many.transpose(0, 1, 3, 2).reshape(HEIGHT, WIDTH, 6),
                      Reading("channels"))  # fmt: skip
        yield Variant(f"{what} page 6", data, "no page 6", Reading("6"))
        yield Variant(f"{what} cut short", data[:-80] if not packed else gzip.compress(nifti(many)[:-80]), "cut short",
                      Reading("0"))  # fmt: skip
        claim = bytearray(nifti(many))
        claim[42:46] = struct.pack("<hh", 32767, 32767)
        yield Variant(f"{what} that claims 32767 x 32767", gzip.compress(claim) if packed else bytes(claim),
                      "more than 250 million")  # fmt: skip
    yield Variant("nifti.gz damaged", gzip.compress(nifti(many))[:900], "", Reading("0"))
    yield Variant("nifti complex", nifti(np.zeros((HEIGHT, WIDTH, 1), "c8")), "complex numbers")
    rgb = np.zeros((HEIGHT, WIDTH, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    yield Variant("nifti RGB24", nifti(rgb), "NIfTI of colors")
    yield Variant("nifti of 5 axes", nifti(np.zeros((HEIGHT, WIDTH, 1, 1, 2), "u2")), "NIfTI of the shape [24, 19, 1,")


def nifti(pixels: np.ndarray, kind: Any = None, slope: float = 1.0) -> bytes:
    """A NIfTI file of `[H W Z …]`, with values to be multiplied by `slope`."""
    import nibabel

    image = (kind or nibabel.Nifti1Image)(np.swapaxes(pixels, 0, 1), np.eye(4), dtype=pixels.dtype)
    if slope == 1:
        return image.to_bytes()
    data = bytearray(image.to_bytes())
    offsets, form = (176, "<dd") if kind is nibabel.Nifti2Image else (112, "<ff")
    data[offsets : offsets + struct.calcsize(form)] = struct.pack(form, slope, 3.0)
    return bytes(data)


def dicom(
    bits: int, signed: int = 0, frames: int = 1, samples: int = 1, keep_pixels: bool = True, **tags: Any
) -> bytes:
    """An uncompressed DICOM file of random values."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = SecondaryCaptureImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["table"])
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = meta[2, 2].value, meta[2, 3].value, "OT"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = HEIGHT, WIDTH, samples
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = signed, "MONOCHROME2"
    if frames > 1:
        dataset.NumberOfFrames = frames
    rng = np.random.default_rng(bits + signed)
    low = -(2 ** (bits - 1)) if signed else 0
    drawn = rng.integers(low, low + 2**bits, (frames, HEIGHT, WIDTH, samples))
    kind = ("i" if signed else "u") + str(dataset.BitsAllocated // 8)
    if keep_pixels:
        dataset.PixelData = drawn.astype(kind).tobytes()
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in tags.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset)
    return file.getvalue()


GROUPS = (arrays, medical, volumes)
