"""Batches as a pure function of their number: which images, and every random view parameter.

So the number of workers changes no batch, and a run resumes by counting from the batch where it stopped.
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
from opendino.data.labels import all_labels
from opendino.data.sampler import Windowed, epoch_order
from opendino.data.workers import stream as prefetched
from opendino.views.sampling import ViewParameters, sample_views

_MAX_BAD_IN_A_ROW = 100  # unreadable images in a row after which the dataset counts as broken
_Order = np.ndarray | Windowed
_Position = tuple[int, int, _Order]  # epoch, position in the epoch's order, that order
_LABELED_STREAM = 2**63  # epochs of the labeled images count from here: their random numbers differ from all others


@dataclass(frozen=True)
class Batch:
    """Whole images, padded to one size, with the parameters of the views to cut from them.

    Attributes:
        canvas: uint8 or uint16 `[B C H W]`, each image in the top left corner; `[B 0 H W]` until `DeviceCache.fill`
            fills it.
        sizes: int32 `[B 2]`, height and width of each image.
        labels: int64 `[B]`, index into the source's classes; -1 where unknown.
        indices: int64 `[B]`, index of each image in the source.
        draws: Name of a view group → its random parameters, from `sample_views`.
        bad: (key, reason) of the images that could not be read and were replaced by the next ones of the epoch.
    """

    canvas: Tensor
    sizes: Tensor
    labels: Tensor
    indices: Tensor
    draws: dict[str, ViewParameters]
    bad: tuple[tuple[str, str], ...] = ()

    def pin_memory(self) -> Batch:
        """The batch in pinned memory; called by `DataLoader` with `pin_memory=True`."""
        draws = {name: each.pin_memory() for name, each in self.draws.items()}
        canvas, labels, indices = (x.pin_memory() for x in (self.canvas, self.labels, self.indices))
        return replace(self, canvas=canvas, labels=labels, indices=indices, draws=draws)

    def to(self, device: torch.device) -> Batch:
        """Copy canvas, labels and view parameters to a device, without waiting for the copy."""
        draws = {name: each.to(device, non_blocking=True) for name, each in self.draws.items()}
        canvas, labels = (x.to(device, non_blocking=True) for x in (self.canvas, self.labels))
        return replace(self, canvas=canvas, labels=labels, draws=draws)


class Batches(Dataset[Batch | UserError]):
    """One rank's micro-batches of a whole run: item n is micro-batch n % micro_batches of step n // micro_batches.

    Epoch e visits the images in the order of `sampler.epoch_order`, keyed by (seed, e), and drops the incomplete batch.
    If the source has shards, the images of a step are sorted before they are split over the ranks. Each rank then reads
    from its part of the open shards only, while the set of images in a step stays the same for any number of ranks.

    If the views need labels (`ViewSpec.labeled_frac` is set), a step takes images from two streams: every micro-batch
    begins with labeled images, and continues with images of the whole set, labeled or not. Each stream continues from
    one permutation into the next without dropping images.

    Args:
        images: Decoded images.
        spec: The views whose parameters are sampled.
        seed: Seed of the run.
        batch: Images per optimizer step, over all ranks.
        micro_batches: Number of micro-batches per step on each rank (gradient accumulation).
        rank, world_size: Number of this process, and number of processes.
    """

    def __init__(
        self,
        images: DecodedImages,
        spec: ViewSpec,
        seed: int,
        batch: int,
        micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert batch % (micro_batches * world_size) == 0 and batch <= len(images)
        self.images, self.spec, self.seed = images, spec, seed
        self.batch, self.micro_batches, self.rank, self.world_size = batch, micro_batches, rank, world_size
        self.steps_per_epoch = len(images) // batch
        self._labeled = np.flatnonzero(all_labels(images.source) >= 0) if spec.labeled_frac else None
        self._orders: dict[int, tuple[int, _Order]] = {}
        self._prefetched: dict[int, tuple[int, int]] = {}

    def __getitem__(self, n: int) -> Batch | UserError:
        try:
            return self._batch(n)
        except UserError as error:  # returned, and raised by `batches`: torch would wrap it in a worker's traceback
            return error

    def _batch(self, n: int) -> Batch:
        step, micro_batch = divmod(n, self.micro_batches)
        # `requested` and `found` differ where an image is unreadable and the next one of the epoch replaces it.
        requested, epochs, found, pixels, bad = [], [], [], [], []
        for epoch, position, order in self._share(self._positions(step), micro_batch):
            actual, image = self._read(position, order, bad)
            requested.append(order[position])
            epochs.append(epoch)
            found.append(actual)
            pixels.append(image)  # [H W C], or [H W 0] from a DeviceCache
        canvas, sizes = pad_to_batch(pixels)  # [B C H W], [B 2]
        return Batch(
            canvas=canvas,
            sizes=sizes,
            labels=torch.tensor([self.images.source.label(i) for i in found]),
            indices=torch.tensor(found),
            # Keyed by the requested image: an image that replaces it gets other views than in its own turn.
            draws=sample_views(self.spec, self.seed, epochs, requested, sizes.numpy()),
            bad=tuple(bad),
        )

    def _share(self, positions: list[_Position], micro_batch: int) -> list[_Position]:
        """The part of a step's positions that this rank reads for one micro-batch."""
        if len(self.images.source.shard_sizes) == 0:
            return positions[micro_batch :: self.micro_batches][self.rank :: self.world_size]
        self._prefetch(positions)
        num_labeled = sum(epoch >= _LABELED_STREAM for epoch, _, _ in positions)
        share = []
        for stream in (positions[:num_labeled], positions[num_labeled:]):  # the labeled images stay first
            stream = sorted(stream, key=lambda each: each[2][each[1]])  # by image index, so by shard
            per_rank = len(stream) // self.world_size
            share += stream[self.rank * per_rank : (self.rank + 1) * per_rank][micro_batch :: self.micro_batches]
        return share

    def _prefetch(self, positions: list[_Position]) -> None:
        """Let the source prefetch this rank's share of the next part of the epoch; once for each part."""
        # One position of each stream, labeled and unlabeled, says which part of its order the step is in.
        for stream, (epoch, position, order) in {each[0] // _LABELED_STREAM: each for each in positions}.items():
            assert isinstance(order, Windowed)
            following = order.part_of(position) + 1
            if self._prefetched.get(stream) != (epoch, following):
                self._prefetched[stream] = epoch, following
                images = np.sort(order.part(following))
                self.images.source.prefetch(np.array_split(images, self.world_size)[self.rank])

    def _positions(self, step: int) -> list[_Position]:
        """The positions of a step, over all ranks and micro-batches; those of labeled images come first."""
        shares = self.world_size * self.micro_batches
        num_labeled = shares * self.spec.num_labeled(self.batch // shares)
        if num_labeled == 0:
            epoch, within = divmod(step, self.steps_per_epoch)
            return [(epoch, within * self.batch + i, self._order(epoch)) for i in range(self.batch)]
        assert self._labeled is not None
        positions = []
        for first, count, num in (
            (_LABELED_STREAM, num_labeled, len(self._labeled)), (0, self.batch - num_labeled, len(self.images))
        ):  # fmt: skip
            for n in range(step * count, (step + 1) * count):
                epoch, position = divmod(n, num)
                positions.append((first + epoch, position, self._order(first + epoch)))
        return positions

    def _order(self, epoch: int) -> _Order:
        """The order of an epoch; the last order of each stream is cached."""
        stream = epoch // _LABELED_STREAM
        if self._orders.get(stream, (-1,))[0] != epoch:
            members = self._labeled if stream else None
            order = epoch_order(len(self.images), self.images.source.shard_sizes, self.seed, epoch, members)
            self._orders[stream] = epoch, order
        return self._orders[stream][1]

    def _read(self, position: int, order: _Order, bad: list[tuple[str, str]]) -> tuple[int, np.ndarray]:
        """The first readable image at or after a position: its index and pixels. Unreadable ones are added to `bad`."""
        tries = min(_MAX_BAD_IN_A_ROW, len(self.images))
        for offset in range(tries):
            candidate = int(order[(position + offset) % len(order)])
            try:
                return candidate, self.images.read(candidate)
            except BadImage as error:
                bad.append((self.images.source.key(candidate), str(error)))
        key, reason = bad[-1]
        raise UserError(
            f"{tries} images in a row cannot be read, last {key}: {reason}",
            "Check that the dataset holds intact images",
        )


def batches(dataset: Batches, first: int, last: int, workers: int, pin: bool) -> Generator[Batch, None, None]:
    """Iterate over batches first … last - 1 of a dataset, prefetched by worker processes.

    Args:
        dataset: The batches of the run.
        first, last: The first batch, and one past the last.
        workers: Number of worker processes; 0 to read in this process.
        pin: Whether to copy batches to pinned memory, for a fast transfer to a GPU.

    Raises:
        UserError: Too many images in a row are unreadable, or the workers keep dying.
    """
    for item in prefetched(dataset, dataset.images.in_flight, first, last, workers, pin):
        if isinstance(item, UserError):
            raise item
        yield item


def pad_to_batch(pixels: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pad images of any size with zeros, on the right and at the bottom, into one batch.

    Args:
        pixels: uint8 or uint16 `[H W C]` each.

    Returns:
        The canvas, `[B C H' W']`, H' and W' multiples of 32; and the sizes of the images, int32 `[B 2]`. The
        canvas is channels-last in memory, as decoded: the device is faster at changing the layout.
    """
    sizes = np.array([image.shape[:2] for image in pixels], np.int32)
    height, width = (-(-int(side) // 32) * 32 for side in sizes.max(0))
    canvas = np.empty((len(pixels), height, width, pixels[0].shape[2]), pixels[0].dtype)
    for row, image in zip(canvas, pixels, strict=True):
        rows, columns = image.shape[:2]
        row[:rows, :columns], row[:rows, columns:], row[rows:] = image, 0, 0
    return torch.from_numpy(canvas).permute(0, 3, 1, 2), torch.from_numpy(sizes)  # [B C H' W'], [B 2]
