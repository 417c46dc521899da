"""The recorded numbers of DINO v1, to 1e-10 in float64, through the package's own pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opendino.core import schedule_formulas
from opendino.core.contracts import Backbone, Method
from opendino.core.types import Clock, Features, Views
from opendino.engine import optim
from opendino.evals.knn import knn
from opendino.methods import dino
from opendino.models.heads import ProjectionHead
from opendino.models.vit import VisionTransformer
from opendino.training import step

TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def golden(golden_file: Path) -> Mapping[str, np.ndarray]:
    return np.load(golden_file, allow_pickle=False)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(actual: Tensor | np.ndarray | float, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(
        np.asarray(actual.detach() if isinstance(actual, Tensor) else actual), wanted, rtol=TOLERANCE, atol=TOLERANCE
    )


def names(golden: Mapping[str, np.ndarray], kind: str) -> list[str]:
    return sorted({key.split(".")[1] for key in golden if key.startswith(kind + ".") and key.endswith(".args")})


def test_golden_schedules(golden: Mapping[str, np.ndarray]) -> None:
    assert names(golden, "schedule")
    for name in names(golden, "schedule"):
        base, final, epochs, per_epoch, warmup = golden[f"schedule.{name}.args"].tolist()
        total = int(epochs * per_epoch)
        ours = [schedule_formulas.warmup_cosine(i, base, final, total, int(warmup * per_epoch)) for i in range(total)]
        close(np.array(ours), golden[f"schedule.{name}.values"])


class Recorded(Backbone):
    """Stands in for backbone and head: the outputs are given."""

    embed_dim, name, kwargs = 1, "recorded", {}

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, images):  # type: ignore[no-untyped-def]
        return [self.output]

    def features(self, images: Tensor) -> Features:
        raise NotImplementedError

    class Head(nn.Identity):
        """What comes in is the logits already."""

        def __init__(self, k: int) -> None:
            super().__init__()
            self.last_layer = nn.Linear(k, k, bias=False, dtype=torch.float64)
            nn.init.eye_(self.last_layer.weight)

        def bottleneck(self, logits: Tensor) -> Tensor:
            return logits


def test_golden_loss_gradient_and_center(golden: Mapping[str, np.ndarray]) -> None:
    assert names(golden, "loss")
    for name in names(golden, "loss"):
        args = golden[f"loss.{name}.args"].tolist()
        batch, num_local, k, start, temp, warmup, epochs, student_temp, momentum, epoch = args
        batch, num_local = int(batch), int(num_local)
        config = dino.Config(
            out_dim=int(k),
            hidden_dim=1,
            bottleneck_dim=1,
            student_temp=student_temp,
            teacher_temp=temp,
            teacher_temp_start=start,
            teacher_temp_warmup=f"{int(warmup)}ep",
            center_momentum=momentum,
            momentum=0.5,
        )
        method = dino.build(config, lambda role: Recorded(torch.zeros(1, 1)))
        for pair, which in ((method.student, "student"), (method.teacher, "teacher")):
            pair["backbone"] = Recorded(torch.from_numpy(golden[f"loss.{name}.{which}"]))
            pair["head"] = Recorded.Head(int(k))
        method.get_buffer("center").copy_(torch.from_numpy(golden[f"loss.{name}.center_before"]))
        crops = {"global": torch.zeros(2, batch, 3, 1, 1)}
        if num_local:
            crops["local"] = torch.zeros(num_local, batch, 3, 1, 1)
        views = Views(crops, torch.zeros(batch, dtype=torch.long), torch.zeros(batch, dtype=torch.long))
        clock = Clock(int(epoch) * 7, int(epochs) * 7, 7)

        output = method(views, clock)
        close(method.get_buffer("center"), golden[f"loss.{name}.center_before"])  # used before it moves
        output.loss.backward()
        close(output.loss, golden[f"loss.{name}.value"])
        close(method.student["backbone"].output.grad, golden[f"loss.{name}.student_grad"])
        method.student["backbone"] = method.teacher["backbone"] = Recorded(torch.zeros(1))  # the EMA has its own tests
        method.after_step(clock, torch.tensor(True))
        close(method.get_buffer("center"), golden[f"loss.{name}.center_after"])


def network(state: Mapping[str, Tensor]) -> nn.ModuleDict:
    """Backbone and head as wide and deep as the recorded ones, with fresh weights in the original's order of draws."""
    width, depth = state["backbone.cls_token"].shape[-1], len([key for key in state if key.endswith("norm1.weight")])
    hidden, bottleneck, k = (len(state[f"head.{key}"]) for key in ("mlp.0.bias", "mlp.4.bias", "last_layer.weight_v"))
    backbone = VisionTransformer(image_px=16, patch_px=4, embed_dim=width, depth=depth, num_heads=3)
    return nn.ModuleDict({"backbone": backbone, "head": ProjectionHead(width, k, hidden, bottleneck)})


