"""Files of the original DINO: every published layout is read, and written files come back in every bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from opendino.core.errors import UserError
from opendino.interop import checkpoint_files
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.interop.formats import dino_v1
from opendino.interop.importing import import_model, read_recognized
from opendino.models.build import backbone
from opendino.models.load import load, preprocessing, save_backbone

Layouts = SimpleNamespace


def weights(imported: Imported) -> int:
    return sum(weight.numel() for weight in next(iter(imported.networks.values())).parameters())


@pytest.mark.parametrize(
    ("width", "patch", "name", "millions"),
    [
        (384, 16, "vit_small/16", 21.67), (768, 8, "vit_base/8", 85.81),
    ],
)  # fmt: skip
def test_the_published_vits_full_and_alone(
    layouts: Layouts, width: int, patch: int, name: str, millions: float
) -> None:
    shapes = layouts.vit(width, patch)
    assert len(shapes) == 150
    full = read_recognized(Checkpoint(Path("checkpoint.pth"), layouts.full(shapes, layouts.head(width))))
    assert list(full.networks) == ["teacher", "student"]
    assert [network.name for network in full.networks.values()] == [name, name]
    assert full.preprocessing == preprocessing(224) and full.preprocessing["resize_px"] == 256
    assert name in full.about and "65,536 prototypes" in full.about and "100 epochs" in full.about
    del full
    alone = read_recognized(Checkpoint(Path("pretrain.pth"), layouts.filled(shapes, layouts.zeros)))
    assert list(alone.networks) == ["teacher"] and alone.networks["teacher"].name == name
    assert weights(alone) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("teacher_prefix", ["", "module."])
def test_the_published_resnet50(layouts: Layouts, teacher_prefix: str) -> None:
    shapes = layouts.resnet((3, 4, 6, 3), bottleneck=True)
    head = layouts.head(2048, prototypes=60000, batch_norm=True)
    full = layouts.full(shapes, head, teacher_prefix=teacher_prefix)
    imported = read_recognized(Checkpoint(Path("checkpoint.pth"), full))
    assert {which: network.name for which, network in imported.networks.items()} == {
        "teacher": "resnet50", "student": "resnet50",
    }  # fmt: skip
    assert weights(imported) == 23_508_032
    alone = read_recognized(Checkpoint(Path("pretrain.pth"), layouts.filled(shapes, layouts.zeros)))
    assert alone.networks["teacher"].name == "resnet50" and alone.classifier is None


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 2020"])
def test_a_full_checkpoint_as_the_original_saves_it(layouts: Layouts, tmp_path: Path, legacy: bool) -> None:
    saved = layouts.full(layouts.tiny, layouts.tiny_head, layouts.random)
    torch.save(saved, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):  # what users of the original meet today
        torch.load(tmp_path / "checkpoint.pth")
    tree = checkpoint_files.read(tmp_path / "checkpoint.pth").tree
    assert tree["args"] == vars(saved["args"]) and tree["epoch"] == 100
    assert tree["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    imported, model = import_model(str(tmp_path / "checkpoint.pth"), str(tmp_path / "model"))
    assert "97 prototypes are not imported" in imported.about
    for which, prefix in (("teacher", "backbone."), ("student", "module.backbone.")):
        found = load(tmp_path / "model", which).backbone.state_dict()
        assert found.keys() == layouts.tiny.keys()
        assert all(torch.equal(found[key], saved[which][prefix + key]) for key in found)
    assert model.description["extra"]["imported"] == imported.about


@pytest.mark.parametrize("name", ["vit_tiny/16", "resnet18/3x3"])
def test_what_is_written_comes_back_in_every_bit(tmp_path: Path, name: str) -> None:
    ours = {which: backbone(name, image_px=32) for which in ("teacher", "student")}
    for network in ours.values():
        for buffer in network.buffers():
            buffer.copy_(torch.rand(buffer.shape) + 1 if buffer.is_floating_point() else torch.tensor(7))
    save_backbone(tmp_path / "ours", ours, preprocessing=preprocessing(32))
    model = load(tmp_path / "ours")
    for config in (dino_v1.Config(), dino_v1.Config(with_student=str(tmp_path / "ours"))):
        assert dino_v1.write(model, tmp_path / "out.pth", config) == 0.0
        raw = torch.load(tmp_path / "out.pth", weights_only=True)  # torch itself reads it, as the original would
        assert (
            ("module.backbone." in next(iter(raw["student"])))
            if config.with_student
            else isinstance(next(iter(raw.values())), Tensor)
        )
        imported = read_recognized(checkpoint_files.read(tmp_path / "out.pth"))
        assert list(imported.networks) == (["teacher", "student"] if config.with_student else ["teacher"])
        for which, network in imported.networks.items():
            found, wanted = network.state_dict(), ours[which].state_dict()
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[key], wanted[key]) for key in found)


def test_networks_that_the_original_does_not_know_are_not_written(tmp_path: Path) -> None:
    for network in (backbone("conv4"), backbone("vit_tiny/16", num_registers=4)):
        save_backbone(tmp_path / "ours", {"teacher": network}, preprocessing=preprocessing(32))
        with pytest.raises(UserError, match="DINO v1 has no "):
            dino_v1.write(load(tmp_path / "ours"), tmp_path / "out.pth", dino_v1.Config())
    assert not (tmp_path / "out.pth").exists()


def test_golden_weights_of_the_original_give_its_features(golden_file: Path, tmp_path: Path) -> None:
    with np.load(golden_file, allow_pickle=False) as file:
        golden = {key: torch.from_numpy(file[key]) for key in file.files if key.startswith("vit.")}
    state = {key.removeprefix("vit.state."): value for key, value in golden.items() if key.startswith("vit.state.")}
    torch.save(state, tmp_path / "pretrain.pth")
    with pytest.raises(UserError, match=r"24 wide, .* --num-heads"):
        import_model(str(tmp_path / "pretrain.pth"), str(tmp_path / "model"))
    _, model = import_model(str(tmp_path / "pretrain.pth"), str(tmp_path / "model"), num_heads=3)
    for case in ("native", "small", "rect", "large"):
        found = model.embed(golden[f"vit.{case}.input"].float())
        # a model is float32: 2⁻²⁴ relative in each of some ten operations on numbers of size 1
        torch.testing.assert_close(found.double(), golden[f"vit.{case}.cls"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks.1.norm1.bias": None, "norm.bias": None}, r"it lacks blocks\.1\.norm1\.bias, norm\.bias\."),
        ({"extra.weight": torch.ones(2)}, r"it also has extra\.weight\."),
        ({"cls_token": torch.ones(())}, r"has no known format .*; its keys are cls_token, pos_embed, .* and 26 more"),
        ({"norm.bias": torch.ones(65)}, r"it has in another shape norm\.bias \(65,\) for \(64,\)\."),
        ({"norm.bias": torch.full((64,), torch.nan)}, r"numbers in norm\.bias that are not finite"),
        ({"norm.bias": torch.full((64,), 1e300, dtype=torch.float64)}, r"numbers in norm\.bias that are not finite"),
        ({"norm.bias": torch.ones(64, dtype=torch.int8)}, r"holds norm\.bias as int8"),
        ({"pos_embed": torch.ones(1, 198, 64)}, r"it has in another shape pos_embed \(1, 198, 64\) for \(1, 197, 64\)"),
    ],
)
def test_a_near_miss_is_a_readable_difference(layouts: Layouts, change: dict[str, Any], said: str) -> None:
    state = {**layouts.filled(layouts.tiny, layouts.random), **change}
    tree = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(UserError, match=said) as told:
        read_recognized(Checkpoint(Path("pretrain.pth"), tree))
    assert "\n" not in str(told.value) and "'pretrain.pth'" in str(told.value)


def test_teacher_and_student_must_be_alike_and_have_nothing_unknown(layouts: Layouts) -> None:
    tree = layouts.full(layouts.tiny, layouts.tiny_head)
    tree["student"] = layouts.filled(layouts.vit(64, 16, depth=1), layouts.zeros, "module.backbone.")
    with pytest.raises(UserError, match="networks of different shapes"):
        read_recognized(Checkpoint(Path("checkpoint.pth"), tree))
    tree = layouts.full(layouts.tiny, {**layouts.tiny_head, "queue": (3,)})
    with pytest.raises(UserError, match=r"the teacher of 'checkpoint.pth' has head\.queue, part of neither"):
        read_recognized(Checkpoint(Path("checkpoint.pth"), tree))
