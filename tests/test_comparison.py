"""Continued runs: where they start, what they keep out, and what they say about the run before."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import checkpoint_tensors, difference, dino_run

import opendino
from opendino import comparison, existing_runs
from opendino.cli import main
from opendino.cli.train_command import report
from opendino.core.errors import UsageError, UserError
from opendino.data.fingerprint import key_digests
from opendino.data.held_out import is_held_out
from opendino.data.open_source import open_source
from opendino.features.paired_change import change


def camera(folder: Path, numbers: range) -> Path:
    """Toy images as files, in a sub-folder for each of two classes."""
    source = open_source("toy:textures?n=200&size=32")
    for number in numbers:
        path = folder / f"{'ab'[number % 2]}/{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(number)).save(path)
    return folder


@pytest.fixture(scope="module")
def monday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("monday")
    opendino.train(dino_run(root / "run", data=str(camera(root / "camera", range(40))), val=None, batch=8))
    return root


@pytest.fixture
def grown(monday: Path, tmp_path: Path) -> tuple[str, str]:
    """A finished run, and its folder after it has grown from 40 to 80 images."""
    shutil.copytree(monday, tmp_path / "monday")
    run, folder = tmp_path / "monday/run", tmp_path / "monday/camera"
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(monday), str(tmp_path / "monday")))
    return str(run), str(camera(folder, range(40, 80)))


def test_a_continued_run_starts_from_all_networks_and_keeps_images_out(grown: tuple[str, str], tmp_path: Path) -> None:
    run, folder = grown
    result = opendino.continue_run(run, out=str(tmp_path / "new"))
    first, last = checkpoint_tensors(tmp_path / "new", 0), checkpoint_tensors(Path(run), 10)
    assert all(torch.equal(first[key], last[key]) for key in last if key.startswith("method."))
    assert result.steps == 2  # a fifth
    config = existing_runs.read_run_config(tmp_path / "new")
    assert config.optim.lr == pytest.approx(existing_runs.read_run_config(run).optim.lr / 5)
    kept_out = is_held_out(key_digests(open_source(folder)), 0.2).sum()
    assert 0 < kept_out < 40
    assert f"{kept_out} of 80 images are kept out of training" in (tmp_path / "new/log.txt").read_text()
    found = result.against_start
    assert found is not None and found["measure"] == "crops"
    assert found["new"]["num_images"] + found["old"]["num_images"] == kept_out
    assert f"Before: {run}, after: {tmp_path / 'new'}" in found["says"] and "was trained on them" in found["says"]

    for verdict, one_answer in (("no better", True), ("unknown", False)):
        lines = report(replace(result, against_start=found | {"verdict": verdict})).text.splitlines()
        assert any(line.startswith("the run's own evaluation (") for line in lines) == one_answer

    again = existing_runs.continued(tmp_path / "new")  # the day after: as long, as gentle, the same images kept out
    assert (again.steps, again.optim.lr, again.hold_out) == (config.steps, config.optim.lr, config.hold_out)
    with pytest.raises(UserError, match=r"40 new, 0 gone"):
        opendino.resume(run)


def test_confirmed_labels_decide_by_neighbors_and_a_stopped_run_resumes_exactly(
    grown: tuple[str, str], tmp_path: Path
) -> None:
    run, _ = grown
    options = {"steps": 6, "labels": "folders", "checkpoint_every": "2", "keep_checkpoints": 9}
    whole = opendino.continue_run(run, out=str(tmp_path / "whole"), **options)
    assert whole.against_start is not None and whole.against_start["measure"] == "knn"
    assert "k-NN accuracy" in whole.against_start["says"]
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for step in (4, 6):
        shutil.rmtree(tmp_path / f"parts/checkpoints/step_{step:08d}")
    again = opendino.resume(tmp_path / "parts")
    assert difference(tmp_path / "whole", tmp_path / "parts", 6) is None
    assert again.against_start["new"] == whole.against_start["new"]
    shutil.rmtree(run)
    assert "is not there" in opendino.resume(tmp_path / "parts").against_start["says"]


def test_another_folder_is_new_even_if_its_names_are_the_same(
    grown: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = grown
    tuesday = camera(tmp_path / "tuesday", range(60))
    words = ["continue", run, str(tuesday), "--out", str(tmp_path / "new"), "--steps", "1", "--workers", "0", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["against_start"]
    assert found["new"]["num_images"] == is_held_out(key_digests(open_source(tuesday)), 0.2).sum()


def test_in_the_folder_above_the_old_images_are_still_old(grown: tuple[str, str], tmp_path: Path) -> None:
    run, folder = grown
    root = Path(folder).parent
    camera(root / "tuesday", range(60))
    config = existing_runs.read_run_config(Path(run))
    everything = open_source(str(root))
    held = is_held_out(key_digests(everything), 0.2)
    of_monday = np.array([everything.key(row).startswith("camera/") for row in range(len(everything))])
    found = comparison._held_out(replace(config, data=str(root), hold_out=0.2), Path(run), config, everything)
    assert {name: len(source) for name, source in found.items()} == {
        "new": (held & ~of_monday).sum(), "old": (held & of_monday).sum(),
    }  # fmt: skip
    assert held[of_monday].any() and held[~of_monday].any()


def test_a_run_of_another_method_or_no_run_is_refused(grown: tuple[str, str], tmp_path: Path) -> None:
    run, folder = grown
    with pytest.raises(UserError, match="is no run folder"):
        opendino.continue_run(folder)
    with pytest.raises(UserError, match="does not fit"):
        opendino.continue_run(run, out=str(tmp_path / "new"), method="byol")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="without init"):
        replace(dino_run(tmp_path / "new"), init_networks="all")


def test_everything_held_out_leaves_nothing_to_train_on(grown: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--hold-out 1 leaves no image of 80"):
        opendino.continue_run(grown[0], out=str(tmp_path / "new"), hold_out=1.0)


def test_held_out_images_stay_so_in_a_larger_folder_and_share() -> None:
    digests = np.random.default_rng(0).integers(0, 2**64, 2000, np.uint64)
    few, many = is_held_out(digests, 0.1), is_held_out(digests, 0.3)
    assert 150 < few.sum() < 250 and not (few & ~many).any()
    assert (is_held_out(digests[:500], 0.1) == few[:500]).all()


def test_both_folders_are_written_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    day1, day2 = tmp_path / "runs/day1", Path("runs/day2")
    assert comparison._written_alike(day1, day2) == [Path("runs/day1"), day2]
    assert comparison._written_alike(Path("/other"), day2) == [Path("/other"), tmp_path / day2]


def test_the_verdict_needs_two_standard_errors() -> None:
    worse, better = torch.zeros(100, dtype=torch.float64), torch.ones(100, dtype=torch.float64)
    up, down, same = (change(*pair) for pair in ((worse, better), (better, worse), (better, better)))
    few = change(worse[:4], torch.tensor([0.0, 0, 0, 1]))
    assert (up.direction, down.direction, same.direction, few.direction) == (1, -1, 0, 0)
    assert same.standard_error == pytest.approx(1.0)
    expected = {"better": [up, same], "worse": [down, same], "unknown": [up, down], "no better": [same, same]}
    for verdict, pair in expected.items():
        assert comparison._verdict(dict(zip(("new", "old"), pair, strict=True)))[0] == verdict
    assert comparison._verdict({"new": few})[0] == "unknown"
