"""Model folders of strangers: each field of backbone.json replaced by odd values is one clear line or harmless."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from opendino.core.errors import UserError
from opendino.models.build import backbone
from opendino.models.classifier import load_classifier
from opendino.models.load import load, preprocessing, save_backbone
from opendino.models.timm_backbone import TimmBackbone

NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit/16", {"image_px": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}, 32),
    "conv4": ("conv4", {"width": 4}, 16),
    "timm": ("test_vit", {"image_px": 32, "in_chans": 3}, 32),
}
HOSTILE: list[Any] = [
    None, True, -1, 0, 7, 10**9, 2**63, 10**300, 0.5, 1e300, "", "a" * 10**5, "hf-hub:a/b", "\x00", [], [[]],
    [10**9] * 9, {"teacher": 1}, ["student"],
]  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nothing is to be asked of any other machine; what was asked nevertheless."""
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def saved(out: Path, kind: str) -> dict[str, Any]:
    name, options, side = NETWORKS[kind]
    save_backbone(out, {"teacher": backbone(name, **options)}, preprocessing=preprocessing(side), extra={"data": "d"})
    return json.loads((out / "backbone.json").read_text())


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value of nested dicts and lists can be replaced."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield (*path, key)
        if isinstance(tree[key], dict | list):
            yield from places(tree[key], (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    tree = json.loads(json.dumps(tree))
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


def opens(folder: Path, content: str | bytes) -> str | None:
    """None if the folder opens and embeds an image, else what was said."""
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    (folder / "backbone.json").write_bytes(content)
    try:
        model = load(folder)
    except UserError as error:
        return str(error)
    side = min(64, model.preprocessing["image_px"])
    with torch.no_grad():
        found = model.backbone([torch.zeros(1, 3, side // 16 * 16 or 16, side // 16 * 16 or 16)])[0]
    assert found.isfinite().all() and model.fingerprint and isinstance(model.trained_on, str | None)
    return None


@pytest.mark.parametrize("kind", NETWORKS)
def test_any_field_may_be_hostile(tmp_path: Path, kind: str, offline: list[Any]) -> None:
    true = saved(tmp_path, kind)
    refused = 0
    for path in [*places(true), ("kwargs", "depth"), ("kwargs", "odd"), ("odd",), ("preprocessing", "odd")]:
        for value in HOSTILE:
            said = opens(tmp_path, json.dumps(replaced(true, path, value)))
            refused += said is not None
            if said is not None:
                assert "\n" not in said and len(said) < 600 and str(tmp_path) in said, (path, str(value)[:40], said)
    assert refused > 200 and not offline
    assert opens(tmp_path, json.dumps(true)) is None


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("name", "hf-hub:evil/evil", "name is 'hf-hub:evil/evil'"),
        ("name", "timm:hf-hub:evil/evil", "name is 'timm:hf-hub:evil/evil'"),
        ("name", "local-dir:/tmp/evil", "name is"),
        ("name", 5, "name is 5"),
        ("name", "vit/99999", "cannot build|does not fit|cannot be cut"),
        ("kwargs", [1], "kwargs: expected 'object', got 'array'"),
        ("kwargs.depth", 10**7, "depth is 1e.07, larger than anything in its weights"),
        ("kwargs.depth", 4000, "many more layers than the 30 tensors"),
        ("kwargs.embed_dim", 3 * 10**6, "embed_dim is 3e.06, larger"),
        ("kwargs.mlp_ratio", 0.01, "in another shape|cannot build"),
        ("kwargs.depth", "12", r"kwargs\.depth is '12': expected 'int', got 'str'"),
        ("kwargs.num_heads", 0, r"kwargs\.num_heads is 0: expected 'int' >= 1"),
        ("kwargs.in_chans", 1, "in another shape"),
        ("kwargs.in_chans", 0, r"kwargs\.in_chans is 0: expected 'int' >= 1"),
        ("kwargs.in_chans", 1025, r"kwargs\.in_chans is 1025: expected 'int' <= 1024"),
        ("preprocessing.mean", [0.5, 0.5], r"preprocessing\.mean has 2 values for a network of 3 channels"),
        ("kwargs.pretrained", True, "unknown field 'pretrained'"),
        ("preprocessing", {}, "missing required field 'image_px'"),
        ("preprocessing.std", [0.2, 0, 0.2], r"preprocessing\.std\[1\] is 0: expected 'float' >= 1e-06"),
        ("preprocessing.mean", [123.7, 0, 0], r"mean\[0\] is 123\.7: .*Divided by 255: 0\.4851 0 0"),
        ("preprocessing.image_px", 10**6, r"image_px is 1000000: expected 'int' <= 16384"),
        ("preprocessing.interpolation", "magic", "interpolation is 'magic': invalid enum value"),
        ("networks", {"teacher": 1}, "names the networks"),
        ("networks", ["teacher", "teacher"], "twice"),
        ("format", 2, "format is 2"),
        ("extra", {"data": ["a"]}, r"extra\.data"),
    ],
)
def test_each_violation_is_named(tmp_path: Path, place: str, value: Any, said: str) -> None:
    true = saved(tmp_path, "vit")
    found = opens(tmp_path, json.dumps(replaced(true, tuple(place.split(".")), value)))
    assert found is not None and re.search(said, found), found


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("pretrained", True, "takes no option 'pretrained', which is for downloading one"),
        ("checkpoint_path", "x.pth", "option 'checkpoint_path'"),
        ("pretrained_cfg", {"file": "x"}, "option 'pretrained_cfg'"),
        ("depth", 10**7, "larger than anything in its weights"),
        ("depth", 4000, "many more layers than"),
        ("embed_dim", 64 * 10**9, "embed_dim is 6.4e.10, larger"),
        ("foo", 1, "no option 'foo'"),
        ("depth", {"a": 1}, "kwargs.depth"),
    ],
)
def test_timms_arguments_fetch_nothing_and_make_nothing_large(
    tmp_path: Path, option: str, value: Any, said: str, offline: list[Any]
) -> None:
    true = saved(tmp_path, "timm")
    found = opens(tmp_path, json.dumps(replaced(true, ("kwargs", option), value)))
    assert found is not None and re.search(said, found), found
    assert not offline


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"{", b"[]", b"null", b'{"name": NaN}', b"[" * 10**5, b'{"a":' * 10**5, b'{"name": 1e999}',
     b'{"name": ' + b"9" * 6000 + b"}", b'"' + b"a" * 2**25 + b'"'],
)  # fmt: skip
def test_what_is_no_description(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path, "conv4")
    assert "not a model" in (opens(tmp_path, content) or "")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, wrong: float) -> None:
    true = saved(tmp_path, "conv4")
    state = safetensors.torch.load_file(tmp_path / "backbone.safetensors")
    for key in ("net.0.weight", "net.1.running_var"):
        spoilt = {**state, key: state[key].clone()}
        spoilt[key].flatten()[0] = wrong
        safetensors.torch.save_file(spoilt, tmp_path / "backbone.safetensors")
        assert f"numbers in {key} that are not finite" in (opens(tmp_path, json.dumps(true)) or "")
    safetensors.torch.save_file({key: value.long() for key, value in state.items()}, tmp_path / "backbone.safetensors")
    assert "as int64. Save its weights as floating-point" in (opens(tmp_path, json.dumps(true)) or "")


