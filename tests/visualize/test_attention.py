"""Attention maps match DINO v1, and are bright where the attention is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.core.errors import UsageError, UserError
from opendino.models.attention_maps import cls_attention
from opendino.models.build import backbone
from opendino.models.load import Model, load, preprocessing, save_backbone
from opendino.visualize.attention import Config, heat, show, tiles
from opendino.visualize.drawing.image_encoder import ImageEncoder

VIOLET, YELLOW = (0x44, 0x01, 0x54), (0xFD, 0xE7, 0x25)


def test_golden_attention_is_what_is_drawn(golden_file: Path) -> None:
    with np.load(golden_file) as file:
        golden = {key: torch.from_numpy(file[key]) for key in file.files if key.startswith("vit.")}
    vit = backbone("vit/4", image_px=16, embed_dim=24, depth=3, num_heads=3).double()
    vit.load_state_dict({k.removeprefix("vit.state."): v for k, v in golden.items() if k.startswith("vit.state.")})
    for case, grid in (("native", (4, 4)), ("rect", (6, 3)), ("large", (8, 8))):
        found = cls_attention(Model(vit, preprocessing(16), {}), golden[f"vit.{case}.input"], grid)
        recorded = golden[f"vit.{case}.attention"][:, :, 0, 1:].unflatten(-1, grid)
        torch.testing.assert_close(found, recorded.float(), rtol=0, atol=1e-7)  # float32's last digit


def test_the_bright_patch_lights_up_and_nothing_else(looking: Model) -> None:
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[4:8, 12:16] = 255  # row 1, column 3
    sight = ImageEncoder(looking, 16)
    prepared = sight.prepare(pixels)
    assert prepared.shape == (16, 24, 3)
    image, maps = sight.picture(prepared), sight.attention(prepared)
    assert maps.shape == (2, 4, 6) and sight.quantity.startswith("attention")
    assert maps[0].argmax() == 1 * 6 + 3 and maps[0, 1, 3] > 0.99
    drawn = np.array(heat(image, maps[0]))
    assert (drawn[4:8, 12:16] == YELLOW).all()
    drawn[4:8, 12:16] = VIOLET
    assert (drawn == VIOLET).all()
    (name, mean, bright, dark), (_, _, kept, _) = tiles(image, maps, 0.6)
    assert [tile.title for tile in (name, mean, bright, dark) if tile] == ["image", "mean of heads", "head 0", "head 1"]
    assert kept is not None and kept.title == "60% lies in\n4% of image"
    veiled = np.array(kept.image)
    assert (veiled[4:8, 12:16] == 255).all() and (veiled[:4] < 255).all(), "the patch in its colors, the rest pale"


def test_many_heads_wrap_into_rows() -> None:
    rows = tiles(Image.new("RGB", (24, 16)), torch.rand(12, 4, 6))
    assert [len(row) for row in rows] == [7] * 4
    assert [tile.title for row in rows[::2] for tile in row if tile][2:] == [f"head {i}" for i in range(12)]
    assert [len(row) for row in tiles(Image.new("RGB", (24, 16)), torch.rand(12, 4, 6), heads=[3])] == [3, 3]


def test_one_file_per_image_in_a_folder(vit: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png", "b.jpg"):
        Image.new("RGB", (40, 30), "teal").save(photos / name)
    (photos / "broken.jpg").write_bytes(b"no image")
    report = show(Config(vit, (str(photos),), out=str(tmp_path / "maps"), size_px=32, device="cpu"))
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == sorted(
        Path(path).name for path in report.fields["paths"]
    )
    assert (len(set(report.fields["paths"])), report.fields["skipped"]) == (3, 1)
    assert report.fields["images"][0]["grid"] == [8, 11]
    one = show(Config(vit, (str(photos / "a.png"), str(photos / "b.png")), out=str(tmp_path / "two.svg"), size_px=32))
    assert one.fields["paths"] == [str(tmp_path / "two.svg")]
    svg = (tmp_path / "two.svg").read_text()
    assert svg.count("<image") == 2 * (1 + 2 * 4) and ">head 2</text>" in svg
    show(Config(vit, (str(photos / "a.png"),), out=str(tmp_path / "one.html"), size_px=32))
    assert (tmp_path / "one.html").read_text().startswith("<!doctype html>")


def test_networks_without_attention_show_shares(tmp_path: Path) -> None:
    save_backbone(tmp_path / "m", {"teacher": backbone("conv4", width=4)}, preprocessing=preprocessing(32))
    sight = ImageEncoder(load(tmp_path / "m"), 48)
    maps = sight.attention(sight.prepare(np.array(Image.effect_noise((48, 48), 60).convert("RGB"))))
    assert maps.shape == (1, 6, 6) and "no CLS attention" in sight.quantity
    torch.testing.assert_close(maps.sum(), torch.tensor(1.0))
    assert [len(row) for row in tiles(Image.new("RGB", (48, 48)), maps)] == [3]


def test_timm_vits_too(tmp_path: Path) -> None:
    save_backbone(tmp_path / "m", {"teacher": backbone("test_vit", image_px=32)}, preprocessing=preprocessing(32))
    sight = ImageEncoder(load(tmp_path / "m"), 64)
    maps = sight.attention(sight.prepare(np.zeros((64, 96, 3), np.uint8)))
    assert maps.shape[1:] == (4, 6) and len(maps) > 1
    assert (maps.sum((1, 2)) < 1).all(), "CLS takes a part of its own"


def test_mistakes_are_one_line_and_leave_nothing(vit: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    a, out = str(tmp_path / "a.png"), str(tmp_path / "out.png")
    for changes, said in (
        ({"out": str(tmp_path / "o.gif")}, "has no supported suffix"),
        ({"out": str(tmp_path / "no" / "o.png")}, "no folder to write"),
        ({"heads": (3,), "out": out}, "no head 3. This network has 3"),
        ({"images": (str(tmp_path / "b.png"),), "out": out}, "does not exist"),
        ({"images": (), "out": out}, "No images were named"),
        ({"images": (a, str(tmp_path)), "out": out}, "not an image among 2"),
        ({"images": ("toy:forms?n=17",), "out": out}, "17 images are too many"),
    ):
        with pytest.raises(UserError, match=said):
            show(Config(**({"model": vit, "images": (a,), "size_px": 32, "device": "cpu"} | changes)))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"None of the 1 images can be read, e\.g\. .*a\.png: not an image"):
        show(Config(vit, (a,), out=out, size_px=32, device="cpu"))
    for flags, said in (({"mass": 0.0}, "mass is 0"), ({"size_px": 0}, "size_px is 0")):
        with pytest.raises(UsageError, match=said):
            Config(vit, (a,), **flags)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "vit"}


def test_broken_weights_are_named(looking: Model) -> None:
    looking.backbone.weight.data.fill_(torch.nan)  # pyright: ignore
    sight = ImageEncoder(looking, 16)
    for look in (sight.attention, sight.patches):
        with pytest.raises(UserError, match=r"NaN or infinite\. Its weights are broken"):
            look(np.zeros((16, 16, 3), np.uint8))


def test_images_too_thin_are_left_out_and_the_others_drawn(vit: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / ("deep" * 40) / ("deeper" * 30)).mkdir(parents=True)  # a key longer than a file name may be
    Image.new("RGB", (30_000, 1)).save(folder / "thin.png")
    Image.new("RGB", (3, 200)).save(folder / "tall.png")
    Image.new("RGB", (160, 10)).save(folder / "long.png")
    Image.new("RGB", (32, 32)).save(folder / ("deep" * 40) / ("deeper" * 30) / "a.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    report = show(Config(vit, (str(folder),), size_px=16, out=str(tmp_path / "out")))
    assert (len(report.fields["images"]), report.fields["skipped"]) == (2, 3)
    assert all(Path(path).is_file() for path in report.fields["paths"])
    (folder / "long.png").unlink()
    for path in folder.rglob("a.png"):
        path.unlink()
    with pytest.raises(UserError, match="None of the 3 images can be read"):
        show(Config(vit, (str(folder),), size_px=16, out=str(tmp_path / "out")))
