"""Several processes train one model, whole or parted: the run of one process on the same batches, to rounding."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from opendino import start, training
from opendino.config import Config
from opendino.core import distributed
from opendino.core.types import Clock
from opendino.engine import learning_rate, optim
from opendino.losses import sinkhorn_knopp
from opendino.methods import byol, dino, lejepa, swav
from opendino.recipes import demo
from opendino.views.settings import changed

STEPS, POISONED, CUT, PER_EPOCH = 6, 3, 5, 3  # cut in the middle of the second epoch, after the checkpoint of step 4
WORLDS, METHODS, WAYS = (2, 4), ("dino", "byol", "swav", "lejepa"), ("ddp", "fsdp")
SGD = optim.Config(name="sgd", lr=0.1, lr_warmup="0", grad_accum_steps=2)
RATES = {
    "dino": 0.1,
    "byol": 0.01,
    "swav": 0.01,
    "lejepa": 0.01,
}  # batch norm over eight images is steep: a larger step would amplify rounding
SMALL_VIEWS = {"global.size": 32, "local.size": 16, "local.number": 2}
CASES = [
    *itertools.product((2,), ("dino",), WAYS), (2, "byol", "ddp"), (2, "swav", "ddp"), (2, "lejepa", "fsdp"),
    (4, "dino", "fsdp"),
]  # fmt: skip


def config(out: Path, method: str, **changes: Any) -> Config:
    """Plain SGD, whose steps are linear in the gradient, so that rounding is not amplified; no drop path."""
    recipe = demo.config("toy:textures?n=48&size=32")
    parts: dict[str, dict[str, Any]] = {
        "dino": {
            "backbone": "vit/8", "backbone_options": {"embed_dim": 24, "depth": 2, "num_heads": 2},
            "method": dino.Config(
                out_dim=30, hidden_dim=16, bottleneck_dim=8, freeze_last_layer="2", teacher_temp=0.04, momentum=0.9,
                momentum_end=0.99,
            ),
            "views": changed(recipe.views, {"local.number": 2}),
        },
        "byol": {  # batch norm everywhere
            "backbone": "conv4", "backbone_options": {"width": 4},
            "method": byol.Config(hidden_dim=16, projection_dim=8, momentum=0.9),
            "views": changed(byol.VIEWS, {"global.size": 32}),
        },
        "swav": {  # Sinkhorn-Knopp over the images of all processes, and batch norm
            "backbone": "conv4", "backbone_options": {"width": 4},
            "method": swav.Config(out_dim=12, hidden_dim=16, bottleneck_dim=8, freeze_prototypes="2"),
            "views": changed(swav.VIEWS, SMALL_VIEWS),
        },
        "lejepa": {  # the characteristic function of all images, and batch norm
            "backbone": "conv4", "backbone_options": {"width": 4},
            "method": lejepa.Config(num_directions=8, hidden_dim=16, projection_dim=8),
            "views": changed(lejepa.VIEWS, SMALL_VIEWS),
        },
    }  # fmt: skip
    base = replace(
        recipe, val=None, out=str(out), drop_path=0.0, steps=STEPS, batch=16, workers=0, precision="float32",
        eval_images=20, checkpoint_every="100%", eval_every="100%", report=False, optim=replace(SGD, lr=RATES[method]),
        **parts[method],
    )  # fmt: skip
    return replace(base, **changes)


def watched(work: Any, out: Path, poisoned: int = -1, cut: int = 0) -> None:
    """Train, and leave what this process saw of each step and its networks at the end.

    Args:
        work: What trains.
        out: Where to leave it, in files of this rank.
        poisoned: In this step an image of rank 1 is bad.
        cut: Before this step's end the power fails, everywhere.
    """
    rank, made, rows = distributed.rank(), [], []
    step, prepare_distributed = training.step, training.parallel.prepare_distributed

    def record(model, optimizer, optim_settings, batch, clock, views, *rest):  # type: ignore[no-untyped-def]
        views = list(views)
        if clock.step == poisoned and rank == 1:
            views[-1].crops["local"][0, 0, 0, 0, 0] = float("nan")
        tensors, numbers = step(model, optimizer, optim_settings, batch, clock, iter(views), *rest)
        rows.append({key: float(tensors[key]) for key in ("loss", "ok", "grad_norm")})
        rows[-1] |= {"step": clock.step, "lr": numbers["lr"], "images": torch.cat([v.indices for v in views]).tolist()}
        if clock.step + 1 == cut:
            raise ValueError("power cut")
        return tensors, numbers

    def note(*args: Any) -> Any:
        made.append(prepare_distributed(*args))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "step", record)
        patch.setattr(training.parallel, "prepare_distributed", note)
        try:
            work()
        except ValueError as error:
            if str(error) != "power cut":
                raise
    out.mkdir(exist_ok=True)
    method = made[0][1]()
    save_file({key: value.contiguous() for key, value in method.state_dict().items()}, out / f"{rank}.safetensors")
    (out / f"{rank}.json").write_text(json.dumps(rows))


def answers(rank: int) -> dict[str, Any]:
    """What two processes say to each other."""
    from opendino.engine.sync_batch_norm import convert

    norm = convert(torch.nn.BatchNorm1d(3).double(), torch.device("cpu"))
    rows = torch.randn(8, 3, dtype=torch.float64)
    plain = torch.nn.BatchNorm1d(3).double()
    distributed.broadcast_([rows])
    whole = rows.clone().requires_grad_()
    mine = rows[distributed.rank_slice(8)].clone().requires_grad_()
    (plain(whole) ** 3).mean().backward()
    (norm(mine) ** 3).mean().backward()
    return {
        "everywhere": [bool(distributed.all_true(torch.tensor(flag))) for flag in (True, rank == 0, False)],
        "anywhere": [distributed.any_true(flag) for flag in (True, rank == 0, False)],
        "mean": distributed.all_reduce_mean(torch.tensor([1.0 + 2 * rank, 5.0])).tolist(),
        "agreed": distributed.broadcast_object(f"said by {rank}"),
        "gathered": distributed.all_gather_rows(torch.arange(5)[distributed.rank_slice(5)]).tolist(),
        "world": distributed.world_size(),
        "rank": distributed.rank(),
        # A rank's own loss is half of the mean's sum; its gradient is to be averaged, so that it is whole here.
        "batch norm": bool((mine.grad / 2 - whole.grad[distributed.rank_slice(8)]).abs().max() < 1e-14),
        "its statistics": all(
            torch.allclose(a, b, rtol=1e-14) for a, b in zip(norm.buffers(), plain.buffers(), strict=True)
        ),
        "muon": moved_alike_if_sharded(),
        **over_all_images(rows),
    }


def moved_alike_if_sharded() -> bool:
    """Whether Muon moves weights that are sharded over the processes as weights that are whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    def weights(share: Callable[[Tensor], Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        model = torch.nn.ModuleList([torch.nn.Linear(5, 7), torch.nn.Linear(6, 2), torch.nn.Linear(5, 7)]).double()
        for layer in model:
            for name, p in [*layer.named_parameters()]:
                values = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                setattr(layer, name, torch.nn.Parameter(share(values)))
        settings = optim.ResolvedConfig(name="muon")
        optimizer = optim.build(settings, model)
        for step in (1, 2):
            learning_rate.set_lr_and_weight_decay(optimizer, settings, Clock(step, 10, 1), batch=256_000)
            for p in model.parameters():
                p.grad = share(torch.randn(p.shape, generator=generator, dtype=p.dtype))
            optim.step(optimizer, torch.tensor(True))
        return [distributed.full_tensor(p.detach()) for p in model.parameters()]

    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    sharded, whole = weights(lambda values: distribute_tensor(values, mesh, [Shard(0)])), weights(lambda values: values)
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(sharded, whole, strict=True))


def over_all_images(rows: Tensor) -> dict[str, bool]:
    """Whether losses over the images of two processes, half of `rows` each, are those of one process with all."""
    half, unit = distributed.rank_slice(8), torch.nn.functional.normalize(rows[:3] - 0.5, dim=0)
    part, whole = rows[None, half].clone().requires_grad_(), rows[None].clone().requires_grad_()
    codes, statistic = sinkhorn_knopp(rows[half], 0.05), lejepa.sigreg(part, unit)
    with distributed.single_process():
        all_codes, all_statistic = sinkhorn_knopp(rows, 0.05), lejepa.sigreg(whole, unit)
    statistic.backward()
    all_statistic.backward()
    assert part.grad is not None and whole.grad is not None
    return {
        "codes": bool((codes - all_codes[half]).abs().max() < 1e-14),
        "sigreg": abs(statistic.item() - all_statistic.item()) < 1e-14,
        "its gradient": bool((part.grad / 2 - whole.grad[:, half]).abs().max() < 1e-14),
    }


def process(folder: Path, rank: int, world: int) -> None:
    """One of several: all runs of this number of processes."""
    os.environ["RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting {world}", rank=rank, world_size=world)
    for method, way in [case[1:] for case in CASES if case[0] == world]:
        name = f"{method} {way} {world}"
        settings = config(folder / f"run {name}", method, parallel=way)
        watched(lambda settings=settings: start.train(settings), folder / name)
    if world == 2:
        (folder / f"answers_{rank}.json").write_text(json.dumps(answers(rank)))
        poisoned = config(folder / "run poisoned", "dino", optim=replace(SGD, grad_accum_steps=1))
        watched(lambda: start.train(poisoned), folder / "poisoned", POISONED)
        cut = config(folder / "run cut", "dino", parallel="fsdp", checkpoint_every="2")
        watched(lambda: start.train(cut), folder / "cut", cut=CUT)
        if rank == 0:
            shutil.copytree(folder / "run cut", folder / "run cut alone")
            shutil.copytree(folder / "run cut", folder / "run cut 4")
        distributed.barrier()
        watched(lambda: start.resume(folder / "run cut"), folder / "cut resumed")
    else:
        watched(lambda: start.resume(folder / "run cut 4"), folder / "cut resumed on 4")
    torch.distributed.destroy_process_group()


def main(folder: Path) -> int:
    """Fork them from one process that has imported everything, which takes longer than what they do."""
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.utils.tensorboard

    torch.set_num_threads(1)
    for world in WORLDS:
        context = multiprocessing.get_context("fork")
        group = [context.Process(target=process, args=(folder, rank, world)) for rank in range(world)]
        for each in group:
            each.start()
        for each in group:
            each.join()
        if any(each.exitcode for each in group):
            return 1
    return 0


Seen = tuple[list[dict[str, Any]], dict[str, Tensor]]


def seen(out: Path, rank: int) -> Seen:
    return json.loads((out / f"{rank}.json").read_text()), load_file(out / f"{rank}.safetensors")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of one process, by method."""
    home = tmp_path_factory.mktemp("alone")
    for method in METHODS:
        settings = config(home / f"run {method}", method)
        watched(lambda settings=settings: start.train(settings), home / method)
    return {method: home / method for method in METHODS}


def assert_equal_to_rounding(ours: Seen, theirs: Seen, first: dict[str, Tensor], share: float = 1e-3) -> None:
    # float32 sums in another order: logits are at most 1/τ_s = 10, so a loss is good to some 1e-6, a gradient to a
    # relative 1e-5 (its terms cancel), a little less after six steps that each build on the last. A wrong scale, a
    # missing rank or a wrong share shows in the first digits.
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=share / 50)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert ours[1].keys() == theirs[1].keys()
    for key, value in theirs[1].items():
        moved = float((value - first[f"method.{key}"]).float().norm())
        size = float(value.float().norm())
        # 1e-7: a bias before a batch norm has no gradient but rounding.
        assert float((ours[1][key] - value).float().norm()) <= share * moved + 1e-6 * size + 1e-7, key


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_both_processes_get_the_same_answers(many: Path, rank: int) -> None:
    assert json.loads((many / f"answers_{rank}.json").read_text()) == {
        "everywhere": [True, False, False],
        "anywhere": [True, True, False],
        "mean": [2.0, 5.0],
        "agreed": "said by 0",
        "gathered": [0, 1, 2, 3, 4],
        "world": 2,
        "rank": rank,
        "muon": True,
        "codes": True,
        "sigreg": True,
        "its gradient": True,
        "batch norm": True,
        "its statistics": True,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("world", "method", "way"), CASES)
def test_processes_together_are_the_run_of_one(
    many: Path, alone: dict[str, Path], world: int, method: str, way: str
) -> None:
    first = load_file(alone[method].parent / f"run {method}/checkpoints/step_00000000/tensors.safetensors")
    ours = [seen(many / f"{method} {way} {world}", rank) for rank in range(world)]
    # SwAV's codes are exp(scores / 0.02), five times as steep as a teacher; in float64 they agree to 1e-14, see above.
    # Its conv4 takes roots of features, with slopes up to 50.
    share = 5e-3 if method == "swav" else 1e-3
    for each in ours:
        assert_equal_to_rounding(each, seen(alone[method], 0), first, share)
        for key, value in each[1].items():
            assert torch.equal(value, ours[0][1][key]), f"{key} differs between the processes"
    # What the leader judged is what one process judges: the same images, features to rounding.
    judged = [
        [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "knn" in row]
        for run in (many / f"run {method} {way} {world}", alone[method].parent / f"run {method}")
    ]
    for mine, other in zip(*judged, strict=True):
        assert mine["knn"] == other["knn"]
        assert mine["effective_rank"] == pytest.approx(other["effective_rank"], rel=1e-3)
        assert mine["crop_match"] == pytest.approx(other["crop_match"], abs=0.5)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process_voids_the_step_of_both(many: Path) -> None:
    (steps_0, weights_0), (steps_1, weights_1) = (seen(many / "poisoned", rank) for rank in (0, 1))
    assert [row["ok"] for row in steps_0] == [row["ok"] for row in steps_1] == [n != POISONED for n in range(STEPS)]
    assert all(torch.equal(value, weights_1[key]) for key, value in weights_0.items())
    assert all(bool(value.isfinite().all()) for value in weights_0.values())


@pytest.mark.slow
def test_resumed_in_the_middle_of_an_epoch_on_as_many_it_is_the_same_run_bit_for_bit(many: Path) -> None:
    whole, resumed = (load_file(many / f"run {name}/checkpoints/step_00000006/tensors.safetensors")
                      for name in ("dino fsdp 2", "cut"))  # fmt: skip
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 4])
def test_resumed_on_another_number_of_processes_it_is_the_same_run_to_rounding(
    many: Path, alone: dict[str, Path], world: int
) -> None:
    later = many / f"cut resumed on {world}"
    if world == 1:
        watched(lambda: start.resume(many / "run cut alone"), later)
    (_, weights), (before, _) = seen(later, 0), seen(many / "cut", 0)
    first = load_file(alone["dino"].parent / "run dino/checkpoints/step_00000000/tensors.safetensors")
    steps = before[: CUT - 1] + seen(later, 0)[0]  # the step that was cut off is done again
    assert_equal_to_rounding((steps, weights), seen(alone["dino"], 0), first)
    assert [row["step"] for row in steps] == list(range(STEPS))
    assert [row["lr"] for row in steps] == [row["lr"] for row in seen(alone["dino"], 0)[0]]
    ranks = [seen(many / "cut", rank)[0][: CUT - 1] for rank in (0, 1)] + [seen(later, r)[0] for r in range(world)]
    for epoch in range(STEPS // PER_EPOCH):
        images = [i for rows in ranks for row in rows if row["step"] // PER_EPOCH == epoch for i in row["images"]]
        assert sorted(images) == list(range(48))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
