"""A length in minutes becomes a number of steps once, and stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.factories import difference, dino_run

import opendino
from opendino import existing_runs, length_in_minutes, resolve
from opendino.cli import main, train_command
from opendino.config import ResolvedConfig
from opendino.core import log
from opendino.core.errors import UsageError
from opendino.core.types import Clock
from opendino.recipes import small


def test_only_the_first_epoch_waits_for_images_that_are_cached() -> None:
    epochs = length_in_minutes._epochs
    assert epochs(60, 0.01, 0.04, 100, cached=False) == pytest.approx(12)
    assert epochs(60, 0.01, 0.04, 100, cached=True) == pytest.approx(1 + 55)
    assert epochs(2.5, 0.01, 0.04, 100, cached=True) == pytest.approx(0.5)


@pytest.mark.parametrize("asleep", [range(0), range(3, 4), range(9, 12)])
def test_steps_are_timed_apart_from_decoding(asleep: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding takes 3 s of the processor that trains, views 1 s and a step of 16 images 4 s; some take 1,000 more."""
    now = [0.0]

    def with_views(*_: object) -> Iterator[tuple[str, Callable[[], None]]]:
        for number in range(1000):
            now[0] += 3
            yield f"batch {number}", make_views

    def views_of(batches: Iterable[str], *_: object) -> Iterator[tuple[str, Callable[[], None]]]:
        for batch in batches:
            assert batch in ("batch 0", "batch 1"), "of the first images"
            yield batch, make_views

    def make_views() -> None:
        now[0] += 1

    def step(_model: object, _optimizer: object, _settings: object, _batch: int, clock: Clock, views, *_) -> None:  # type: ignore[no-untyped-def]
        list(views)
        now[0] += 1004 if clock.step in asleep else 4

    config = replace(dino_run(tmp_path / "run"), steps=100)
    resolved, source = resolve.resolve_config(config, torch.device("cpu"))
    monkeypatch.setattr(length_in_minutes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for name, fake in (("with_views", with_views), ("views_of", views_of), ("step", step)):
        monkeypatch.setattr(length_in_minutes, name, fake)
    found = length_in_minutes.seconds_per_image(replace(resolved, cache="ram"), source, torch.device("cpu"), 100)
    assert found == pytest.approx((5 / resolved.batch, 3 / resolved.batch))
    found = length_in_minutes.seconds_per_image(replace(resolved, cache="off"), source, torch.device("cpu"), 100)
    assert found == pytest.approx((8 / resolved.batch, 0))


def test_minutes_become_steps_of_the_measured_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(length_in_minutes, "seconds_per_image", lambda *_: (0.05, 0.0))
    monkeypatch.setattr(log, "say", lambda text, style="": said.append(text))
    threads = torch.get_num_threads()
    found = length_in_minutes.in_epochs(
        replace(dino_run(tmp_path / "run"), steps=None, minutes=1.0), torch.device("cpu")
    ).config
    assert found.minutes is None and torch.get_num_threads() == threads
    assert isinstance(found.epochs, float) and 10 < found.epochs <= 0.9 * 60 / (48 * 0.05)
    assert any("1 min at 20 images/s" in line for line in said)


def test_a_short_run_evaluates_on_fewer_images_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(length_in_minutes, "seconds_per_image", lambda *_: (0.02, 0.0))
    data = "toy:textures?n=2000&size=32"
    asked = replace(dino_run(tmp_path / "run", data), steps=None, minutes=1.0, eval_images="auto")
    found = length_in_minutes.in_epochs(asked, torch.device("cpu")).config
    assert isinstance(found.epochs, float) and found.eval_images == pytest.approx(270, abs=15)  # a tenth of 2,700
    # 9 x 270 + 20 x 256 forward passes, each a tenth of a training image's 0.02 s
    assert 2000 * found.epochs * 0.02 + (9 * 270 + 20 * 256) * 0.002 == pytest.approx(60, rel=0.1)
    assert "instead of 1,500" in " ".join(capsys.readouterr().err.split())
    for same in (replace(asked, eval_images=1500), replace(asked, minutes=20.0)):
        found = length_in_minutes.in_epochs(same, torch.device("cpu")).config
        assert found.eval_images == same.eval_images and "instead of" not in capsys.readouterr().err
        assert 2000 * found.epochs * 0.02 == pytest.approx(0.9 * 60 * (same.minutes or 0), rel=0.1)  # pyright: ignore


def test_without_a_length_a_run_takes_twenty_minutes_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(length_in_minutes, "seconds_per_image", lambda *_: (0.05, 0.0))
    asked = replace(dino_run(tmp_path / "run"), steps=None, epochs="auto")
    found = length_in_minutes.in_epochs(asked, torch.device("cpu")).config
    assert isinstance(found.epochs, float) and found.epochs == pytest.approx(0.9 * 1200 / (48 * 0.05), rel=0.05)
    assert "20 min, the default on a cpu; --minutes changes it" in capsys.readouterr().err
    assert length_in_minutes.in_epochs(asked, torch.device("cuda")).config is asked
    assert length_in_minutes.in_epochs(replace(asked, epochs=3.0), torch.device("cpu")).config.epochs == 3.0


@pytest.mark.parametrize(
    ("minutes", "given", "width"),
    [(20.0, {}, 32), (5.0, {}, 16), (20.0, {"backbone": "conv4", "backbone_options": {"width": 16}}, 16)],
)
def test_with_time_for_many_steps_the_small_network_is_wider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, given: dict[str, Any], width: int
) -> None:
    timed: list[int] = []

    def seconds_per_image(config: ResolvedConfig, *_: object) -> tuple[float, float]:
        timed.append(config.backbone_options["width"])
        return timed[-1] / 16 * 0.004, 0.0  # 0.26 s for a step of 64

    monkeypatch.setattr(length_in_minutes, "seconds_per_image", seconds_per_image)
    asked = replace(small.config("toy:textures?n=640&size=32"), epochs=None, minutes=minutes, workers=0, **given)
    found = length_in_minutes.in_epochs(replace(asked, out=str(tmp_path)), torch.device("cpu")).config
    assert timed == ([16, 32] if width == 32 else [16])
    assert found.backbone_options.get("width", 16) == width
    assert isinstance(found.epochs, float)
    assert found.epochs * 640 == pytest.approx(0.9 * 60 * minutes / (width / 16 * 0.004), rel=0.05)


