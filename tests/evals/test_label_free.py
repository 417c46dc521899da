"""Label-free measures: known values on features of known structure; the checkpoints of a run."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.factories import dino_run

import opendino
from opendino.cli import main
from opendino.core.errors import UsageError, UserError
from opendino.evals.label_free import (
    MEASURES,
    Config,
    alignment,
    alpha_req,
    effective_rank,
    evaluate,
    lidar,
    spearman,
    uniformity,
)
from opendino.features import measure_trust as trust
from opendino.views.settings import changed


def orthogonal(rows: int, columns: int) -> torch.Tensor:
    """Orthonormal columns of zero mean."""
    x = torch.randn(rows, columns + 1, dtype=torch.float64)
    x[:, 0] = 1
    return torch.linalg.qr(x).Q[:, 1:]


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(orthogonal(50, 7)) == pytest.approx(7, abs=1e-9)
    assert effective_rank(torch.ones(20, 5)) == pytest.approx(1, abs=1e-6)
    assert math.isnan(effective_rank(torch.full((3, 2), torch.nan)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_is_the_exponent_of_the_spectrum(alpha: float) -> None:
    strength = torch.arange(1, 31, dtype=torch.float64) ** (-alpha / 2)
    turned = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    assert alpha_req(orthogonal(200, 30) * strength @ turned + 5) == pytest.approx(alpha, abs=1e-6)
    assert math.isnan(alpha_req(torch.ones(20, 5)))


def test_uniformity_is_the_mean_over_pairs() -> None:
    x = torch.nn.functional.normalize(torch.randn(40, 6, dtype=torch.float64))
    pairs = [math.exp(-2 * float(((x[i] - x[j]) ** 2).sum())) for i in range(40) for j in range(40) if i != j]
    assert uniformity(3 * x, chunk=7) == pytest.approx(math.log(np.mean(pairs)), abs=1e-9)
    assert uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-12)


def test_alignment_is_the_mean_over_views() -> None:
    x = torch.randn(3, 20, 5, dtype=torch.float64)
    unit = torch.nn.functional.normalize(x, dim=2)
    pairs = [((unit[i] - unit[j]) ** 2).sum(1).mean() for i in range(3) for j in range(3) if i != j]
    assert alignment(x) == pytest.approx(float(np.mean(pairs)), abs=1e-12)
    assert alignment(x[:1].expand(4, -1, -1)) == pytest.approx(0, abs=1e-12)


def test_lidar_counts_the_directions_that_tell_images_apart() -> None:
    # Eight dimensions of noise between views; images differ in three of them, equally and by far more.
    noise = 0.01 * torch.randn(4, 500, 8, dtype=torch.float64)
    images = torch.zeros(500, 8, dtype=torch.float64)
    images[:, :3] = orthogonal(500, 3) * 500**0.5
    found = lidar(images + noise)
    assert found == pytest.approx(3, abs=0.1)  # sampled noise tilts the three eigenvalues a little
    # Where images differ no more than views do, and few views are averaged, noise is still no dimension.
    weak = images + torch.randn(2, 500, 8, dtype=torch.float64)
    assert lidar(weak) == pytest.approx(3, abs=1)  # of 500 images; without subtracting 1/V it is near 7
    assert lidar(1000 * (images + noise)) == pytest.approx(found, rel=1e-9)
    assert lidar(images + noise) > lidar(images * torch.tensor([1, 0.1, 0.1, 0, 0, 0, 0, 0]) + noise)
    assert math.isnan(lidar(torch.randn(2, 5, 8)))  # five differences cannot fill eight dimensions
    assert math.isnan(lidar(torch.ones(4, 50, 8)))


def test_spearman_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(0).integers(0, 6, (2, 25)).astype(float)
    assert spearman([*a, 1.0, None], [*b, None, 2.0]) == pytest.approx(float(stats.spearmanr(a, b)[0]), abs=1e-12)
    assert spearman([1, 2, 3], [10, 20, 21]) == pytest.approx(1, abs=1e-12)
    assert spearman([1, 2], [1, 2]) is None and spearman([1, 1, 1], [1, 2, 3]) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    method = replace(dino_run(out).method, out_dim=16)
    config = dino_run(
        out, "toy:textures?n=60&size=16", method=method, val=None, backbone="conv4", backbone_options={"width": 2},
        views=changed(dino_run(out).views, {"local.number": 1, "global.size": 16}),
        drop_path=0.0, steps=4, batch=20, eval_images=60, eval_every="1", checkpoint_every="1", keep_checkpoints=9,
    )  # fmt: skip
    opendino.train(config)
    return out


def test_one_model_on_the_images_it_was_trained_on(run: Path) -> None:
    fields = evaluate(Config(str(run), images=40, views=2, workers=1, device="cpu")).fields
    assert all(isinstance(fields[name], float) for name in MEASURES)
    assert (fields["num_images"], fields["num_unreadable"]) == (40, 0)
    without = evaluate(Config(str(run), images=40, views=0, device="cpu")).fields
    assert without["lidar"] is None and without["effective_rank"] == fields["effective_rank"]


def test_more_workers_than_cores_are_no_reason_to_warn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    fields = evaluate(Config(str(run), images=12, views=2, workers=3, device="cpu")).fields  # warnings are errors
    assert isinstance(fields["alignment"], float)


def test_the_checkpoints_of_a_run_are_ranked_and_compared_with_its_own_knn(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "label-free", str(run), "--images", "60", "--views", "2", "--workers", "1", "--device", "cpu"]
    assert main([*words, "--all-checkpoints", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    rows = fields["checkpoints"]
    assert sorted(row["step"] for row in rows) == [0, 1, 2, 3, 4] and fields["num_compared"] == 5
    assert [row["effective_rank"] for row in rows] == sorted((row["effective_rank"] for row in rows), reverse=True)
    assert fields["best"]["effective_rank"] == rows[0]["step"]
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    knn = {row["step"]: row["knn"]["teacher"] for row in told if "knn" in row}
    assert {row["step"]: row["knn"] for row in rows} == knn
    assert fields["spearman"]["uniformity"] == spearman(
        [-row["uniformity"] for row in rows], [knn[r["step"]] for r in rows]
    )
    assert main([*words, "--json"]) == 0  # the last checkpoint is the model
    last = json.loads(capsys.readouterr().out)
    assert next(row for row in rows if row["step"] == 4)["alpha_req"] == pytest.approx(last["alpha_req"], rel=1e-9)


def test_the_student_has_checkpoints_too(run: Path) -> None:
    reports = [
        evaluate(Config(str(run), which=which, all_checkpoints=True, images=30, views=0, device="cpu")).fields
        for which in ("teacher", "student")
    ]
    first, second = ({row["step"]: row["effective_rank"] for row in fields["checkpoints"]} for fields in reports)
    assert first[0] == second[0] and first[4] != second[4]


def test_a_folder_without_checkpoints_is_one_line(run: Path, tmp_path: Path) -> None:
    for name in ("backbone.safetensors", "backbone_student.safetensors", "backbone.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(UserError, match="holds no checkpoints"):
        evaluate(Config(str(tmp_path), all_checkpoints=True, device="cpu"))
    broken = tmp_path / "checkpoints" / "step_00000001"
    broken.mkdir(parents=True)
    (broken / "tensors.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot be read"):
        evaluate(Config(str(tmp_path), all_checkpoints=True, images=20, device="cpu"))


@pytest.mark.parametrize("change", [{"images": 1}, {"views": 1}, {"views": -2}, {"workers": 0}, {"seed": -1}])
def test_values_out_of_range_are_wrong_usage(change: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Config("model", **change)  # type: ignore[arg-type]


def test_a_measure_says_how_often_it_was_right() -> None:
    for name in (*MEASURES, "crop_match"):
        told = re.fullmatch(r"as k-NN in (\d+)% of \d+ runs, (\d+)% of \d+ pairs of runs", trust.of(name))
        assert told and all(0 <= int(share) <= 100 for share in told.groups())
    assert trust.of("another") == "" and "runs of" in trust.source()
