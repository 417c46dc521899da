"""Compiled and eager results agree up to rounding; a machine that cannot compile gets a clear error."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from opendino.core import compilation
from opendino.core.compilation import compiled as fused
from opendino.core.compilation import compiling
from opendino.core.errors import UserError
from opendino.engine.activation_checkpointing import checkpoint_activations
from opendino.methods import dino
from opendino.models import build
from opendino.models.vit_layers import drop_on_subset
from opendino.views import crop_resize
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import sample_views
from opendino.views.settings import changed

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler"),
    # The compiler warns of what it does itself.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

CPU = torch.device("cpu")
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
CLOSE = {"rtol": 1e-11, "atol": 1e-13}  # float64; sums in another order


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("how", ["subset", "recomputed"])
def test_compiled_blocks_give_the_same_outputs_and_gradients(how: str, device: str) -> None:
    torch.manual_seed(0)
    rate = {"subset": 0.5, "recomputed": 0.0}[how]  # each rate and each image size is compiled anew
    network = build.backbone("vit/4", image_px=8, embed_dim=24, depth=2, num_heads=2, drop_path=rate)
    network.to(device, torch.float64).train()
    {"subset": drop_on_subset, "recomputed": checkpoint_activations}[how](network)
    images = [torch.randn(4, 3, 8, 8, dtype=torch.float64, device=device)]
    found = []
    for wanted in (False, True):
        network.zero_grad()
        torch.manual_seed(1)
        with compiling(wanted):
            rows = torch.cat(network(images))
            rows.square().sum().backward()
        found.append([rows, *(p.grad for p in network.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_compiled_crops_give_the_same_pixels(device: str) -> None:
    spec = dino.views(dino.Config(), changed(dino.VIEWS, {"global.size": 32, "local.number": 0}))
    torch.manual_seed(0)
    canvas = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8).to(device)
    chance = sample_views(spec, 0, [0] * 8, list(range(8)), torch.full((8, 2), 64).numpy())
    draws = {name: each.to(device) for name, each in chance.items()}
    plain = multi_crop(canvas, draws, spec)
    with compiling(True):
        compiled = multi_crop(canvas, draws, spec)
    for name, views in plain.items():
        away = (compiled[name] - views).abs()
        # Rounding of float32, some hundred-thousandths after the hue; and where a value is at the threshold of
        # solarization, or halfway between two levels after the resize, to the last bit, the other side of it: one or
        # two at most with this seed.
        assert (away > 1e-4).double().mean() < 1e-4
        assert away.median() < 1e-6


@pytest.mark.slow
def test_resize_matrices_do_not_depend_on_earlier_compilations() -> None:
    """Otherwise a resumed run that sees image sizes in another order would not be bitwise reproducible."""
    before = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    starts, lengths, flips = torch.zeros(2, 3).int(), torch.full((2, 3), 20).int(), torch.zeros(2, 3).bool()
    for size, side in ((8, 64), (8, 96), (12, 32)):
        with compiling(True):
            found = crop_resize._resize_matrices(starts, lengths, flips, size, side, torch.float32)
        expected = crop_resize._resize_matrices(starts, lengths, flips, size, side, torch.float32)
        torch.testing.assert_close(found, expected, atol=3e-7, rtol=0)  # weights ≤ 1, a few roundings of 2^-24
    assert counters["stats"]["unique_graphs"] - before == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_compiled_loss_gives_the_same_value_and_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    full = torch.promote_types(dtype, torch.float32)
    rows = torch.nn.functional.normalize(torch.randn(4, 6, 8, dtype=full), dim=-1).requires_grad_()
    prototypes = torch.randn(32, 8, dtype=full, requires_grad=True)
    targets = torch.randn(2, 6, 32, dtype=full).softmax(-1)
    found: list[tuple[Tensor, ...]] = []
    for wanted in (False, True):
        with compiling(wanted), torch.autocast("cpu", dtype, enabled=dtype.itemsize == 2):
            loss = dino.cross_entropy(rows, prototypes, targets, 0.1, same_views=True)
        found.append((loss.detach(), *torch.autograd.grad(loss, (rows, prototypes))))
    # A gradient rounded to bfloat16 may go the other way where float32 sums differ in the last bit.
    close = CLOSE if dtype == torch.float64 else {"rtol": 2**-7, "atol": 1e-4}
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, **close)


def test_functions_are_compiled_only_inside_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: lambda x: calls.append(dynamic) or f(x) + 1)

    @fused
    def double(x: int) -> int:
        return 2 * x

    assert double(3) == 6
    with compiling(True):
        assert double(3) == 7
        with compiling(False):
            assert double(3) == 6
        assert double(3) == 7
    assert double(3) == 6 and calls == [False, False]


def test_a_function_that_fails_to_compile_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise TorchDynamoException("no such kernel\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda f, dynamic: failing)
    double = fused(lambda x: 2 * x)
    with compiling(True):
        assert [double(3), double(4)] == [6, 8]
    said = capsys.readouterr().err
    assert said.count("could not be compiled and runs eagerly: no such kernel") == 1
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: f)

    @fused
    def broken(x: int) -> int:
        raise ValueError("a mistake of ours")

    with compiling(True), pytest.raises(ValueError, match="a mistake of ours"):
        broken(3)


def test_a_machine_that_cannot_compile_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("\n no compiler \n  and a long story")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"torch\.compile does not work on this machine: no compiler") as raised:
        compilation.choose(True, CPU, 10)
    assert "--compile False" in str(raised.value)
    assert compilation.choose(False, CPU, 10) == (False, "as configured")
    assert compilation.choose("auto", CPU, 10**6)[0] is False
    gpu = torch.device("cuda")
    monkeypatch.setattr(compilation, "compiler_works", lambda device: "no Triton")
    assert compilation.choose("auto", gpu, 10**6) == (False, "no Triton")
    monkeypatch.setattr(compilation, "compiler_works", lambda device: None)
    assert compilation.choose("auto", gpu, 999)[0] is False
    assert compilation.choose("auto", gpu, 1000)[0] is True
