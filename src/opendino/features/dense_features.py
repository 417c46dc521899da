"""Features at every place of an image of any size, window by window, and the class of every pixel from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad, unfold

from opendino.features.image_stream import check_finite
from opendino.models.global_descriptor import side_step
from opendino.models.load import Model
from opendino.models.patch_inputs import patch_px

Scorer = Callable[[Tensor], Tensor]
"""Features `[N D]` → scores of the classes `[N K]`, finite."""

NEIGHBORHOOD_PX, _PIXEL_CELL_PX = 8, 4
_MOST_BLOCKS = 4
_MARGIN_FRAC = 1 / 8  # of a window: its border sees less of the image around it, so another window decides there


@dataclass(frozen=True)
class Span:
    """One window along one axis of an image, in pixels.

    Attributes:
        start: First pixel of the window.
        begin, end: The pixels that this window decides; the spans of an axis cover it without overlap.
    """

    start: int
    begin: int
    end: int


def spans(length: int, window: int, cell: int) -> list[Span]:
    """Windows along an axis: one if it is long enough, else as many as are needed, with an overlap of a quarter.

    Args:
        length, window: In pixels, multiples of `cell`.
        cell: Side of the area of one feature, in pixels; windows start at multiples of it.
    """
    if length <= window:
        return [Span(0, 0, length)]
    margin = int(window * _MARGIN_FRAC) // cell * cell
    starts = [*range(0, length - window, window - 2 * margin), length - window]
    ends = [start + window - margin for start in starts[:-1]] + [length]
    return [Span(*each) for each in zip(starts, [0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class DenseFeatures:
    """Features of one image, window by window.

    Attributes:
        shape: Height and width of the image in pixels.
        window: Height and width of every window in pixels.
        windows: Each window: its rows, its columns, and its features float32 `[rows columns D]`.
    """

    shape: tuple[int, int]
    window: tuple[int, int]
    windows: Iterable[tuple[Span, Span, Tensor]]

    def label_maps(self, scorers: Sequence[Scorer]) -> Tensor:
        """The class with the highest score at every pixel, for each scorer; scores are upsampled bilinearly.

        Args:
            scorers: S functions of features.

        Returns:
            uint8 `[S H W]`.
        """
        maps = torch.empty(len(scorers), *self.shape, dtype=torch.uint8)
        for number, place, scores in self._scores(scorers):
            maps[number][place] = scores.argmax(0).to(torch.uint8)
        return maps

    def most_probable(self, scorer: Scorer) -> tuple[Tensor, Tensor]:
        """The label map of one scorer, uint8 `[H W]`, and the probability of each pixel's class, float32 `[H W]`.

        The probabilities are a softmax of the upsampled scores.
        """
        labels, probability = torch.empty(self.shape, dtype=torch.uint8), torch.empty(self.shape)
        for _, place, scores in self._scores([scorer]):
            best = scores.max(0)
            labels[place], probability[place] = best.indices.to(torch.uint8), (best.values - scores.logsumexp(0)).exp()
        return labels, probability

    def _scores(self, scorers: Sequence[Scorer]) -> Iterator[tuple[int, tuple[slice, slice], Tensor]]:
        """For each window and scorer: its number, the pixels that the window decides, their scores `[K h w]`."""
        for rows, columns, features in self.windows:
            own = features.flatten(0, 1)
            place = (
                slice(rows.begin, min(rows.end, self.shape[0])),
                slice(columns.begin, min(columns.end, self.shape[1])),
            )
            inside = [
                slice(each.start - span.start, each.stop - span.start)
                for each, span in zip(place, (rows, columns), strict=True)
            ]
            for number, score in enumerate(scorers):
                scores = score(own).T.unflatten(1, features.shape[:2])  # [K rows columns]
                yield number, place, interpolate(scores[None], self.window, mode="bilinear")[0][:, inside[0], inside[1]]

    def at(self, points: Tensor) -> Tensor:
        """Features at some pixels, interpolated bilinearly: linear scores of them are those of `label_maps`.

        Args:
            points: int64 `[M 2]`, row and column of one pixel or more.

        Returns:
            float32 `[M D]`.
        """
        found: Tensor | None = None
        for rows, columns, features in self.windows:
            inside = (points[:, 0] >= rows.begin) & (points[:, 0] < rows.end)
            inside &= (points[:, 1] >= columns.begin) & (points[:, 1] < columns.end)
            place = points[inside] - torch.tensor([rows.start, columns.start])
            place = (2 * place + 1) / torch.tensor(self.window) - 1  # [m 2] in -1 .. 1
            values = grid_sample(
                features.permute(2, 0, 1)[None], place.flip(1)[None, None], padding_mode="border", align_corners=False
            )
            found = torch.empty(len(points), features.shape[2]) if found is None else found
            found[inside] = values[0, :, 0].T
        assert found is not None
        return found


class DenseEncoder:
    """Features of whole images at full resolution; memory does not grow with the image.

    An image is padded at the right and bottom, by repeating its last pixels, to multiples of `cell_px`.

    Args:
        network: Pixels `[h w C]` of one window → features float32 `[rows columns D]` on the CPU.
        cell_px: Side of the area of one feature, in pixels.
        window_px: Side of the largest window, in pixels, a multiple of `cell_px`.
        least_px: Images are padded to this side at least.
    """

    def __init__(
        self, network: Callable[[np.ndarray], Tensor], cell_px: int, window_px: int, least_px: int = 1
    ) -> None:
        self._network, self._cell_px, self.window_px, self._least_px = network, cell_px, window_px, least_px

    def label_maps(self, pixels: np.ndarray, scorers: Sequence[Scorer]) -> Tensor:
        """See `DenseFeatures.label_maps`, of pixels `[H W C]` decoded as the model reads them."""
        return self._features(pixels).label_maps(scorers)

    def most_probable(self, pixels: np.ndarray, scorer: Scorer) -> tuple[Tensor, Tensor]:
        """See `DenseFeatures.most_probable`, of pixels `[H W C]` decoded as the model reads them."""
        return self._features(pixels).most_probable(scorer)

    def at(self, pixels: np.ndarray, points: Tensor) -> Tensor:
        """See `DenseFeatures.at`, of pixels `[H W C]` decoded as the model reads them."""
        return self._features(pixels).at(points)

    def keep(self, pixels: np.ndarray) -> DenseFeatures:
        """The features of an image `[H W C]`, all of them in memory, to be used again."""
        found = self._features(pixels)
        return replace(found, windows=list(found.windows))

    def _features(self, pixels: np.ndarray) -> DenseFeatures:
        """The features of an image, computed when they are read, once."""
        (height, width), side = self._padded_px(*pixels.shape[:2]), self.window_px
        return DenseFeatures(pixels.shape[:2], (min(height, side), min(width, side)), self._windows(pixels))

    def _padded_px(self, height: int, width: int) -> tuple[int, int]:
        cell = self._cell_px
        return max(self._least_px, -(-height // cell) * cell), max(self._least_px, -(-width // cell) * cell)

    def _windows(self, pixels: np.ndarray) -> Iterator[tuple[Span, Span, Tensor]]:
        """Each window of an image: its rows, its columns, and its features `[rows columns D]`."""
        height, width = self._padded_px(*pixels.shape[:2])
        missing = [(0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)]
        pixels = np.pad(pixels, missing, mode="edge")
        side = self.window_px
        for rows in spans(height, side, self._cell_px):
            for columns in spans(width, side, self._cell_px):
                features = self._network(pixels[rows.start : rows.start + side, columns.start : columns.start + side])
                check_finite(features)
                yield rows, columns, features


def usual_blocks(model: Model) -> int:
    """Number of last blocks whose patch features a head takes unless one says otherwise: 4, or all there are."""
    return min(_MOST_BLOCKS, model.backbone.num_layers)


def patch_encoder(model: Model, blocks: int) -> DenseEncoder:
    """Patch features of the last blocks of a network, joined; the last feature map of a convolutional one.

    Windows are twice as large as the images that the model was trained for, the smaller ones of a network that takes
    one size only.

    Raises:
        UserError: The features of the network are not a grid, or it has fewer blocks.
    """
    side, cell = model.preprocessing["image_px"], patch_px(model)

    def network(pixels: np.ndarray) -> Tensor:
        images = model.normalize(pixels)[None]
        layers = model.run(lambda batch: model.backbone.intermediate(batch, blocks), images)
        return torch.cat([layer.patches[0] for layer in layers], 1).unflatten(0, layers[-1].grid).float().cpu()

    if side_step(model) is None:
        return DenseEncoder(network, cell, side, least_px=side)
    return DenseEncoder(network, cell, max(1, 2 * side // cell) * cell)


def pixel_encoder(model: Model) -> DenseEncoder:
    """The baseline without a network: the pixels of a neighborhood of 8 × 8 px, every 4 px."""

    def network(pixels: np.ndarray) -> Tensor:
        images = model.normalize(pixels)[None]
        border = (NEIGHBORHOOD_PX - _PIXEL_CELL_PX) // 2
        around = unfold(pad(images, [border] * 4, mode="replicate"), NEIGHBORHOOD_PX, stride=_PIXEL_CELL_PX)
        return around[0].T.unflatten(0, (pixels.shape[0] // _PIXEL_CELL_PX, pixels.shape[1] // _PIXEL_CELL_PX))

    side = model.preprocessing["image_px"]
    return DenseEncoder(network, _PIXEL_CELL_PX, max(1, 2 * side // _PIXEL_CELL_PX) * _PIXEL_CELL_PX)
