"""J and F: numbers of the official evaluator, and cases small enough to count by hand."""

from __future__ import annotations

import csv
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from opendino.datasets import mask_files
from opendino.datasets.mask_metrics import (
    boundary_counts,
    boundary_f,
    class_counts,
    class_iou,
    f_measure,
    jaccard,
    statistics,
)


def square(top: int, left: int, side: int = 4, size: int = 16) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


EMPTY = torch.zeros(16, 16, dtype=torch.bool)


def test_real_figures_of_the_official_evaluator(data_folder: Path, tmp_path: Path) -> None:
    pack = data_folder / "davis240_3seq.tar.gz"
    if not pack.is_file():
        pytest.skip(f"no {pack.name} in {data_folder}")
    with tarfile.open(pack) as archive:
        wanted = ("Annotations", "osvos_predictions", "expected_osvos_scores")
        members = [member for member in archive.getmembers() if any(part in member.name for part in wanted)]
        archive.extractall(tmp_path, members, filter="data")
    root = tmp_path / "davis240_3seq"
    with open(root / "expected_osvos_scores.csv") as file:
        expected = {(row["kind"], row["object"]): (float(row["J"]), float(row["F"])) for row in csv.DictReader(file)}

    def film(folder: Path) -> Tensor:
        return torch.from_numpy(np.stack([mask_files.read(path)[0] for path in sorted(folder.glob("*.png"))]))

    compared = set()
    for kind, truths in (("single", "Annotations"), ("multi", "Annotations_multi_derived")):
        figures = {}
        for folder in sorted((root / "osvos_predictions" / kind).iterdir()):
            truth, found = film(root / "DAVIS" / truths / "480p" / folder.name)[1:-1], film(folder)[1:-1]
            for number in range(1, int(truth.max()) + 1):
                pair = truth == number, found == number
                figures[f"{folder.name}_{number}"] = [statistics(score(*pair)) for score in (jaccard, boundary_f)]
        means = np.mean(list(figures.values()), axis=0)
        rows = {name: (j[0], f[0]) for name, (j, f) in figures.items()}
        rows |= dict(zip(("MEAN_OVER_OBJECTS", "RECALL", "DECAY"), means.T, strict=True))
        for name, values in rows.items():
            np.testing.assert_allclose(values, expected[kind, name], rtol=0, atol=1e-6)  # the digits recorded
            compared.add((kind, name))
    assert compared == set(expected)


def test_a_mask_and_itself() -> None:
    assert jaccard(square(3, 5), square(3, 5)) == boundary_f(square(3, 5), square(3, 5)) == 1


def test_empty_masks() -> None:
    truth, found = torch.stack([EMPTY, square(2, 2), EMPTY]), torch.stack([EMPTY, EMPTY, square(2, 2)])
    assert jaccard(truth, found).tolist() == boundary_f(truth, found).tolist() == [1, 0, 0]
    assert jaccard(EMPTY, EMPTY).dtype == boundary_f(EMPTY, EMPTY).dtype == torch.float64


def test_a_shift_by_one_pixel() -> None:
    # 4×4 squares: 12 pixels in common of 20. The diagonal of 16×16 is 22.6 px, so near is within 1 px, and all is.
    assert jaccard(square(5, 5), square(5, 6)) == 12 / 20
    assert boundary_f(square(5, 5), square(5, 6)) == 1


def test_a_shift_beyond_the_tolerance() -> None:
    # A boundary is the pixels that differ from the next to the right, below or both: for a 4×4 square at (5, 5) the
    # ring of rows and columns 4 .. 8, 16 pixels. Near the ring of one 2 px to the right lie columns 5 .. 8 of its upper
    # and its lower row, and of the pixels between the first and the last in column 8: 10 of 16. So vice versa.
    assert boundary_f(square(5, 5), square(5, 7)) == 10 / 16


