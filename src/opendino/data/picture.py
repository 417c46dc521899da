"""Make an image of any number of channels visible, as RGB.

- Red, green and blue: as they are, also among others.
- One channel: gray.
- Others: the chosen channels, or the first three, in colors that color-blind people tell apart, added and clipped at
  white: magenta and green for two; cyan, magenta and yellow for three.

Values are shown as the set's intensity maps them, so two pictures of one set can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from opendino.data.readers.decoded_image import RGB
from opendino.data.readers.multi_page_files import choose_channels

_COLORS = {
    2: np.array([[1, 0, 1], [0, 1, 0]], np.float32),
    3: np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], np.float32),
}
"""Number of channels → red, green and blue of each."""


def picture(pixels: np.ndarray, names: Sequence[str] = RGB, shown: Sequence[str] = ()) -> Image.Image:
    """Draw an image.

    Args:
        pixels: uint8, uint16, or float32 in [0, 1], `[H W C]`, mapped by the intensity of its set.
        names: Names of the C channels.
        shown: Names or numbers of one to three channels to show, in this order; default: those named red, green and
            blue if there are all, else the first three.

    Raises:
        BadImage: There is no such channel.
    """
    lower = [name.lower() for name in names]
    default = RGB if set(RGB) <= set(lower) else ()
    chosen = choose_channels(tuple(names) if shown else tuple(lower), tuple(shown) or default)[:3]
    if [names[channel].lower() for channel in chosen] == list(RGB):
        return Image.fromarray(to_uint8(pixels[..., chosen]))
    planes = to_uint8(pixels[..., chosen])  # [H W 1 to 3]
    if len(chosen) == 1:
        return Image.fromarray(np.repeat(planes, 3, axis=2))
    mixed = planes.astype(np.float32) @ _COLORS[len(chosen)]  # [H W 3]
    return Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint8, uint16, or float32 in [0, 1] → uint8, C-contiguous."""
    if pixels.dtype == np.uint16:
        pixels = (pixels.astype(np.uint32) * 255 + 32767) // 65535
    elif pixels.dtype.kind == "f":
        pixels = np.rint(pixels * 255).clip(0, 255)
    return np.ascontiguousarray(pixels, dtype=np.uint8)
