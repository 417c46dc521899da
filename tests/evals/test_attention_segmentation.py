"""Attention against masks: hand-made attention, then end to end from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_folder, small_vit
from torch import Tensor, nn

from opendino.cli import main
from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError
from opendino.core.types import Features
from opendino.data.sources.toy import ToySource
from opendino.evals import attention_segmentation
from opendino.evals.attention_segmentation import Config, attention_jaccard, evaluate
from opendino.models.build import backbone
from opendino.models.load import Model, load, preprocessing, save_backbone


def test_jaccard_of_hand_made_heads() -> None:
    # On a grid of 2×2 and a mask of 4×4 whose upper half is object: a head on it, one on the left half, one beside it.
    heads = torch.tensor([[[1.0, 1.0], [0, 0]], [[1.0, 0], [1.0, 0]], [[0, 0], [0, 1.0]]])
    truth = torch.zeros(4, 4, dtype=torch.bool)
    truth[:2] = True
    # The mean gives 2/5, 1/5, 1/5, 1/5: two of the four patches hold 0.6, one of them any of three equal ones.
    found = attention_jaccard(heads, truth)
    assert found[:3].tolist() == [1, 1 / 3, 0]
    void = torch.zeros(4, 4, dtype=torch.bool)
    void[2:, :2] = True
    assert attention_jaccard(heads, truth, void)[1] == 0.5
    assert attention_jaccard(torch.tensor([[[3.0, 3.0], [1.0, 0]]]), truth).tolist() == [1, 1]


class Staring(Backbone):
    """Two heads that look at bright and at dark patches of 4 px, whatever the weights."""

    name, kwargs, embed_dim = "staring", {}, 1

    def __init__(self, sharpness: float = 50.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(sharpness))

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [batch.mean((1, 2, 3))[:, None] for batch in images]

    def features(self, images: Tensor) -> Features:
        patches = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)
        flat = patches.flatten(2).mT
        return Features(flat.mean(1), flat[:, :0], flat, (patches.shape[2], patches.shape[3]))

    def attention(self, images: Tensor) -> Tensor:
        patches = self.features(images).patches[..., 0]
        heads = torch.stack([self.weight * patches, -self.weight * patches], dim=1).softmax(-1)
        rows = nn.functional.pad(heads, (2, 0))  # CLS and one register, which are ignored
        return rows[:, :, None].expand(-1, -1, rows.shape[-1], -1)


def test_the_best_head_finds_a_bright_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Model(Staring(), preprocessing(16), {})
    monkeypatch.setattr(attention_segmentation, "load", lambda *_: seen)
    monkeypatch.setattr(attention_segmentation, "untrained", lambda *_: Model(Staring(0.0), preprocessing(16), {}))
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    truth = np.zeros((32, 48), np.uint8)
    truth[8:20, 16:36] = 255  # of 15 patches of the 96
    Image.fromarray(truth).save(tmp_path / "masks" / "a.png")
    Image.fromarray(truth).save(tmp_path / "images" / "a.png")
    report = evaluate(Config("any", data=str(tmp_path), size_px=32, device="cpu", mass=0.95))
    best = report.fields["jaccard_best_head"]
    assert best["pretrained"] == pytest.approx(100)
    # Without any preference the fewest patches of 95 % are all but a few, no matter which.
    assert best["untrained"] == pytest.approx(100 * 15 / 96, rel=0.1)


# ---- end to end


def with_registers(seed: int) -> Backbone:
    return small_vit("vit/4", seed, image_px=32, depth=2, num_heads=3, num_registers=2)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return model_folder(tmp_path / "model", with_registers(0), 32, student=with_registers(1))


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    command = ["eval", "attention-segmentation", *args, "--size-px", "32", "--device", "cpu", "--json"]
    assert main(command) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_toy_forms_end_to_end(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ToySource("forms", n=6)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(6):
        Image.fromarray(source.read(index)).save(tmp_path / f"images/{index}.png")
        Image.fromarray(source.mask(index)).save(tmp_path / f"masks/{index}.png")
    found = run([model, "--data", str(tmp_path)], capsys)
    assert (found["num_images"], found["skipped"]) == (6, 0)
    assert list(found["jaccard_best_head"]) == ["teacher", "student", "untrained"]

    teacher, overlaps = load(model), []
    for index in range(6):
        pixels = torch.from_numpy(source.read(index)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(teacher.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
        heads = teacher.attention(((pixels - mean) / std)[None])[0, :, 0, 3:].view(3, 8, 8)
        overlaps.append(attention_jaccard(heads, torch.from_numpy(source.mask(index)) > 0))
    each = torch.stack(overlaps)
    assert found["jaccard_best_head"]["teacher"] == pytest.approx(100 * float(each[:, :3].amax(1).mean()))
    assert found["jaccard_mean_head"]["teacher"] == pytest.approx(100 * float(each[:, 3].mean()))
    drawn = run([model, "--data", "toy:forms?n=6"], capsys)
    assert drawn["jaccard_best_head"] == pytest.approx(found["jaccard_best_head"])


def test_which_networks_are_evaluated(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "toy:forms?n=2"]
    both = run([model, *data], capsys)["jaccard_best_head"]
    one = run([model, *data, "--which", "student"], capsys)["jaccard_best_head"]
    assert one == {"student": both["student"], "untrained": both["untrained"]}
    assert run([model, *data, "--seed", "0"], capsys)["jaccard_best_head"] == both
    # The saved teacher is the network initialized with seed 0.
    assert both["untrained"] == both["teacher"] != both["student"]
    (Path(model) / "backbone_student.safetensors").unlink()
    assert list(run([model, *data], capsys)["jaccard_best_head"]) == ["teacher", "untrained"]


def test_bad_images_are_skipped_and_counted(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for stem, value in (("bad", 1), ("empty", 0), ("good", 1)):
        Image.new("RGB", (40, 32)).save(tmp_path / f"images/{stem}.jpg")
        Image.new("L", (20, 16), value).save(tmp_path / f"masks/{stem}.png")
    (tmp_path / "images/bad.jpg").write_bytes(b"no image")
    found = run([model, "--data", str(tmp_path)], capsys)
    assert (found["num_images"], found["skipped"]) == (1, 2)
    assert main(["eval", "attention-segmentation", model, "--data", str(tmp_path), "--size-px", "32"]) == 0
    out = capsys.readouterr().out
    for said in ("bad was skipped: not an image", "empty was skipped: its mask has no object", "best head", "60 %"):
        assert said in out
    (tmp_path / "images/good.jpg").unlink()
    with pytest.raises(UserError, match=r"No image of .* can be used; bad was skipped"):
        evaluate(Config(model, data=str(tmp_path), device="cpu"))


def test_networks_without_attention_or_cls_say_so_in_one_line(tmp_path: Path) -> None:
    for name, options, said in (
        ("conv4", {"width": 4}, "conv4 has no self-attention. Use opendino eval knn"),
        ("test_vit", {"image_px": 32, "class_token": False, "global_pool": "avg"}, "has no CLS token"),
    ):
        save_backbone(tmp_path / name, {"teacher": backbone(name, **options)}, preprocessing=preprocessing(32))  # pyright: ignore
        with pytest.raises(UserError, match=said) as caught:
            evaluate(Config(str(tmp_path / name), data="toy:forms?n=1", size_px=32, device="cpu"))
        assert "\n" not in str(caught.value)


def test_flags_are_checked(model: str) -> None:
    for flags, said in (({"mass": 0.0}, "mass is 0"), ({"size_px": 0}, "size_px is 0"), ({}, "--data is missing")):
        with pytest.raises(UsageError, match=said):
            evaluate(Config(model, **flags))
