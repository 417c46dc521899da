"""Figures of a set of images: a case by hand, and the standard error."""

from __future__ import annotations

import math

import pytest
import torch

from opendino.features.segmentation_scores import counts, scores


def test_figures_of_two_images_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=torch.uint8)
    found = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.uint8)
    one, other = counts(truth, found, 3, 0), counts(truth, truth.clamp(max=1), 3, 0)
    assert one[:, :3].tolist() == [[3, 4, 4], [2, 3, 3], [0, 0, 0]]
    both = scores(torch.stack([one, other])[None], torch.ones(1, 2, dtype=torch.bool))
    # Class 0: 7 of 8 + 8 - 7. Class 1: 5 of 6 + 6 - 5. Pixels: 12 of 14.
    assert both.iou == [pytest.approx(700 / 9), pytest.approx(500 / 7), None]
    assert both.miou == pytest.approx((700 / 9 + 500 / 7) / 2)
    assert both.pixel_accuracy == pytest.approx(1200 / 14)
    assert both.error and both.error > 0
    perfect = scores(other[None, None], torch.ones(1, 1, dtype=torch.bool))
    assert (perfect.miou, perfect.error, perfect.pixel_accuracy, perfect.boundary_f) == (100, None, 100, 100)


def test_void_pixels_are_no_boundary_of_the_prediction() -> None:
    truth = torch.zeros(8, 8, dtype=torch.uint8)
    truth[:, 4:] = 1
    truth[2:4, 0:2] = 255
    found = truth.clone()
    found[2:4, 0:2] = 1
    assert scores(counts(truth, found, 2, 0)[None, None], torch.ones(1, 1, dtype=torch.bool)).boundary_f == 100


def test_an_image_that_a_head_has_seen_does_not_count() -> None:
    right, wrong = (torch.tensor([[9, 9, 9], [9, 9, 9]]), torch.tensor([[0, 9, 9], [0, 9, 9]]))
    counted = torch.zeros(2, 2, 2, 7, dtype=torch.int64)
    counted[0, :, :, :3], counted[1, :, :, :3] = torch.stack([right, wrong]), torch.stack([wrong, right])
    measured = torch.tensor([[True, False], [False, True]])
    assert scores(counted, measured).miou == 100
    assert scores(counted, ~measured).miou == 0


def test_the_standard_error_is_that_of_repeated_sets() -> None:
    """Images with a share of right pixels of 0.5 ± 0.2: mIoU of n images differs from set to set by so much."""

    def made(generator: torch.Generator, num_images: int) -> torch.Tensor:
        hits = (100 + 40 * torch.randn(num_images, 2, generator=generator)).round().clamp(0, 200).long()
        counted = torch.zeros(1, num_images, 2, 7, dtype=torch.int64)
        counted[0, :, :, 0], counted[0, :, :, 1], counted[0, :, :, 2] = hits, 200, 200
        return counted

    generator, ones = torch.Generator().manual_seed(0), torch.ones(1, 40, dtype=torch.bool)
    found = [scores(made(generator, 40), ones) for _ in range(60)]
    spread = float(torch.tensor([each.miou for each in found]).std())
    assert math.isclose(sum(each.error or 0 for each in found) / 60, spread, rel_tol=0.25)