def test_it_times_the_batch_that_the_run_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def seconds_per_image(config: ResolvedConfig, *_: object) -> tuple[float, float]:
        timed.append(config.batch)
        return 0.05 if config.batch == 64 else 0.04, 0.0

    monkeypatch.setattr(length_in_minutes, "seconds_per_image", seconds_per_image)
    asked = replace(small.config("toy:textures?n=6400&size=32"), epochs=None, minutes=20.0, workers=0)
    found = length_in_minutes.in_epochs(replace(asked, out=str(tmp_path)), torch.device("cpu")).config
    assert timed == [64, 32], "21,600 images of a step of 64 would be 337 steps"
    assert isinstance(found.epochs, float) and found.epochs * 6400 == pytest.approx(0.9 * 1200 / 0.04, rel=0.05)


def test_images_that_were_decoded_ahead_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def with_views(*_: object) -> Iterator[tuple[str, Callable[[], None]]]:
        for number in range(1000):
            now[0] += 3 * (number >= 10)  # of two batches kept, and of four workers with two each
            yield f"batch {number}", lambda: None

    def step(*arguments: Any) -> None:
        list(arguments[5])
        now[0] += 4

    resolved, source = resolve.resolve_config(replace(dino_run(tmp_path / "run"), steps=100), torch.device("cpu"))
    monkeypatch.setattr(length_in_minutes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for name, fake in (("with_views", with_views), ("step", step)):
        monkeypatch.setattr(length_in_minutes, name, fake)
    config = replace(resolved, cache="off", workers=4)
    found = length_in_minutes.seconds_per_image(config, source, torch.device("cpu"), 400)
    assert found == pytest.approx((7 / resolved.batch, 0))


def test_a_run_that_took_longer_says_why() -> None:
    planned = length_in_minutes.Planned(dino_run(Path("run")), minutes=3.0, images_per_second=177.0, began=1000.0)
    assert planned.overtime(118.0, 1000 + 180) == "" and planned.overtime(118.0, 1000 + 190) == ""
    slow, late = (planned.overtime(speed, 1000 + 260) for speed in (118.0, 176.0))
    assert slow.startswith("the run took 4.3 instead of 3 min: it trained at 118 instead of 177 images/s")
    assert "other programs" in slow and "evaluations" in late and "images/s" not in late
    assert length_in_minutes.Planned(planned.config).overtime(1.0, 1e9) == ""


def test_a_run_of_some_minutes_stores_its_steps_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(length_in_minutes, "_MEASURED_SECONDS", (0.05, 0.05))
    config = replace(dino_run(tmp_path / "run"), steps=None, minutes=0.001, checkpoint_every="1", keep_checkpoints=99)
    result = opendino.train(config)  # the time is already over when it starts: one step
    stored, request = existing_runs.read_run_config(tmp_path / "run"), existing_runs.read_request(tmp_path / "run")
    assert stored.steps == result.steps == 1 and stored.minutes is None
    assert request is not None and request.minutes == 0.001
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/step_00000001")
    monkeypatch.setattr(length_in_minutes, "in_epochs", lambda *_: pytest.fail("measured again"))
    opendino.resume(tmp_path / "again")
    assert difference(tmp_path / "run", tmp_path / "again", 1) is None
    opendino.train(replace(config, resume=True))  # the same command again
    with pytest.raises(UsageError, match="only for a new one"):
        opendino.train(replace(config, resume=True, minutes=2.0))


def test_one_length_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_command.parse(["photos", "--minutes", "20"]).minutes == 20
    assert train_command.parse(["photos", "--minutes", "20"]).epochs is None
    assert main(["train", "photos", "--minutes", "20", "--steps", "5"]) == 2
    assert "steps=5 and minutes=20.0 were both given. Give one of them" in capsys.readouterr().err.replace(" → ", ". ")
