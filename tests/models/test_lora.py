"""Adapters: they start as no change, they alone are trained, and merged they give a plain network of equal output."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from tests.factories import small_vit
from torch import nn

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError
from opendino.models.build import backbone
from opendino.models.lora import add_adapters, with_merged_adapters

TIMM = "test_vit"


def vit(**options: Any) -> Backbone:
    return small_vit("vit/8", image_px=16, depth=2, num_heads=2, **options).double()


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize(("network", "side", "layers"), [(vit, 16, 8), (lambda: backbone(TIMM).double(), 160, 24)])
def test_adapters_alone_learn_and_merge_into_the_weights(network: Any, side: int, layers: int) -> None:
    pytest.importorskip("peft")
    plain, batch = network().eval(), images(side)
    before, given = plain([batch])[0], {key: value.clone() for key, value in plain.state_dict().items()}
    add_adapters(plain, 2)
    assert torch.equal(plain([batch])[0].detach(), before.detach())
    trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * layers and all("lora_" in name for name in trained)
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.5)
    after = plain([batch])[0]
    after.square().sum().backward()
    lost = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert not lost, "the forward pass goes around these adapters"
    torch.testing.assert_close(after, plain.features(batch).cls, rtol=0, atol=1e-10)  # all tokens, another path
    merged = with_merged_adapters(plain)
    torch.testing.assert_close(merged([batch])[0], after, rtol=0, atol=1e-9)
    assert (after - before).abs().max() > 1e-3
    found = merged.state_dict()
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in given.items()}
    changed = {key for key in given if not torch.equal(found[key], given[key])}
    assert len(changed) == layers and all(key.endswith(".weight") for key in changed)
    assert "peft" not in {type(module).__module__.partition(".")[0] for module in merged.modules()}
    assert sum("lora_" in name for name, _ in plain.named_parameters()) == 2 * layers  # the original is untouched


def test_networks_without_linear_layers_and_ranks_that_are_too_high_are_refused() -> None:
    with pytest.raises(UserError, match=r"conv4 has no linear layers that adapters of lora_rank 4") as found:
        add_adapters(backbone("conv4", width=2), 4)
    assert "--method.lora-rank 0" in found.value.hint
    with pytest.raises(UsageError, match=r"Adapters of lora_rank 99 have [\d,]+ weights"):
        add_adapters(vit(), 99)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="lora_rank 2 needs peft") as found:
        add_adapters(vit(), 2)
    assert found.value.hint == 'pip install "opendino[finetune]"'


def test_layers_whose_weight_is_read_get_no_adapter() -> None:
    pytest.importorskip("peft")

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.q_bias, self.proj = nn.Linear(8, 24), nn.Parameter(torch.zeros(8)), nn.Linear(8, 8)

    network = vit()
    network.blocks.append(Attention())
    network.blocks.append(nn.MultiheadAttention(8, 2))
    add_adapters(network, 2)
    names = {name.rpartition(".lora_")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert "blocks.2.proj" in names and not any(name.startswith(("blocks.2.qkv", "blocks.3")) for name in names)
