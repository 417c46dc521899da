"""A model that is pushed can be loaded by its name; its card says what it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tests import fake_hub
from tests.factories import dino_run, model_folder, noise_image, small_vit

import opendino
from opendino import sharing
from opendino.core.errors import UsageError, UserError
from opendino.models.load import load


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[fake_hub.Request]]:
    with fake_hub.running(tmp_path / "cache", monkeypatch) as heard:
        yield heard


@pytest.mark.slow
def test_a_run_goes_to_the_hub_and_comes_back_with_its_verdict(hub: list[fake_hub.Request], tmp_path: Path) -> None:
    run = tmp_path / "run"
    opendino.train(dino_run(run))
    url = sharing.push(str(run), "me/net", license="cc-by-4.0")
    assert url.endswith("/me/net")
    assert set(fake_hub.Hub.files) == {"README.md", "backbone.json", "backbone.safetensors"}
    card = fake_hub.Hub.files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    for part in (
        'opendino.load("hf:me/net")', "Trained by dino on 48 images of toy:textures?n=48&size=32, for 10 steps",
        "- verdict: collapsed (one-hot)", "- command: opendino train", "## License\n\ncc-by-4.0",
    ):  # fmt: skip
        assert part in card, part
    (run / "README.md").write_text("notes of the user")
    sharing.push(str(run), "me/net", license="cc-by-4.0")
    assert set(fake_hub.Hub.files) == {"README.md", "backbone.json", "backbone.safetensors"}, "nothing else of a run"
    assert "notes of the user" not in fake_hub.Hub.files["README.md"].decode()
    again = opendino.load("hf:me/net")
    assert again.description["extra"]["verdict"] == "collapsed (one-hot)"
    assert torch.equal(again.embed(noise_image()), load(run).embed(noise_image()))
    assert {path.rpartition("/")[2] for path, _, _ in hub if "/resolve/" in path} == {
        "backbone.json", "backbone.safetensors"
    }  # fmt: skip


def test_a_model_pushes_itself_and_no_path_leaves_the_machine(hub: list[fake_hub.Request], tmp_path: Path) -> None:
    home = model_folder(tmp_path / "model", small_vit(), student=small_vit(seed=1), extra={"imported": "by hand"})
    model = opendino.load(home, "student")
    model.push_to_hub("me/net", private=True)
    again = opendino.load(f"hf:me/net@{fake_hub.SHA}")
    assert again.which == "student" and torch.equal(again.embed(noise_image()), model.embed(noise_image()))
    assert not [name for name, content in fake_hub.Hub.files.items() if str(tmp_path).encode() in content]
    assert b"- imported: by hand" in fake_hub.Hub.files["README.md"]


def test_wrong_names_are_one_line(hub: list[fake_hub.Request], tmp_path: Path) -> None:
    home = model_folder(tmp_path / "model", small_vit())
    with pytest.raises(UsageError, match="not a repository name"):
        sharing.push(home, "net")
    with pytest.raises(UsageError, match="no identifier of a license"):
        sharing.push(home, "me/net", license="mine\nlibrary_name: evil")
    assert hub == []
    with pytest.raises(UsageError, match="hf:USER/NAME"):
        load("hf:net")
    with pytest.raises(UserError, match="could not be downloaded"):
        load("hf:nobody/net")
    fake_hub.Hub.files = {"config.json": b"{}"}
    with pytest.raises(UserError, match=r"holds no backbone\.json"):
        load("hf:me/net")
    Path(home, "README.md").write_text("# a card")
    with pytest.raises(UsageError, match="exported already"):
        sharing.push(home, "me/net", license="mit")


def test_a_file_larger_than_described_is_not_downloaded(hub: list[fake_hub.Request], tmp_path: Path) -> None:
    sharing.push(model_folder(tmp_path / "model", small_vit()), "me/net", license="mit")
    for file, size in (("backbone.json", 2**25), ("backbone.safetensors", 2**40)):
        fake_hub.Hub.claimed = {file: size}
        hub.clear()
        with pytest.raises(
            UserError, match=rf"me/net/{file}' is not downloaded: .* larger than the limit of 16\.\d MiB"
        ):
            load("hf:me/net")
        assert not [path for path, _, _ in hub if path.endswith(f"/{file}")]
    fake_hub.Hub.claimed = {}
    load("hf:me/net")


def test_without_the_hub_the_last_files_are_used(
    hub: list[fake_hub.Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = model_folder(tmp_path / "model", small_vit())
    sharing.push(home, "me/net", license="mit")
    load("hf:me/net")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(load("hf:me/net").embed(noise_image()), load(home).embed(noise_image()))
    with pytest.raises(UserError, match="could not be downloaded"):
        load("hf:nobody/net")
