"""The projection head: lengths, bounds, keys, precision."""

from __future__ import annotations

import copy

import pytest
import torch

from opendino.models.heads import ProjectionHead


def head(**options: object) -> ProjectionHead:
    torch.manual_seed(0)
    return ProjectionHead(12, 50, **{"hidden_dim": 20, "bottleneck_dim": 8, **options})


def test_keys_are_those_of_dino_v1() -> None:
    linear = [f"mlp.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")]
    assert list(head().state_dict()) == [*linear, "last_layer.weight_g", "last_layer.weight_v"]
    with_norm = {key.split(".")[1] for key in head(batch_norm=True).state_dict() if key.startswith("mlp.")}
    assert with_norm == {"0", "1", "3", "4", "6"}
    assert [type(layer).__name__ for layer in head(num_layers=1).mlp] == ["Linear"]


@pytest.mark.parametrize("normed", [True, False])
def test_prototypes_start_at_length_one_and_are_fixed_if_asked(normed: bool) -> None:
    last = head(norm_last_layer=normed).last_layer
    assert last.weight_g.shape == (50, 1)
    assert bool((last.weight_g == 1).all())
    assert last.weight_g.requires_grad is not normed
    assert last.weight_v.requires_grad


def test_logits_are_cosines() -> None:
    model, rows = head().double(), torch.randn(30, 12, dtype=torch.float64)
    bottleneck, prototypes = model.mlp(rows), model.last_layer.weight_v
    cosines = torch.nn.functional.cosine_similarity(bottleneck[:, None], prototypes[None], dim=-1)
    torch.testing.assert_close(model(rows), cosines, rtol=0, atol=1e-13)
    assert head()(100 * rows.float()).abs().max() <= 1 + 1e-6


def test_lengths_scale_logits() -> None:
    model, rows = head(norm_last_layer=False).double(), torch.randn(3, 12, dtype=torch.float64)
    before = model(rows)
    with torch.no_grad():
        model.last_layer.weight_g.mul_(3)
        model.last_layer.weight_v.mul_(7)  # directions only
    torch.testing.assert_close(model(rows), 3 * before, rtol=1e-13, atol=1e-13)


def test_rows_do_not_see_each_other() -> None:
    model, rows = head().double(), torch.randn(7, 12, dtype=torch.float64)
    torch.testing.assert_close(model(rows)[2:3], model(rows[2:3]), rtol=0, atol=1e-13)
    normed = head(batch_norm=True).double()
    assert not torch.allclose(normed(rows)[2:4], normed(rows[2:4]))


def test_normalization_is_float32_under_autocast() -> None:
    model, seen = head(), []
    model.last_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(5, 12))
    assert seen[0].dtype == torch.float32
    assert (seen[0].norm(dim=-1) - 1).abs().max() < 1e-6
    assert logits.isfinite().all()


def test_a_zero_bottleneck_gives_zero_and_finite_gradients() -> None:
    model = head(num_layers=1)
    torch.nn.init.zeros_(model.mlp[0].weight)
    logits = model(torch.randn(2, 12))
    assert not logits.any()
    logits.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_gradients_are_exact_and_copies_are_equal() -> None:
    model = head(norm_last_layer=False).double()
    rows = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (rows,))
    names = [name for name, _ in model.last_layer.named_parameters()]
    values = tuple(model.last_layer.get_parameter(name)[:4].detach().clone().requires_grad_() for name in names)
    unit = torch.randn(3, 8, dtype=torch.float64)

    def logits(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model.last_layer, dict(zip(names, parameters, strict=True)), (unit,))

    assert torch.autograd.gradcheck(logits, values)
    assert torch.equal(copy.deepcopy(model)(rows), model(rows))
