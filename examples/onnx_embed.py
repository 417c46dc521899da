"""How similar photographs are to the first, from an ONNX file alone: python onnx_embed.py model.onnx PHOTO PHOTO ...

`opendino export RUN --to onnx --photographs True --out model.onnx` writes the file, which resizes, crops and normalizes
photographs itself. This needs numpy, onnxruntime and Pillow, neither PyTorch nor opendino.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def vectors(model: str, photographs: list[str]) -> np.ndarray:
    """Features of photographs, float32 `[M D]`, not L2-normalized."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows = []
    for path in photographs:
        with Image.open(path) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # uint8 [H W 3], of any size
        rows += [*session.run(["cls"], {"images": pixels[None]})[0]]
    return np.stack(rows)


def cosines(found: np.ndarray) -> np.ndarray:
    """Cosine similarity of each row to the first, float32 `[M]`."""
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit @ unit[0]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} model.onnx PHOTO PHOTO ...")
    for path, cosine in zip(sys.argv[2:], cosines(vectors(sys.argv[1], sys.argv[2:])), strict=True):
        print(f"{cosine:.4f} {path}")
