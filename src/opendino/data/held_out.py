"""Images kept out of training. Their names decide, so a folder that grows keeps the same ones out every time."""

from __future__ import annotations

import numpy as np

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.channel_images import ChannelImages
from opendino.data.fingerprint import key_digests
from opendino.data.subset import Subset


def is_held_out(digests: np.ndarray, frac: float) -> np.ndarray:
    """Which images are kept out of training; those of a smaller fraction are among those of a larger one.

    Args:
        digests: uint64 `[N]`, from `fingerprint.key_digests`.
        frac: Expected fraction of the images, 0 to 1.

    Returns:
        bool `[N]`.
    """
    return digests / 2.0**64 < frac


def training_images(source: Source, frac: float) -> Source:
    """The images of a source that are not held out; the source itself if `frac` is 0.

    Raises:
        UserError: All images are held out.
    """
    if not frac:
        return source
    kept = np.flatnonzero(~is_held_out(key_digests(source), frac))
    if not len(kept):
        raise UserError(f"--hold-out {frac:g} leaves no image of {len(source):,} to train on", "Use a smaller number")
    log.say(f"{len(source) - len(kept):,} of {len(source):,} images are kept out of training (hold_out = {frac:g})")
    return Subset(source, kept.tolist())


def with_held_out(source: Source) -> Source:
    """All whole images that a run's training images were taken from, see `training_images` and `ChannelImages`."""
    source = source.source if isinstance(source, ChannelImages) else source
    return source.source if isinstance(source, Subset) else source
