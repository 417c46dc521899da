"""ResNets by torchvision's keys; features and logits are torchvision's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from opendino.core.errors import UserError
from opendino.interop.checkpoint_files import Checkpoint
from opendino.interop.importing import import_model, read_recognized


@torch.no_grad()
@pytest.mark.parametrize("old", [False, True], ids=["today's", "of 2017"])
def test_a_file_of_torchvision_gives_its_features_and_logits(tmp_path: Path, old: bool) -> None:
    theirs = torchvision.models.resnet18(num_classes=11).eval()
    for buffer in theirs.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    state = {key: value for key, value in theirs.state_dict().items() if not (old and "num_batches" in key)}
    torch.save(state, tmp_path / "resnet.pth", _use_new_zipfile_serialization=not old)
    imported, model = import_model(str(tmp_path / "resnet.pth"), str(tmp_path / "ours"))
    assert imported.about == "resnet18 by torchvision's keys, 11 classes"
    assert model.preprocessing["interpolation"] == "bilinear" and model.preprocessing["resize_px"] == 256
    images = torch.randn(2, 3, 64, 64)
    assert imported.classifier is not None
    torch.testing.assert_close(imported.classifier(model.embed(images)), theirs(images))
    theirs.fc = nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(model.embed(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "blocks", "bottleneck"),
    [
        ("resnet18", (2, 2, 2, 2), False), ("resnet34", (3, 4, 6, 3), False), ("resnet50", (3, 4, 6, 3), True),
        ("resnet101", (3, 4, 23, 3), True), ("resnet152", (3, 8, 36, 3), True),
    ],
)  # fmt: skip
def test_all_published_sizes_by_shape(
    layouts: SimpleNamespace, name: str, blocks: tuple[int, int, int, int], bottleneck: bool
) -> None:
    shapes = layouts.resnet(blocks, bottleneck, classes=1000)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().state_dict()
    assert {key: tuple(value.shape) for key, value in theirs.items()} == shapes
    imported = read_recognized(Checkpoint(Path("resnet.pth"), layouts.filled(shapes, layouts.zeros)))
    assert imported.networks["teacher"].name == name
    assert imported.classifier is not None and imported.classifier.out_features == 1000


def test_other_resnets_are_refused(layouts: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="is a ResNet of 1-1-1-1 blocks, not 18, 34, 50, 101 or 152"):
        tiny = layouts.resnet((1, 1, 1, 1), bottleneck=False)
        read_recognized(Checkpoint(Path("resnet.pth"), layouts.filled(tiny, layouts.zeros)))
    with torch.device("meta"):
        wide = torchvision.models.wide_resnet50_2().state_dict()
    tree = layouts.filled({key: tuple(value.shape) for key, value in wide.items()}, layouts.zeros)
    with pytest.raises(UserError, match=r"has in another shape layer1\.0\.conv1\.weight .* and \d+ more"):
        read_recognized(Checkpoint(Path("resnet.pth"), tree))