def test_a_classifier_is_held_against_the_network(tmp_path: Path) -> None:
    save_backbone(
        tmp_path, {"teacher": backbone("conv4", width=4)}, preprocessing=preprocessing(16), classifier=nn.Linear(48, 3)
    )
    assert load(tmp_path, classifier=True).classifier is not None
    for state, said in (
        ({"weight": torch.full((3, 48), torch.nan), "bias": torch.zeros(3)}, "not finite"),
        ({"weight": torch.zeros(10**9, 0), "bias": torch.zeros(0)}, "in another shape"),
        ({"weight": torch.zeros(()), "bias": torch.zeros(3)}, "in another shape"),
        ({"weight": torch.zeros(2, 48), "bias": torch.zeros(2)}, "names 3 classes for a classifier of 2"),
    ):
        safetensors.torch.save_file(state, tmp_path / "classifier.safetensors")
        with pytest.raises(UserError, match=said):
            load(tmp_path, classifier=True)


@pytest.mark.parametrize("tokens", [{"blocks": 1.5}, {"blocks": 0}, {"blocks": "1"}, {"mean_patch": 2}, 3])
def test_a_probes_description_is_checked_too(tmp_path: Path, tokens: Any) -> None:
    saved(tmp_path, "vit")
    safetensors.torch.save_file(
        {"weight": torch.zeros(2, 24), "bias": torch.zeros(2)}, tmp_path / "classifier.safetensors"
    )
    (tmp_path / "classifier.json").write_text(json.dumps({"classes": ["a", "b"], "tokens": tokens}))
    with pytest.raises(UserError, match=r"classifier\.json: (tokens|it)"):
        load_classifier(tmp_path)


def test_a_network_of_the_hub_is_saved_under_its_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import timm

    create, told = timm.create_model, {"input_size": (3, 48, 48), "architecture": "test_vit"}
    monkeypatch.setattr(
        timm.models, "load_model_config_from_hf", lambda _: (told, "test_vit", {"num_classes": 5, "class_token": True})
    )
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: create(name.replace("hf-hub:a/b", "test_vit"), **options)
    )
    network = TimmBackbone("hf-hub:a/b", image_px=None)
    assert (network.name, network.kwargs["image_px"], network.kwargs["class_token"]) == ("test_vit", 48, True)
    save_backbone(tmp_path, {"teacher": network}, preprocessing=preprocessing(48))
    assert load(tmp_path).backbone.name == "test_vit"


@pytest.mark.parametrize("channels", [1, 2, 5, 12])
@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_of_any_number_of_channels_are_saved_and_loaded(tmp_path: Path, kind: str, channels: int) -> None:
    name, options, side = NETWORKS[kind]
    network = backbone(name, **{**options, "in_chans": channels}).eval()
    wanted = preprocessing(side, [0.4] * channels, [0.2] * channels)
    save_backbone(tmp_path, {"teacher": network}, preprocessing=wanted)
    again = load(tmp_path)
    images = torch.randn(2, channels, side, side)
    with torch.no_grad():
        assert torch.equal(again.backbone([images])[0], network([images])[0])
    assert again.backbone.in_chans == channels == again.backbone.kwargs["in_chans"]
    assert len(again.preprocessing["mean"]) == channels
