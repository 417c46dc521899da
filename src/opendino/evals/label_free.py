"""What features say of themselves, without labels."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv:2210.02885): exp of the entropy of the normalised singular values.

    Between 1 (all features on one line: collapse) and min(M, D). Features are not centred, as in the paper.

    Args:
        features: float `[M D]`.

    Returns:
        NaN where features are not finite.
    """
    if not features.isfinite().all():
        return float("nan")
    singular = torch.linalg.svdvals(features.double())
    shares = singular / singular.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())
