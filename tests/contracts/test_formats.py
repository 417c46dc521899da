"""Every file of `interop/formats/` reads or writes one layout of files, and says what it cannot do in one line."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch
from tests.factories import model_folder, small_vit

from opendino import interop
from opendino.cli import main
from opendino.core import registry
from opendino.core.contracts import Backbone
from opendino.interop import checkpoint_files
from opendino.models.load import load

PACKAGE = "opendino.interop.formats"
NAMES = registry.names(PACKAGE)
MODULES = {name: registry.load(PACKAGE, name) for name in NAMES}
READERS = [name for name, module in MODULES.items() if hasattr(module, "read")]
WRITERS = [name for name, module in MODULES.items() if hasattr(module, "write")]
OUT = {"dino_v1": "net.pth", "onnx": "net.onnx", "torch_export": "net.pt2"}  # the others write a folder
OPTIONAL = {"onnx", "onnxscript", "onnxruntime", "transformers", "torchvision", "huggingface_hub", "timm"}
COMPILED = {"onnx", "torch_export"}  # slow to write: tests/interop/test_exporting.py


def network() -> Backbone:
    """A vision transformer that every layout has room for."""
    return small_vit("vit/16", image_px=32, embed_dim=192, num_heads=3)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return model_folder(tmp_path / "model", network(), 32)


def flag(name: str) -> str:
    return name.replace("_", "-")


def test_the_promised_ones_are_there() -> None:
    assert {"dino_v1", "dinov2", "huggingface", "timm", "torchvision"} <= set(READERS)
    assert {"dino_v1", "huggingface", "onnx", "opendino", "timm", "torch_export"} <= set(WRITERS)


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_or_writes_with_the_functions_of_the_contract(name: str) -> None:
    module = MODULES[name]
    assert (module.__doc__ or "").splitlines()[0].endswith(".")
    assert name in READERS or name in WRITERS
    assert hasattr(module, "recognizes") == hasattr(module, "read")
    assert hasattr(module, "Config") == hasattr(module, "write")
    if name in READERS:
        assert list(inspect.signature(module.recognizes).parameters) == ["checkpoint"]
        assert list(inspect.signature(module.read).parameters) == ["checkpoint"]
    if name in WRITERS:
        assert list(inspect.signature(module.write).parameters) == ["model", "out", "config"]
        assert module.Config.__dataclass_params__.frozen and module.Config() == module.Config()


@pytest.mark.parametrize("path", sorted(Path(interop.__path__[0]).rglob("*.py")), ids=lambda path: path.stem)
def test_importing_it_imports_no_optional_library(path: Path) -> None:
    imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    assert not {name.partition(".")[0] for name in names} & OPTIONAL


@pytest.mark.parametrize("name", READERS)
def test_it_does_not_recognize_what_no_library_has_written(name: str, tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(2, 3), "b": torch.zeros(1)}, tmp_path / "unknown.pth")
    assert not MODULES[name].recognizes(checkpoint_files.read(tmp_path / "unknown.pth"))


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in COMPILED])
def test_what_it_writes_computes_the_same_and_is_read_by_one_module(
    name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / OUT.get(name, "out")
    assert main(["export", model, "--to", flag(name), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["to"]) == (str(out), flag(name)) and 0 <= told["max_difference"] <= 1e-5
    assert out.exists()
    if name in READERS:
        assert [reader for reader in READERS if MODULES[reader].recognizes(checkpoint_files.read(out))] == [name]
        assert main(["import", str(out), "--out", str(tmp_path / "back"), "--json"]) == 0
        images = torch.randn(2, 3, 32, 32)
        back = load(tmp_path / "back").embed(images)
        torch.testing.assert_close(back, load(model).embed(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_help_shows_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--to", flag(name), "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(f"--{flag(field.name)}" in captured.out for field in dataclasses.fields(MODULES[name].Config))


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_is_taken_is_refused_in_one_line_and_left_alone(
    name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / OUT.get(name, "out")
    out.write_text("mine")
    assert main(["export", model, "--to", flag(name), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and "exists already" in captured.err
    assert out.read_text() == "mine" and sorted(path.name for path in tmp_path.iterdir()) == ["model", out.name]
