"""Models on disk: what is written comes back, and what does not fit says why."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_folder, model_of, noise_image, small_vit
from torchvision import transforms

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError
from opendino.models.build import backbone
from opendino.models.load import Model, load, preprocessing, save_backbone
from opendino.models.weights import load_weights, read_weights, write_weights


def two_blocks(seed: int = 0, **options: object) -> Backbone:
    return small_vit("vit/4", seed, **{"depth": 2, "num_heads": 3, **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "run" / "model"
    model_folder(out, two_blocks(0), student=two_blocks(1), extra={"step": 7})
    return out


def test_comes_back_bit_for_bit(folder: Path) -> None:
    images = torch.randn(2, 3, 16, 16)
    for which, seed in (("teacher", 0), ("student", 1)):
        model, original = load(folder, which), two_blocks(seed).eval()
        assert not model.backbone.training
        for key, value in original.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[key], value), key
        assert torch.equal(model.embed(images), original([images])[0])
        assert torch.equal(model.attention(images), original.attention(images))
        assert torch.equal(model.features(images).patches, original.features(images).patches)
    assert torch.equal(load(str(folder)).embed(images), load(folder, "teacher").embed(images))


def test_timm_backbone_with_batch_norm_comes_back(tmp_path: Path) -> None:
    original, images = backbone("test_resnet"), torch.randn(2, 3, 64, 64)
    original([images])  # moves the running statistics
    save_backbone(tmp_path, {"teacher": original}, preprocessing=preprocessing(64))
    assert torch.equal(load(tmp_path).embed(images), original.eval()([images])[0])


def test_description_is_complete_and_nothing_else_is_left(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {
        "backbone.json", "backbone.safetensors", "backbone_student.safetensors"
    }  # fmt: skip
    found = json.loads((folder / "backbone.json").read_text())
    assert (found["name"], found["kwargs"]["depth"], found["embed_dim"]) == ("vit/4", 2, 24)
    assert found["preprocessing"]["resize_px"] == 18
    assert (found["networks"], found["extra"]) == (["teacher", "student"], {"step": 7})
    assert load(folder).description == found


def test_saving_again_replaces_and_forgets_a_stale_student(folder: Path) -> None:
    save_backbone(folder, {"teacher": two_blocks(2)}, preprocessing=preprocessing(16))
    assert torch.equal(load(folder).backbone.state_dict()["cls_token"], two_blocks(2).state_dict()["cls_token"])
    with pytest.raises(UserError, match="It has: teacher"):
        load(folder, "student")


def test_a_failed_write_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_backbone(folder, {"teacher": two_blocks(2), "student": two_blocks(3)}, preprocessing=preprocessing(16))
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (16, 16), (300, 17), (9, 7)])
def test_preprocess_is_the_usual_evaluation_transform(size: tuple[int, int]) -> None:
    model = model_of(two_blocks())
    usual = transforms.Compose([
        transforms.Resize(18, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(16),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    found = model.preprocess(noise_image(*size))
    assert (found.shape, found.dtype) == ((3, 16, 16), torch.float32)
    torch.testing.assert_close(found, usual(noise_image(*size)), rtol=0, atol=1e-6)


def test_preprocess_turns_upright_and_takes_any_mode() -> None:
    model, image = model_of(two_blocks()), noise_image(40, 30)
    exif = image.getexif()
    exif[0x0112] = 6  # stored lying on its side
    turned = image.copy()
    turned.info["exif"] = exif.tobytes()
    assert torch.equal(model.preprocess(turned), model.preprocess(image.transpose(Image.Transpose.ROTATE_270)))
    for mode in ("L", "RGBA", "P", "CMYK", "1", "LA"):
        assert model.preprocess(image.convert(mode)).shape == (3, 16, 16)


def test_every_form_of_an_image_gives_the_same_features(tmp_path: Path) -> None:
    model, image = model_of(two_blocks()), noise_image(40, 30)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).movedim(-1, 0)
    wanted = model.embed(image)
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), array, tensor, array[None], tensor[None], [array]):
        assert torch.equal(model.embed(form), wanted)
    assert torch.equal(model.features([tmp_path / "a.png", array]).cls, model.features([image, image]).cls)
    see_through = image.convert("RGBA")
    see_through.putalpha(noise_image(40, 30, 1).convert("L"))
    see_through.save(tmp_path / "b.png")
    assert torch.equal(model.embed(see_through), model.embed(tmp_path / "b.png"))


def test_a_hair_thin_image_costs_no_more_than_others() -> None:
    model, thin = model_of(two_blocks()), np.zeros((1, 60_000, 3), np.uint8)
    thin[:, 29_990:30_010] = 200
    tracemalloc.start()
    found = model.preprocess(thin)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert found[0].min() == found[0].max() > 1  # the middle alone is seen


def test_no_image_is_said_in_a_line(tmp_path: Path) -> None:
    model = model_of(two_blocks())
    (tmp_path / "a.jpg").write_text("hello")
    for form, words in (
        (tmp_path / "none.jpg", "none.jpg' cannot be read: No such file"),
        (tmp_path / "a.jpg", "not an image in a known format"),
        (np.zeros((4, 4, 5)), "5 channels"),
        (torch.zeros(3, 16, 16), "normalized pixels as"),
    ):
        with pytest.raises((UserError, UsageError), match=words):
            model.embed(form)


def test_the_fingerprint_follows_weights_and_preprocessing_alone(folder: Path) -> None:
    model = load(folder)
    assert model.fingerprint == load(folder).fingerprint == model_of(two_blocks(0)).fingerprint
    others = [
        load(folder, "student"),
        Model(two_blocks(0), preprocessing(20), {}),
        model_of(two_blocks(0, num_registers=1)),
    ]
    assert len({model.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_embed_takes_one_image_several_or_a_tensor() -> None:
    model, pictures = model_of(two_blocks()), [noise_image(seed=seed) for seed in range(5)]
    tensor = torch.stack([model.preprocess(image) for image in pictures])
    features = model.embed(pictures)
    assert (features.shape, features.requires_grad) == ((5, 24), False)
    assert torch.equal(features, model.embed(tensor))
    torch.testing.assert_close(model.embed(pictures, batch=2), features)
    torch.testing.assert_close(model.embed(pictures[3]), features[3:4])
    assert model.features(pictures[0]).grid == (4, 4)
    with pytest.raises(UserError, match="no images"):
        model.embed([])


def test_embed_follows_the_backbones_dtype() -> None:
    assert Model(two_blocks().double(), preprocessing(16), {}).embed(noise_image()).dtype == torch.float64


def test_weights_that_do_not_fit_say_where() -> None:
    state = two_blocks().state_dict()
    state["block.0"] = state.pop("norm.weight")
    state["cls_token"] = torch.zeros(1, 1, 25)
    with pytest.raises(UserError) as caught:
        load_weights(two_blocks(), state, "file.pth")
    for said in ("file.pth", "lacks norm.weight", "also has block.0", "cls_token (1, 1, 25) for (1, 1, 24)"):
        assert said in str(caught.value)
    with pytest.raises(UserError, match="and 8 more"):
        load_weights(two_blocks(depth=3), two_blocks().state_dict(), "file.pth")


def test_wrong_models_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timm:NAME"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"backbone\.json"):
        load(tmp_path)
    with pytest.raises(UsageError, match="Did you mean student"):
        load(folder, "studnt")
    with pytest.raises(UsageError, match="Did you mean resnet18"):
        load("timm:resnet81")
    with pytest.raises(UserError, match="no student"):
        load("timm:resnet18", "student")


def test_damaged_files_say_so(folder: Path) -> None:
    whole = (folder / "backbone.safetensors").read_bytes()
    (folder / "backbone.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        load(folder)
    for text, said in (
        ("{", "not a model"),
        ("[]", "not a model"),
        ("{}", "lacks kwargs, name, networks, preprocessing"),
    ):
        (folder / "backbone.json").write_text(text)
        with pytest.raises(UserError, match=said):
            load(folder)


def test_timm_weights_that_cannot_be_had_are_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to the hub\nlong story")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"no route to the hub\. Check the name and the network"):
        load("timm:resnet18")


def test_timm_weights_come_with_their_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create, asked = timm.create_model, []

    def untrained(name: str, *, pretrained: bool, **options: object) -> object:
        asked.append(pretrained)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", untrained)
    model = load("timm:test_vit")
    assert set(asked) == {True}
    assert model.embed(noise_image()).shape == (1, 64)
    assert model.preprocessing["image_px"] == 160


def test_tied_weights_are_written(tmp_path: Path) -> None:
    network = torch.nn.ModuleDict({"one": torch.nn.Linear(3, 3), "other": torch.nn.Linear(3, 3)})
    network["other"].weight = network["one"].weight
    write_weights(tmp_path / "tied.safetensors", network)
    found = read_weights(tmp_path / "tied.safetensors")
    assert torch.equal(found["one.weight"], found["other.weight"]) and len(found) == 4
