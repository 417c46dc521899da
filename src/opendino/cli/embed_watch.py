"""`opendino embed --watch`: add new images to a .lance table as they arrive, and say whether they differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from opendino.cli.drift_command import significance
from opendino.core import log
from opendino.core.errors import UserError
from opendino.embeddings.lance_table import LanceTable, Updated
from opendino.engine.interrupt import Interrupt
from opendino.features.neighbor_test import neighbor_test

LEAST = 20
"""New images from which they are compared with the others."""
_COMPARED = 5000  # of the others at most, at random: all pairs are compared


def rounds(update: Callable[[], Updated], name: str, seconds: float) -> list[str]:
    """Update a table until Ctrl-C or SIGTERM, and say after each round what was new.

    Args:
        update: Adds the images that the table lacks.
        name: Path of the table.
        seconds: Pause between two rounds.

    Returns:
        The keys of all images added. Those since the last commit of an interrupted round are added by the next command.
    """
    added, waiting = list[str](), list[str]()
    with Interrupt():
        try:
            log.say(f"Waiting for new images every {seconds:g} seconds   (Ctrl-C ends it)")
            for done in _every(seconds, update):
                added += done.new
                waiting += done.new
                if done.new:
                    missing = f"; compared when there are {LEAST}" if len(waiting) < LEAST else ""
                    log.say(f"{time.strftime('%H:%M:%S')}  {len(done.new):,} new{_unusable(done)}{missing}")
                if len(waiting) >= LEAST:
                    log.say(difference(name, waiting))
                    waiting = []
        except KeyboardInterrupt:
            pass
    return added


def _every(seconds: float, update: Callable[[], Updated]) -> Iterator[Updated]:
    while True:
        time.sleep(seconds)
        try:
            yield update()
        except UserError as error:  # the folder cannot be reached or is empty; it may be back in the next round
            log.warn(f"{error}; trying again in {seconds:g} seconds")


def _unusable(done: Updated) -> str:
    return f", {len(done.bad):,} unusable, e.g. {': '.join(done.bad[0])}" if done.bad else ""


def difference(name: str, new: list[str]) -> str:
    """Whether some images of a table differ from its others, one sentence; see `opendino drift`."""
    keys, vectors = LanceTable(name).normalized()
    chosen = set(new)
    is_new = torch.tensor([key in chosen for key in keys])
    others = vectors[~is_new]
    if len(others) < LEAST:
        return f"{len(others):,} images before the {len(new):,} new ones are too few for a comparison"
    others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:_COMPARED]]
    found = neighbor_test(others, vectors[is_new])
    return (
        f"the {len(new):,} new images and {len(others):,} before: {significance(found.p, 1000, 'they')}; of the "
        f"neighbors of the new ones {found.own_frac[1]:.1%} are new (no difference: {found.expected_frac[1]:.1%})"
    )
