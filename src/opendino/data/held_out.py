"""Images kept out of training. Their names decide, so a folder that grows keeps the same ones out every time."""

from __future__ import annotations

import numpy as np

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.channel_images import ChannelImages
from opendino.data.fingerprint import key_digests
from opendino.data.labels import all_labels
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


def training_images(source: Source, frac: float, labeled_only: bool = False) -> Source:
    """The images of a source that are not held out; the source itself if all are to be used.

    Args:
        source: The images.
        frac: Fraction to hold out.
        labeled_only: Leave out images without a label.

    Raises:
        UserError: None is left.
    """
    usable = all_labels(source) >= 0 if labeled_only else np.ones(len(source), bool)
    if not frac and usable.all():
        return source
    kept = np.flatnonzero(usable & ~is_held_out(key_digests(source), frac))
    num, kind = int(usable.sum()), "labeled images" if labeled_only else "images"
    if not num:
        raise UserError(f"None of the {len(source):,} images has a label", "Give a CSV of path,class: --labels FILE")
    if not len(kept):
        raise UserError(f"--hold-out {frac:g} leaves no image of {num:,} to train on", "Use a smaller number")
    if num < len(source):
        log.say(f"{len(source) - num:,} of {len(source):,} images have no label and are not used")
    if frac:
        log.say(f"{num - len(kept):,} of {num:,} {kind} are kept out of training (hold_out = {frac:g})")
    return Subset(source, kept.tolist())


def held_out_labeled(source: Source, frac: float) -> Source | None:
    """The labeled images that `training_images` keeps out; None if there are none.

    Args:
        source: All images, or the training images of a run.
        frac: Fraction that is held out.
    """
    whole = with_held_out(source)
    found = np.flatnonzero(is_held_out(key_digests(whole), frac) & (all_labels(whole) >= 0)) if frac else ()
    return Subset(whole, [int(index) for index in found]) if len(found) else None


def with_held_out(source: Source) -> Source:
    """All whole images that a run's training images were taken from, see `training_images` and `ChannelImages`."""
    source = source.source if isinstance(source, ChannelImages) else source
    return source.source if isinstance(source, Subset) else source