def inverse_transform(tensor: Tensor, std: float) -> Tensor:
    """The truncated normal as the original drew it: erfinv of a uniform number."""
    with torch.no_grad():
        return tensor.uniform_(-1, 1).erfinv_().mul_(std * 2**0.5).clamp_(-2, 2)


def first_weights(golden: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The weights the recorded run started from.

    A recording may have kept a reference where it meant a copy: `run.init.*` then equals `run.student_final.*`, the
    trained student. The start is rebuilt in that case. The run's student was the first thing drawn after its seed, so
    the seed is the one whose first draws lie within twelve small Adam steps of the trained patch projection; the others
    drawn from it are checked to be as near. The replayed losses then leave no doubt.
    """
    init = {
        key.removeprefix("run.init."): torch.from_numpy(golden[key]) for key in golden if key.startswith("run.init.")
    }
    if any((value.numpy() != golden[f"run.student_final.{key}"]).any() for key, value in init.items()):
        return init
    trained = init["backbone.patch_embed.proj.weight"].flatten()[:16]
    generator, drawn, bound = torch.Generator(), torch.empty(16), (3 * 4 * 4) ** -0.5
    for seed in range(1_000_000):
        drawn.uniform_(-bound, bound, generator=generator.manual_seed(seed))
        if (drawn - trained).abs().max() < 0.02:
            break
    else:
        pytest.skip("run.init.* holds the trained student, and no seed below a million explains it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, "trunc_normal_", inverse_transform)
        torch.manual_seed(seed)
        state = network(init).state_dict()
    assert all((state[key] - init[key]).abs().max() < 0.02 for key in init)
    return state


def golden_method(golden: Mapping[str, np.ndarray]) -> tuple[Method, optim.Config, int]:
    """The method of the recorded run, with its first weights, and its optimizer's settings."""
    args = golden["run.args"].tolist()
    (
        batch,
        num_local,
        k,
        epochs,
        per_epoch,
        start,
        temp,
        temp_warmup,
        lr,
        min_lr,
        lr_warmup,
        wd,
        wd_end,
        m,
        clip,
        freeze,
    ) = args
    state = first_weights(golden)
    config = dino.Config(
        out_dim=int(k),
        hidden_dim=len(state["head.mlp.0.bias"]),
        bottleneck_dim=len(state["head.mlp.4.bias"]),
        teacher_temp=temp,
        teacher_temp_start=start,
        teacher_temp_warmup=f"{int(temp_warmup)}ep",
        freeze_last_layer=f"{int(freeze)}ep",
        momentum=m,
    )
    method = dino.build(config, lambda role: network(state)["backbone"])
    method.student.load_state_dict(state)
    method.teacher.load_state_dict(state)
    settings = optim.ResolvedConfig(
        lr=lr * 256 / batch,
        min_lr=min_lr,
        lr_warmup=f"{int(lr_warmup)}ep",
        weight_decay=wd,
        weight_decay_end=wd_end,
        clip=clip,
        grad_accum_steps=1,
    )
    return method, settings, int(per_epoch)


@pytest.mark.parametrize("parts", [1, 2])
def test_golden_run_through_the_training_step(golden: Mapping[str, np.ndarray], parts: int) -> None:
    method, settings, per_epoch = golden_method(golden)
    settings = replace(settings, grad_accum_steps=parts)
    optimizer = optim.build(settings, method.student)
    crops = {"global": torch.from_numpy(golden["run.global"]), "local": torch.from_numpy(golden["run.local"])}
    total, batch = crops["global"].shape[0], crops["global"].shape[2]
    for number in range(total):
        indices = torch.arange(batch).chunk(parts)  # accumulation is the same run, worked off in parts
        views = (Views({name: crop[number][:, part] for name, crop in crops.items()}, part, part) for part in indices)
        clock = Clock(number, total, per_epoch)
        tensors, _ = step(method, optimizer, settings, batch, clock, views, torch.float64)
        close(tensors["loss"], golden["run.losses"][number])
        close(method.get_buffer("center")[0], golden["run.centers"][number])
        assert tensors["ok"]
    for which, trained in (("student", method.student), ("teacher", method.teacher)):
        state = trained.state_dict()
        wanted = [key for key in golden if key.startswith(f"run.{which}_final.")]
        assert len(wanted) == len(state)
        for key in wanted:
            close(state[key.removeprefix(f"run.{which}_final.")], golden[key])


def test_golden_knn(golden: Mapping[str, np.ndarray]) -> None:
    k = golden["knn.k"].tolist()
    sides = [torch.from_numpy(golden[f"knn.{name}"]) for name in ("train", "train_labels", "test", "test_labels")]
    accuracy = knn(*sides, k=k, temperature=float(golden["knn.temperature"]))
    close(np.array([accuracy[each] for each in k]), golden["knn.top1_top5"])
