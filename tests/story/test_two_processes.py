"""Two processes train one model: the run of one process on the same batches, to rounding."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opendino.config import Config
from opendino.core import dist
from opendino.engine import optim
from opendino.methods import dino
from opendino.recipes import demo

train = importlib.import_module("opendino.train")  # the module, not the function of the same name

STEPS, POISONED = 6, 3


def watched(settings: Config, out: Path, rank: int, poisoned: int = -1) -> None:
    """Train, and leave what this process saw of each step and its method at the end. On rank 1 an image may be bad."""
    made, rows, build, step = [], [], dino.build, train.step

    def record(model, method, optimizer, optim_settings, batch, clock, views, *rest):  # type: ignore[no-untyped-def]
        views = list(views)
        if clock.step == poisoned and rank == 1:
            views[-1].crops["local"][0, 0, 0, 0, 0] = float("nan")
        tensors, numbers = step(model, method, optimizer, optim_settings, batch, clock, iter(views), *rest)
        rows.append({key: float(tensors[key]) for key in ("loss", "ok", "grad_norm")})
        return tensors, numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dino, "build", lambda *args: made.append(build(*args)) or made[-1])
        patch.setattr(train, "step", record)
        train.train(settings)
    out.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in made[0].state_dict().items()}, out / f"{rank}.safetensors")
    (out / f"{rank}.json").write_text(json.dumps(rows))


def config(out: Path, accumulate: int) -> Config:
    """Plain SGD, whose steps are linear in the gradient, so that rounding is not amplified; no drop path."""
    recipe = demo.config("toy:textures?n=48&size=32")
    small = replace(
        recipe.method, out_dim=32, hidden_dim=16, bottleneck_dim=8, local_crops=2, freeze_last_layer="0", momentum=0.9
    )
    return replace(
        recipe, val=None, out=str(out), backbone="vit/8", drop_path=0.0, method=small, steps=STEPS, batch=16, workers=0,
        backbone_options={"embed_dim": 24, "depth": 2, "num_heads": 2}, precision="float32", eval_images=20,
        checkpoint_every="100%", eval_every="100%",
        optim=optim.Config(name="sgd", lr=0.1, lr_warmup="0", accumulate=accumulate),
    )  # fmt: skip


def process(folder: Path, rank: int) -> None:
    """One of the two: a run in two parts a step, then one with a poisoned image."""
    os.environ["RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    answers = {
        "everywhere": [bool(dist.everywhere(torch.tensor(flag))) for flag in (True, rank == 0, False)],
        "anywhere": [dist.anywhere(flag) for flag in (True, rank == 0, False)],
        "mean": dist.mean(torch.tensor([1.0 + 2 * rank, 5.0])).tolist(),
        "agreed": dist.agreed(f"said by {rank}"),
        "world": dist.world(),
        "rank": dist.rank(),
    }
    (folder / f"answers_{rank}.json").write_text(json.dumps(answers))
    watched(config(folder / "run", accumulate=2), folder / "both", rank)
    watched(config(folder / "poisoned run", accumulate=1), folder / "poisoned", rank, POISONED)
    torch.distributed.destroy_process_group()


def main(folder: Path) -> int:
    """Fork the two from one process that has imported everything, which takes longer than what they do."""
    import torch._dynamo
    import torch.utils.tensorboard

    torch.set_num_threads(1)
    pair = [multiprocessing.get_context("fork").Process(target=process, args=(folder, rank)) for rank in (0, 1)]
    for each in pair:
        each.start()
    for each in pair:
        each.join()
    return max(abs(each.exitcode or 0) for each in pair)


Seen = tuple[list[dict[str, float]], dict[str, torch.Tensor]]


def seen(out: Path, rank: int) -> Seen:
    return json.loads((out / f"{rank}.json").read_text()), load_file(out / f"{rank}.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_both_processes_get_the_same_answers(two: Path, rank: int) -> None:
    assert json.loads((two / f"answers_{rank}.json").read_text()) == {
        "everywhere": [True, False, False],
        "anywhere": [True, True, False],
        "mean": [2.0, 5.0],
        "agreed": "said by 0",
        "world": 2,
        "rank": rank,
    }


@pytest.mark.slow
def test_two_processes_and_two_parts_are_the_run_of_one(two: Path, tmp_path: Path) -> None:
    watched(config(tmp_path / "run", accumulate=1), tmp_path / "alone", 0)
    steps, weights = seen(tmp_path / "alone", 0)
    (steps_0, weights_0), (steps_1, weights_1) = (seen(two / "both", rank) for rank in (0, 1))
    # float32 sums in another order: logits are at most 1/τ_s = 10, so a loss is good to some 1e-6, a gradient to a
    # relative 1e-5 (its terms cancel), a little less after six steps that each build on the last. A wrong scale, a
    # missing rank or a wrong share shows in the first digits.
    for alone, one, other in zip(steps, steps_0, steps_1, strict=True):
        assert one["loss"] == other["loss"] == pytest.approx(alone["loss"], abs=2e-5)
        assert one["grad_norm"] == other["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    first = load_file(tmp_path / "run/checkpoints/step_00000000/tensors.safetensors")
    for key, value in weights.items():
        assert torch.equal(weights_0[key], weights_1[key]), f"{key} differs between the processes"
        moved = float((value - first[f"method.{key}"]).norm())
        assert float((weights_0[key] - value).norm()) <= 1e-3 * moved + 1e-6 * float(value.norm()), key
    assert float((weights["center"] - first["method.center"]).norm()) > 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process_voids_the_step_of_both(two: Path) -> None:
    (steps_0, weights_0), (steps_1, weights_1) = (seen(two / "poisoned", rank) for rank in (0, 1))
    assert [row["ok"] for row in steps_0] == [row["ok"] for row in steps_1] == [n != POISONED for n in range(STEPS)]
    assert all(torch.equal(value, weights_1[key]) for key, value in weights_0.items())
    assert all(bool(value.isfinite().all()) for value in weights_0.values())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
