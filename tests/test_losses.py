"""Functions of network outputs; the loss itself is compared in tests/methods/test_dino.py."""

from __future__ import annotations

import pytest
import torch

from opendino.losses import cross_entropy


def test_a_second_backward_pass_is_refused() -> None:  # the first one overwrites the gradient
    rows = torch.randn(2, 3, 6, requires_grad=True)
    loss = cross_entropy(rows, torch.randn(5, 6), torch.rand(2, 3, 5), 0.3, same_views=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