def test_f_against_plain_loops() -> None:
    height, width, reach = 5, 260, 3  # the diagonal of 260 px times 0.008 is 2.08
    truth, found = torch.rand(height, width) > 0.93, torch.rand(height, width) > 0.97

    def ring(mask: Tensor) -> list[tuple[int, int]]:
        def differs(y: int, x: int) -> bool:
            y1, x1 = min(y + 1, height - 1), min(x + 1, width - 1)
            return any(bool(mask[y, x] != mask[other]) for other in ((y, x1), (y1, x), (y1, x1)))

        return [place for place in np.ndindex(height, width) if differs(*place)]

    def share(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        near = [any((y - v) ** 2 + (x - u) ** 2 <= reach**2 for v, u in others) for y, x in some]
        return sum(near) / len(near)

    precision, recall = share(ring(found), ring(truth)), share(ring(truth), ring(found))
    assert 0 < recall < precision < 1
    assert float(boundary_f(truth, found)) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)


def test_a_mask_that_touches_the_edge_has_no_boundary_there() -> None:
    whole = torch.ones(16, 16, dtype=torch.bool)
    assert boundary_f(whole, whole) == 1
    assert boundary_f(whole, square(5, 5)) == 0, "the whole image has no boundary"


def test_void_counts_for_nothing() -> None:
    truth, found = square(5, 5), square(5, 5) | square(0, 12)
    assert jaccard(truth, found) == 0.5
    assert boundary_f(truth, found) < 1
    assert jaccard(truth, found, square(0, 12)) == boundary_f(truth, found, square(0, 12)) == 1


def test_scores_of_many_masks_are_those_of_each() -> None:
    truth, found = torch.rand(2, 3, 20, 31) > 0.6, torch.rand(2, 3, 20, 31) > 0.5
    for score in (jaccard, boundary_f):
        together = score(truth, found)
        assert together.shape == (2, 3)
        for place in np.ndindex(2, 3):
            assert together[place] == score(truth[place], found[place])


def test_statistics_by_hand() -> None:
    # Nine frames have quarters 1-3, 3-5, 5-7 and 7-9, which share their ends.
    values = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    mean, recall, decay = statistics(values)
    assert (mean, recall, decay) == pytest.approx((0.5, 4 / 9, 0.8 - 0.2), abs=1e-12)
    assert statistics(torch.tensor([0.75])) == (0.75, 1.0, 0.0)
    long = torch.cat([torch.ones(200), torch.zeros(200)])  # the official evaluator counts frames in eight bits
    assert statistics(long)[2] == 1


def test_iou_of_classes_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=torch.uint8)
    found = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.uint8)
    # Seven pixels count. Class 0: 4 in the truth, 4 predicted, 3 both. Class 1: 3, 3 and 2.
    counted = class_counts(truth, found, 3)
    assert counted.tolist() == [[3, 4, 4], [2, 3, 3], [0, 0, 0]]
    iou = class_iou(counted)
    assert iou[:2].tolist() == [3 / 5, 2 / 4] and iou[2].isnan()
    assert class_iou(torch.tensor([[0, 0, 5]])).isnan(), "a class that does not occur has no IoU"
    assert class_iou(torch.tensor([[0, 5, 0]])) == 0


def test_counts_of_a_boundary_by_hand() -> None:
    truth, found = (torch.zeros(6, 12, dtype=torch.bool) for _ in range(2))
    truth[:, 6:] = found[:3, 8:] = found[3:, 9:] = True
    # The true boundary is column 5, 6 pixels. The predicted one is column 7 in rows 0 to 2 and column 8 in rows 2 to 5.
    # Within 2 px are column 7, 3 of 7 pixels; and rows 0 to 2 of column 5: row 3 is 5 ** 0.5 from the end of column 7.
    counted = boundary_counts(truth, found, 2)
    assert counted.tolist() == [3, 7, 3, 6]
    assert float(f_measure(counted)) == pytest.approx(6 / 13, abs=1e-12)  # 2PR / (P + R) of 3 / 7 and 1 / 2
    assert boundary_counts(truth, found, 3).tolist() == [7, 7, 6, 6]
    assert f_measure(torch.tensor([[0, 0, 0, 0], [0, 3, 0, 0]])).tolist() == [1, 0]
