"""A checkpoint restores the complete state, and a crash at any byte costs at most the newest one."""

from __future__ import annotations

import copy
import resource
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from opendino.core.contracts import Method
from opendino.core.errors import UserError
from opendino.core.types import Clock
from opendino.engine import checkpoint, learning_rate, optim
from opendino.methods import dino
from opendino.models import build


def method(width: int = 4) -> Method:
    config = dino.Config(out_dim=16, hidden_dim=8, bottleneck_dim=4, head_batch_norm=True)
    return dino.build(config, lambda role: build.backbone("conv4", width=width))


def trained(name: str, steps: int = 2) -> tuple[Method, torch.optim.Optimizer]:
    """A method whose weights, buffers and moments have all moved."""
    made = method()
    optimizer = optim.build(optim.Config(name=name), made.student)
    settings = optim.ResolvedConfig(name=name, lr_warmup="0")
    learning_rate.set_lr_and_weight_decay(optimizer, settings, Clock(0, 10, 1), 256)
    for _ in range(steps):
        for p in made.student.parameters():
            p.grad = torch.randn_like(p)
        optim.step(optimizer, torch.tensor(True))
    for buffer in made.buffers():
        buffer.add_(1)
    return made, optimizer


def weights(method: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(method.state_dict())


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    made, optimizer = trained("adamw")
    for step in (1, 2):
        checkpoint.save(folder, checkpoint.snapshot(made, optimizer), {"step": step})
    return folder


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "lars"])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    made, optimizer = trained(name)
    state = {"step": 7, "bad": {"ü.png": "torn"}, "baselines": {"pixels": 0.1}, "images": [3, 4]}
    checkpoint.save(tmp_path, checkpoint.snapshot(made, optimizer), state)
    checkpoint.save(tmp_path, checkpoint.snapshot(made, optimizer), state | {"step": 8})

    torch.manual_seed(99)
    other, fresh = trained(name, steps=0)
    path = checkpoint.newest(tmp_path)
    assert path == tmp_path / "checkpoints" / "step_00000008"
    assert checkpoint.load(path, other, fresh) == state | {"step": 8}
    assert_equal(weights(other), weights(made))
    ours, theirs = (each.state_dict()["state"] for each in (optimizer, fresh))
    assert ours.keys() == theirs.keys() and ours
    for index, moments in ours.items():
        assert_equal(moments, theirs[index])
    for p in made.student.parameters():  # and both go on alike
        p.grad = torch.ones_like(p)
    for p in other.student.parameters():
        p.grad = torch.ones_like(p)
    for each in (optimizer, fresh):
        learning_rate.set_lr_and_weight_decay(each, optim.ResolvedConfig(name=name), Clock(5, 10, 1), 256)
        optim.step(each, torch.tensor(True))
    assert_equal(weights(other), weights(made))


def test_nothing_is_pickled_and_nothing_else_is_left(saved: Path) -> None:
    files = sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
    inside = [
        f"checkpoints/step_0000000{step}/{name}" for step in (1, 2) for name in ("state.json", "tensors.safetensors")
    ]
    assert files == [*inside, "latest"]
    assert (saved / "latest").read_text() == "checkpoints/step_00000002\n"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept_by_number_not_by_name(tmp_path: Path, keep: int) -> None:
    made, optimizer = trained("adamw", steps=0)
    steps = (99_999_998, 99_999_999, 100_000_000, 100_000_001)  # one digit more than the name has
    for step in steps:
        checkpoint.save(tmp_path, checkpoint.snapshot(made, optimizer), {"step": step}, keep)
    left = sorted(int(path.name.removeprefix("step_")) for path in (tmp_path / "checkpoints").iterdir())
    assert tuple(left) == steps[-keep:]
    assert checkpoint.newest(tmp_path).name == "step_100000001"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    made, optimizer = trained("adamw", steps=0)
    for note in ("first", "second"):
        checkpoint.save(tmp_path, checkpoint.snapshot(made, optimizer), {"step": 3, "note": note})
    assert checkpoint.load(checkpoint.newest(tmp_path), made, optimizer)["note"] == "second"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint_is_passed_over(saved: Path, tmp_path: Path, name: str, share: float) -> None:
    run = Path(shutil.copytree(saved, tmp_path / "run"))
    damaged = run / "checkpoints" / "step_00000002" / name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: min(int(share * len(whole)), len(whole) - 1)])
    assert checkpoint.newest(run) == run / "checkpoints" / "step_00000001"
    damaged.unlink()
    assert checkpoint.newest(run) == run / "checkpoints" / "step_00000001"


def test_without_a_readable_one_there_is_none(saved: Path, tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    run = Path(shutil.copytree(saved, tmp_path / "run"))
    for path in run.rglob("state.json"):
        path.write_text("")
    assert checkpoint.newest(run) is None


def test_what_a_crash_left_half_written_is_ignored_and_replaced(saved: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(saved, tmp_path / "run"))
    stale = run / "checkpoints" / ".step_00000003.partial"
    shutil.copytree(run / "checkpoints" / "step_00000002", stale)
    (stale / "rubbish").touch()
    assert checkpoint.newest(run).name == "step_00000002"
    made, optimizer = trained("adamw", steps=0)
    path = checkpoint.save(run, checkpoint.snapshot(made, optimizer), {"step": 3})
    assert sorted(each.name for each in path.iterdir()) == ["state.json", "tensors.safetensors"]
    assert not stale.exists()


def test_a_crash_while_writing_leaves_the_old_ones_readable(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(saved, tmp_path / "run"))
    made, optimizer = trained("adamw", steps=0)
    for victim in ("save_file", "atomic_write.write", "atomic_write.sync", "Path.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(f"opendino.engine.checkpoint.{victim}", lambda *_: (_ for _ in ()).throw(OSError("gone")))
            with pytest.raises(OSError, match="gone"):
                checkpoint.save(run, checkpoint.snapshot(made, optimizer), {"step": 3})
        assert checkpoint.newest(run).name == "step_00000002", victim


@pytest.mark.parametrize("what", ["tensors", "state"])
def test_on_a_full_disk_the_error_says_so_and_nothing_half_written_stays(
    saved: Path, tmp_path: Path, what: str
) -> None:
    run = Path(shutil.copytree(saved, tmp_path / "run"))
    (run / "checkpoints" / ".step_00000009.partial").mkdir()  # of a run that was killed
    made, optimizer = trained("adamw", steps=0)
    state: dict[str, object] = {"step": 3}
    if what == "tensors":  # a limit on files is the one full disk that needs no root
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    else:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = sum(t.numel() * t.element_size() for t in checkpoint.snapshot(made, optimizer).values()) + 100_000
        state["bad"] = "x" * (2 * size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(run, checkpoint.snapshot(made, optimizer), state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000001", "step_00000002"]
    assert checkpoint.newest(run).name == "step_00000002"


def test_another_network_is_refused(saved: Path) -> None:
    other = method(width=5)
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load(checkpoint.newest(saved), other, optim.build(optim.Config(), other.student))
