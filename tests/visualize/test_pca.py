"""Components match NumPy up to the sign rule, and are bitwise reproducible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.core.errors import UserError
from opendino.visualize.drawing.pca_colors import fit, pca_colors_of
from opendino.visualize.pca import Config, show


def test_components_are_numpys_up_to_the_rule_of_signs() -> None:
    x = torch.randn(200, 12) @ torch.diag(torch.linspace(3, 0.2, 12)) + 5
    mean, components, variances = pca_colors_of(x)
    centered = x.double().numpy() - x.double().numpy().mean(0)
    _, singular, rows = np.linalg.svd(centered, full_matrices=False)
    rows *= np.sign(rows[np.arange(12), np.abs(rows).argmax(1)])[:, None]
    np.testing.assert_allclose(components.numpy(), rows[:3], atol=1e-8)  # roots of eigenvalues lose half the digits
    np.testing.assert_allclose(variances.numpy(), singular**2 / 199, rtol=1e-8)
    np.testing.assert_allclose(mean.numpy(), x.double().numpy().mean(0))
    assert all(torch.equal(a, b) for a, b in zip(pca_colors_of(x), pca_colors_of(x), strict=True))


def test_equal_features_have_equal_colors_in_every_image() -> None:
    one, other = torch.randn(5, 6, 8), torch.randn(4, 4, 8)
    other[2, 1] = one[3, 5]
    basis = fit([one, other])
    colors = [basis.colors(each) for each in (one, other)]
    assert colors[0].shape == (5, 6, 3) and colors[0].dtype == np.uint8
    assert (colors[1][2, 1] == colors[0][3, 5]).all()
    assert np.concatenate([each.reshape(-1, 3) for each in colors]).min(0).tolist() == [0, 0, 0]
    assert np.concatenate([each.reshape(-1, 3) for each in colors]).max(0).tolist() == [255, 255, 255]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_what_touches_the_border_less(sign: int) -> None:
    image = 0.1 * torch.randn(8, 8, 6)
    image[2:6, 3:6] += sign * torch.tensor([4.0, 0, 0, 0, 0, 0])
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 3:6] = True
    assert torch.equal(fit([image], "auto").foreground(image), inside)
    above, below = (fit([image], side).foreground(image) for side in ("above", "below"))
    assert torch.equal(above, ~below) and (torch.equal(above, inside) or torch.equal(below, inside))
    drawn = fit([image], "auto").colors(image)
    assert (drawn[~inside] == 0).all() and drawn[inside].max() == 255


def test_pictures_end_to_end_are_the_same_each_time(vit: str, tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        report = show(Config(vit, ("toy:forms?n=3&size=32",), out=str(tmp_path / name), size_px=32, device="cpu"))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()
    assert report.fields["fitted_on"] == 3 and len(report.fields["explained"]) == 3
    many = show(Config(vit, ("toy:forms?n=70&size=32",), out=str(tmp_path / "many"), size_px=32, device="cpu"))
    assert len(list((tmp_path / "many").iterdir())) == 70 == len(many.fields["paths"])
    assert many.fields["fitted_on"] == 64


def test_too_few_patches_and_broken_weights_say_so(vit: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="1 patches of 24 features are too few for three components"):
        show(Config(vit, (str(tmp_path / "a.png"),), out=str(tmp_path / "o.png"), size_px=4, device="cpu"))
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"None of the 1 images can be read, e\.g\. .*b\.png"):
        show(Config(vit, (str(tmp_path / "b.png"),), out=str(tmp_path / "o.png"), size_px=32, device="cpu"))
