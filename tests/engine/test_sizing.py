"""Batch, micro-batches and workers: as configured, or chosen from the machine and the dataset."""

from __future__ import annotations

import math
import os

import pytest
import torch

from opendino.core import distributed
from opendino.core.errors import UsageError, UserError
from opendino.core.types import BlockMasks, ViewGroup, ViewSpec
from opendino.engine import sizing
from opendino.methods import dino
from opendino.models import build
from opendino.views.settings import view

AUGMENT = view({"crop.scale": (0.4, 1.0)})
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("images", "device", "world", "batch"),
    [
        (2, CPU, 1, 2), (3, CPU, 1, 2), (15, CPU, 1, 2), (16, CPU, 1, 4), (255, CPU, 1, 32), (256, CPU, 1, 64),
        (10**6, CPU, 1, 64), (10**6, GPU, 1, 256), (10**6, GPU, 8, 2048), (10**6, CPU, 3, 192), (100, GPU, 4, 16),
    ],
)  # fmt: skip
def test_a_batch_is_at_most_a_quarter_of_the_set(
    monkeypatch: pytest.MonkeyPatch, images: int, device: torch.device, world: int, batch: int
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    size, why = sizing.batch("auto", images, math.inf, device)
    assert size == batch
    assert size % world == 0 and size <= images
    assert why != "as configured"


@pytest.mark.parametrize(("epochs", "batch"), [(100, 256), (50, 128), (20, 64), (5, 32), (1, 32)])
def test_a_short_run_takes_smaller_steps_rather_than_few(epochs: int, batch: int) -> None:
    assert sizing.batch("auto", 2000, epochs * 2000, GPU)[0] == batch


def test_a_batch_that_was_asked_for_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizing.batch(30, 30, 1e6, CPU) == (30, "as configured")
    with pytest.raises(
        UserError, match=r"The dataset has 30 images, fewer than one batch of 31\. Use --batch 30 or less"
    ):
        sizing.batch(31, 30, 1e6, CPU)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(UserError, match="A batch of 30 is not divisible by 4 processes"):
        sizing.batch(30, 30, 1e6, CPU)
    with pytest.raises(UserError, match=r"has 3 images, fewer than the 4 processes .*--devices 3 or less"):
        sizing.batch("auto", 3, 1e6, CPU)


def test_parts_that_were_asked_for_must_divide_the_share_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizing.micro_batches(4, 32, 1.0, CPU) == (4, "as configured")
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(
        UserError,
        match=r"8 images do not divide into optim.grad_accum_steps=3 micro-batches\. Set .* to a divisor of 8",
    ):
        sizing.micro_batches(3, 32, 1.0, CPU)


@pytest.mark.parametrize(("views", "local"), [(1, 0), (2, 0), (2, 3)])
def test_what_a_step_keeps_of_an_image_is_counted_without_computing(views: int, local: int) -> None:
    with torch.device("meta"):
        network = build.backbone("conv4", width=4)
    crop = view({"crop.scale": (0.4, 1.0)})
    spec = ViewSpec((ViewGroup("global", 32, (crop,) * views), ViewGroup("local", 16, (crop,) * local)))
    # Of a view: the pixels, and before and after the activation the maps of 4 · 32², 8 · 16², 16 · 8² and 32 · 4². A
    # quarter of that for a view of half the side. Batch norm's own 240 numbers are at most 1.3 % more.
    numbers = (3 * 32**2 + 2 * (4 * 32**2 + 8 * 16**2 + 16 * 8**2 + 32 * 4**2)) * (views + local / 4)
    assert sizing.activation_bytes(network, spec) == pytest.approx(1.25 * 4 * numbers, rel=0.015)


@pytest.mark.parametrize(("memory", "parts"), [(13e9, 1), (12e9, 2), (6e9, 3), (1.1e9, 12), (1e9, 24), (1.0, 24)])
def test_as_few_parts_as_fit(monkeypatch: pytest.MonkeyPatch, memory: float, parts: int) -> None:
    # 24 images of 130.5 MB are 3.13 GB. A quarter of the memory must hold a part, or a part is one image.
    monkeypatch.setattr(os, "sysconf", lambda name: int(memory) if name == "SC_PAGE_SIZE" else 1)
    found, why = sizing.micro_batches("auto", 24, 130.5e6, CPU)
    assert found == parts
    assert "MiB" in why


@pytest.mark.parametrize("name", ["vit_tiny/16", "conv4"])
def test_activations_foretold_on_the_meta_device_are_those_autograd_keeps(name: str) -> None:
    spec = ViewSpec((ViewGroup("global", 64, (AUGMENT,) * 2), ViewGroup("local", 32, (AUGMENT,) * 3)))
    with torch.device("meta"):
        foretold = sizing.activation_bytes(build.backbone(name, image_px=64), spec)
    real = build.backbone(name, image_px=64)
    kept = {p.untyped_storage().data_ptr(): 0 for p in real.parameters()}
    alive = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        real([torch.zeros(2, 3, 64, 64), torch.zeros(3, 3, 32, 32)])
    # Attention kernels differ between devices in what they keep besides; 1.25 is the margin of the estimate.
    assert 0.9 * 1.25 < foretold / sum(kept.values()) < 1.1 * 1.25


def test_views_with_masks_keep_all_tokens_of_the_last_block() -> None:
    plain, masked = (ViewSpec((ViewGroup("global", 64, (AUGMENT,) * 2, m),)) for m in (None, BlockMasks(1, 0.3)))
    with torch.device("meta"):
        network = build.backbone("vit/8", image_px=64, embed_dim=24, depth=1, num_heads=2)
    ours, theirs = (sizing.activation_bytes(network, spec) for spec in (masked, plain))
    # Of the last block's MLP alone: its input and both hidden maps, four times as wide, for 64 patches of two views.
    assert ours - theirs > 1.25 * 2 * 64 * 4 * (24 + 2 * 4 * 24)


def test_recomputed_blocks_keep_what_goes_in_and_one_block_at_a_time() -> None:
    spec = ViewSpec((ViewGroup("global", 64, (AUGMENT,) * 2),))

    def foretold(depth: int, recomputed: bool) -> float:
        with torch.device("meta"):
            network = build.backbone("vit/8", image_px=64, embed_dim=24, depth=depth, num_heads=2)
        return sizing.activation_bytes(network, spec, recomputed) / 1.25

    tokens = 2 * 65 * 24 * 4  # bytes that go into a block: a CLS and 64 patches of each of two views
    assert foretold(9, True) - foretold(5, True) == pytest.approx(4 * tokens)
    assert foretold(9, False) - foretold(5, False) > 10 * 4 * tokens


def test_memory_counts_what_each_device_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    method = dino.build(
        dino.Config(out_dim=8, hidden_dim=8, bottleneck_dim=4), lambda role: build.backbone("conv4", width=4)
    )
    weights = sum(p.nbytes for p in method.parameters())
    trained = sum(p.nbytes for p in method.student.parameters() if p.requires_grad)
    assert sizing.memory(method, "adamw", 5.0, False) == sizing.Memory(weights, trained, 2 * trained, 5.0)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    assert sizing.memory(method, "sgd", 5.0, False) == sizing.Memory(weights, 2 * trained, trained, 5.0)
    assert sizing.memory(method, "sgd", 5.0, True) == sizing.Memory(weights / 4, trained / 4, trained / 4, 5.0)
    monkeypatch.setattr(sizing, "total_bytes", lambda _: 1e9)
    full, shard = (sizing.memory(method, "sgd", 5.0, sharded).total for sharded in (False, True))
    for free, how in ((full, "ddp"), (full - 1, "fsdp"), (shard - 1, "fsdp")):
        monkeypatch.setattr(sizing, "free_bytes", lambda _, free=free: free)
        found, why = sizing.parallel("auto", method, "sgd", 5.0, CPU)
        assert found == how
        assert ("may not fit" in why) == (free < shard)
    assert sizing.parallel("ddp", method, "sgd", 5.0, CPU)[0] == "ddp"


def test_workers_share_the_cores_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert sizing.workers(0, CPU) == (0, "as configured")
    assert (sizing.workers("auto", CPU)[0], sizing.workers("auto", GPU)[0]) == (4, 15)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (sizing.workers("auto", CPU)[0], sizing.workers("auto", GPU)[0]) == (1, 1)


def test_more_workers_than_the_cores_can_serve_are_refused() -> None:
    most = sizing.ranges.MOST_PROCESSES
    assert sizing.workers(most, CPU) == (most, "as configured")
    with pytest.raises(UsageError, match=rf"--workers is 100,000, and this machine has \d+ cores\. Use 0 to {most}"):
        sizing.workers(100_000, CPU)


@pytest.mark.parametrize(
    ("weights", "activations", "hint"),
    [(49.0, 0.0, None), (49.0, 200.0, None), (51.0, 0.0, "out-dim"), (51.0, 900.0, "out-dim"), (1.0, 399.0, "--batch")],
)
def test_what_cannot_fit_is_refused_before_memory_is_taken(
    monkeypatch: pytest.MonkeyPatch, weights: float, activations: float, hint: str | None
) -> None:
    monkeypatch.setattr(sizing, "total_bytes", lambda _: 100.0 * 2**30)
    needed = sizing.Memory(weights * 2**30, weights * 2**30, 0.0, activations * 2**30)
    if hint is None:
        sizing.check_fits(needed, CPU)
    else:
        says = rf"Training needs [\d,]+ GiB \(weights .*has 1e\+02 GiB\. Use a smaller .*{hint}"
        with pytest.raises(UserError, match=says):
            sizing.check_fits(needed, CPU)


@pytest.mark.parametrize(
    ("wanted", "num_eval", "num_trained", "found"),
    [
        ("auto", 1439, 7552, "34%"), ("auto", 1439, 34_000, "20%"), ("auto", 1439, 150_000, "10%"),
        ("auto", 0, 100, "10%"), ("5ep", 1439, 7552, "5ep"),
    ],
)  # fmt: skip
def test_short_runs_are_evaluated_less_often(wanted: str, num_eval: int, num_trained: int, found: str) -> None:
    assert sizing.eval_every(wanted, num_eval, num_trained)[0] == found
