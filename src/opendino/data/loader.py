"""Batches as a pure function of their number: which images, and every random choice made about them.

So the number of workers changes nothing, and a run resumes by starting to count where it stopped.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from opendino.core.errors import BadImage, UserError
from opendino.core.types import ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.labels import known
from opendino.data.sampler import Windowed, epoch_order
from opendino.data.workers import stream as made_ahead
from opendino.views.sampling import ViewParameters, sample_views

_TRIES = 100  # unreadable images in a row before a set counts as broken
_Order = np.ndarray | Windowed
_Place = tuple[int, int, _Order]  # epoch, place in the epoch's order, that order
_LABELED = 2**63  # passes over the labeled images are counted from here, so that their chance is their own


@dataclass(frozen=True)
class Batch:
    """Whole images and what is to be done with them.

    Attributes:
        canvas: uint8 `[B 3 H W]`, each image in the top left corner; `[B 0 H W]` where `Resident.fill` is to come.
        sizes: int32 `[B 2]`, its true height and width.
        labels: int64 `[B]`, -1 where unknown.
        indices: int64 `[B]`, positions in the source.
        draws: The random choices for every view.
        bad: (key, reason) of images that could not be read and were replaced by their successors in the epoch.
    """

    canvas: Tensor
    sizes: Tensor
    labels: Tensor
    indices: Tensor
    draws: dict[str, ViewParameters]
    bad: tuple[tuple[str, str], ...] = ()

    def pin_memory(self) -> Batch:
        """Called by the loader where the batch goes on to a GPU."""
        draws = {name: each.pin_memory() for name, each in self.draws.items()}
        canvas, labels, indices = (x.pin_memory() for x in (self.canvas, self.labels, self.indices))
        return replace(self, canvas=canvas, labels=labels, indices=indices, draws=draws)

    def to(self, device: torch.device) -> Batch:
        """What the device needs, sent without waiting."""
        draws = {name: each.to(device, non_blocking=True) for name, each in self.draws.items()}
        canvas, labels = (x.to(device, non_blocking=True) for x in (self.canvas, self.labels))
        return replace(self, canvas=canvas, labels=labels, draws=draws)


class Batches(Dataset[Batch | UserError]):
    """The batches of a whole run, in order; item n is part n % micro_batches of optimizer step n // micro_batches.

    Epoch e visits the images in the order of `order.visits`, keyed by (seed, e), and drops what does not fill a batch.
    Where images lie in blocks, a step's images are sorted before the ranks share them out: each rank then reads from
    its part of the open blocks alone, though the images of the step are the same for any number of ranks.

    Where the views ask for labels (`ViewSpec.labeled_frac`), a step has two streams: images with a label come first
    in every part, then images of the whole set, labels or not. Each stream goes from one permutation into the next.

    Args:
        images: Decoded images.
        spec: The views to draw.
        seed: Of the run.
        batch: Images per optimizer step, over all ranks.
        micro_batches: Parts a rank's share of a step is worked off in.
        rank, world: This process and their number.
    """

    def __init__(
        self,
        images: DecodedImages,
        spec: ViewSpec,
        seed: int,
        batch: int,
        micro_batches: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert batch % (micro_batches * world) == 0 and batch <= len(images)
        self.images, self.spec, self.seed = images, spec, seed
        self.batch, self.micro_batches, self.rank, self.world = batch, micro_batches, rank, world
        self.steps_per_epoch = len(images) // batch
        self._labeled = np.flatnonzero(known(images.source) >= 0) if spec.labeled_frac else None
        self._orders: dict[int, tuple[int, _Order]] = {}
        self._hinted: dict[int, tuple[int, int]] = {}

    def __getitem__(self, n: int) -> Batch | UserError:
        try:
            return self._batch(n)
        except UserError as error:  # raised where it is read: torch would wrap it into a worker's traceback
            return error

    def _batch(self, n: int) -> Batch:
        step, part = divmod(n, self.micro_batches)
        asked, epochs, found, pixels, bad = [], [], [], [], []
        for epoch, place, order in self._share(self._places(step), part):
            actual, image = self._read(place, order, bad)
            asked.append(order[place])
            epochs.append(epoch)
            found.append(actual)
            pixels.append(image)
        canvas, sizes = pad_to_batch(pixels)
        return Batch(
            canvas=canvas,
            sizes=sizes,
            labels=torch.tensor([self.images.source.label(i) for i in found]),
            indices=torch.tensor(found),
            # Keyed by the image asked for, so that a stand-in is drawn unlike its own turn in the epoch.
            draws=sample_views(self.spec, self.seed, epochs, asked, sizes.numpy()),
            bad=tuple(bad),
        )

    def _share(self, places: list[_Place], part: int) -> list[_Place]:
        """Which of a step's places this rank works off in a part of it."""
        if len(self.images.source.blocks) == 0:
            return places[part :: self.micro_batches][self.rank :: self.world]
        self._hint(places)
        num_labeled = sum(epoch >= _LABELED for epoch, _, _ in places)
        share = []
        for stream in (places[:num_labeled], places[num_labeled:]):  # the labeled ones stay first
            stream = sorted(stream, key=lambda each: each[2][each[1]])
            each = len(stream) // self.world
            share += stream[self.rank * each : (self.rank + 1) * each][part :: self.micro_batches]
        return share

    def _hint(self, places: list[_Place]) -> None:
        """Let the source prepare for this rank's share of the part of the epoch that follows, once for each."""
        for stream, (epoch, place, order) in {place[0] // _LABELED: place for place in places}.items():
            assert isinstance(order, Windowed)
            following = order.part_of(place) + 1
            if self._hinted.get(stream) != (epoch, following):
                self._hinted[stream] = epoch, following
                images = np.sort(order.part(following))
                self.images.source.prefetch(np.array_split(images, self.world)[self.rank])

    def _places(self, step: int) -> list[_Place]:
        """A step's places over all ranks and parts."""
        shares = self.world * self.micro_batches
        num_labeled = shares * self.spec.num_labeled(self.batch // shares)
        if num_labeled == 0:
            epoch, within = divmod(step, self.steps_per_epoch)
            return [(epoch, within * self.batch + i, self._order(epoch)) for i in range(self.batch)]
        assert self._labeled is not None
        places = []
        for first, count, num in (
            (_LABELED, num_labeled, len(self._labeled)), (0, self.batch - num_labeled, len(self.images))
        ):  # fmt: skip
            for n in range(step * count, (step + 1) * count):
                epoch, place = divmod(n, num)
                places.append((first + epoch, place, self._order(first + epoch)))
        return places

    def _order(self, epoch: int) -> _Order:
        """The images of an epoch in its order; the last one of each stream is remembered."""
        stream = epoch // _LABELED
        if self._orders.get(stream, (-1,))[0] != epoch:
            members = self._labeled if stream else None
            order = epoch_order(len(self.images), self.images.source.blocks, self.seed, epoch, members)
            self._orders[stream] = epoch, order
        return self._orders[stream][1]

    def _read(self, place: int, order: _Order, bad: list[tuple[str, str]]) -> tuple[int, np.ndarray]:
        tries = min(_TRIES, len(self.images))
        for offset in range(tries):
            candidate = int(order[(place + offset) % len(order)])
            try:
                return candidate, self.images.read(candidate)
            except BadImage as error:
                bad.append((self.images.source.key(candidate), str(error)))
        key, reason = bad[-1]
        raise UserError(
            f"{tries} images in a row cannot be read, last {key}: {reason}",
            "Check that the folder holds intact images",
        )


def batches(dataset: Batches, first: int, last: int, workers: int, pin: bool) -> Generator[Batch, None, None]:
    """Items first … last - 1, made ahead by `workers` processes (0: by this one).

    Raises:
        UserError: The set cannot be read.
    """
    for item in made_ahead(dataset, dataset.images.in_flight, first, last, workers, pin):
        if isinstance(item, UserError):
            raise item
        yield item


def pad_to_batch(pixels: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Images of any size `[H W C]` on one canvas `[B C H' W']`, its sides multiples of 32, and their sizes `[B 2]`.

    In memory the channels come last, as the decoder leaves them: to part them is the device's work.
    """
    sizes = np.array([image.shape[:2] for image in pixels], np.int32)
    height, width = (-(-int(side) // 32) * 32 for side in sizes.max(0))
    canvas = np.empty((len(pixels), height, width, pixels[0].shape[2]), np.uint8)
    for row, image in zip(canvas, pixels, strict=True):
        rows, columns = image.shape[:2]
        row[:rows, :columns], row[:rows, columns:], row[rows:] = image, 0, 0
    return torch.from_numpy(canvas).permute(0, 3, 1, 2), torch.from_numpy(sizes)
