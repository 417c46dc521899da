"""Training from Python: datasets, networks, methods and callbacks as objects."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import FAST, SMALL_DINO
from torch import Tensor, nn

import opendino
from opendino import existing_runs
from opendino.core import registry
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.data.sources import python
from opendino.engine import checkpoint
from opendino.engine.interrupt import Interrupted
from opendino.engine.run_result import Result
from opendino.views import settings as view_settings


class Squares(torch.utils.data.Dataset[tuple[Any, int]]):
    """Gray squares on black; `kind` says as what an image is given."""

    def __init__(self, kind: str = "pil", num: int = 24, seed: int = 0) -> None:
        self.kind, self.num, self.seed = kind, num, seed

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = np.random.default_rng((self.seed, index)).integers(0, 90, (40, 36, 3), np.uint8)
        pixels[8 : 20 + index % 3 * 6, 8:20] = 200
        as_kind = {
            "pil": Image.fromarray,
            "array": lambda p: p,
            "uint8 tensor": lambda p: torch.from_numpy(p).permute(2, 0, 1),
            "float tensor": lambda p: torch.from_numpy(p).permute(2, 0, 1) / 255,
        }
        return as_kind[self.kind](pixels), index % 3


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2))


def tensors(run: str | Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    newest = checkpoint.newest(Path(run))
    assert newest
    return load_file(newest / "tensors.safetensors")


def test_a_dataset_a_network_and_callbacks_train_and_resume(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Log(opendino.Callback):
        def on_step(self, step: int, metrics: dict[str, Any]) -> None:
            assert metrics["loss"] > 0
            seen.append(("step", step))

        def on_evaluate(self, step: int, metrics: dict[str, Any]) -> None:
            assert "knn" in metrics
            seen.append(("evaluate", step))

        def on_checkpoint(self, step: int, folder: Path) -> None:
            assert (folder / f"checkpoints/step_{step:08d}/state.json").is_file()
            seen.append(("checkpoint", step))

    def train(out: Path, **changes: Any) -> Any:
        given = {"backbone": network, "method": SMALL_DINO, "out": out, "callbacks": [Log()]} | FAST | changes
        return opendino.train(Squares(), **given)

    whole = train(tmp_path / "whole")
    assert whole.steps == 6 and whole.num_queries
    assert {step for kind, step in seen if kind == "step"} == set(range(1, 7))
    assert [step for kind, step in seen if kind == "checkpoint"] == [0, 2, 4, 6]
    assert ("evaluate", 0) in seen and ("evaluate", 6) in seen
    train(tmp_path / "part", steps=3)
    ended = opendino.resume(tmp_path / "part", steps=6, data=Squares("array"))  # the same pixels
    assert ended.steps == 6
    with pytest.raises(UserError, match="Pass the images that the run started with"):
        opendino.resume(tmp_path / "part", steps=8, data=Squares(seed=1))
    model = opendino.load(tmp_path / "whole")
    assert model.backbone.name == "python:network" and model.embed([Squares()[0][0]]).shape == (1, 12)


def test_ctrl_c_ends_with_the_calls_that_resume(tmp_path: Path) -> None:
    class CtrlC(opendino.Callback):
        def on_checkpoint(self, step: int, folder: Path) -> None:
            if step == 2:
                signal.raise_signal(signal.SIGINT)

    given = {"backbone": network, "method": SMALL_DINO} | FAST
    with pytest.raises(Interrupted) as stopped:
        opendino.train(Squares(), val=Squares(), out=tmp_path / "run", callbacks=[CtrlC()], **given)
    calls = f'opendino.register_backbone("network", network); opendino.resume("{tmp_path}/run", data=..., val=...)'
    assert stopped.value.hint == f"Continue with: {calls}"
    del registry._added[registry.BACKBONES]["python:network"]  # a new process knows no network
    with pytest.raises(UserError, match=r'before: opendino\.register_backbone\("network", network\)'):
        opendino.resume(tmp_path / "run", data=Squares(), val=Squares())
    exec(calls.replace("...", "Squares()"), globals())
    assert checkpoint.state(checkpoint.newest(tmp_path / "run") or tmp_path)["step"] == 6


def test_killed_it_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"backbone": network, "method": SMALL_DINO} | FAST
    opendino.train(Squares(), out=tmp_path / "whole", **given)

    class Stop(opendino.Callback):
        def on_checkpoint(self, step: int, folder: Path) -> None:
            if step == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opendino.train(Squares(), out=tmp_path / "killed", callbacks=[Stop()], **given)
    monkeypatch.setitem(python._given, "", python._given.popitem()[1])  # a new process knows no dataset
    python._given.clear()
    with pytest.raises(UserError, match="Pass them again"):
        opendino.resume(tmp_path / "killed")
    opendino.resume(tmp_path / "killed", data=Squares())
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("kind", ["array", "uint8 tensor", "float tensor"])
def test_images_are_the_same_in_every_form(kind: str) -> None:
    given, pil = python.PythonSource(Squares(kind)), python.PythonSource(Squares())
    assert (given.classes, given.label(4)) == (("0", "1", "2"), 1)
    assert np.array_equal(given.read(3), pil.read(3)) and given.read(3).dtype == np.uint8
    assert python.register(Squares(kind)) == python.register(Squares()).replace("pil", kind)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (torch.full((3, 8, 8), -1.0), "not normalized"),
        ({"picture": 1}, "has no image, only picture"),
        (np.zeros((5, 8, 5), np.uint8), r"an array \[5, 8, 5\] of uint8: which axis is that of the channels\? Give"),
        (torch.zeros(8, 8, 8, dtype=torch.uint16), r"\[8, 8, 8\] of uint16: which axis"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"\[2, 8, 8, 3\] of uint8: which axis"),
        (np.zeros((8, 8), object), "of object is not an image"),
        ("text", "a str is not an image"),
    ],
)
def test_what_is_no_image_is_a_bad_image(item: Any, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        python.PythonSource([item]).read(0)


def test_labels_of_lists_subsets_dicts_and_hugging_face() -> None:
    class WithTargets(list):
        targets, classes = [2, 0, 1], ["cat", "dog", "cow"]

    listed = python.PythonSource(WithTargets([0, 0, 0]))
    assert listed.classes == ("cat", "dog", "cow") and listed.label(0) == 2
    subset = torch.utils.data.Subset(Squares(), [5, 1])
    assert [python.PythonSource(subset).label(i) for i in range(2)] == [2, 1]
    dicts = python.PythonSource([{"image": np.zeros((4, 4), np.uint8), "label": 1}] * 2)
    assert dicts.label(1) == 1 and dicts.read(0).shape == (4, 4, 3)
    assert python.PythonSource([np.zeros((4, 4), np.uint8)]).classes == ()
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (4, 4))] * 2, "label": [1, 0]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}),
    )
    source = python.PythonSource(table)
    assert source.classes == ("a", "b") and source.label(0) == 1 and source.read(0).shape == (4, 4, 3)


class Tokens(nn.Module):
    def __init__(self, num: int) -> None:
        super().__init__()
        self.num, self.weight = num, nn.Parameter(torch.ones(6))

    def forward(self, images: Tensor) -> Any:
        rows = images.mean((1, 2, 3))[:, None, None] * self.weight
        return {"last_hidden_state": rows.expand(-1, self.num, -1)}


@pytest.mark.parametrize(("num", "registers", "grid"), [(4, 0, (2, 2)), (10, 1, (3, 3))])
def test_tokens_of_a_network_become_patches(num: int, registers: int, grid: tuple[int, int]) -> None:
    from opendino.models.build import backbone

    name = opendino.register_backbone("tokens", lambda: Tokens(num))
    features = backbone(name).features(torch.ones(2, 3, 32, 32))
    assert features.grid == grid and features.registers.shape == (2, registers, 6)
    assert features.patches.shape == (2, grid[0] * grid[1], 6) and features.cls.shape == (2, 6)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (lambda: nn.Conv2d(5, 2, 1), "accepts no images of 3 channels"),
        (
            lambda: nn.Conv2d(1, 2, 1),
            "takes images of 1 channel, and these have 3",
        ),
        (lambda: "resnet", "built a str"),
        (lambda size: nn.Identity(), "cannot be built with no options"),
        (lambda: nn.Flatten(0), r"returns a tensor \[6144\]"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(factory: Any, said: str) -> None:
    from opendino.models.build import backbone

    with pytest.raises(UserError, match=said) as caught:
        backbone(opendino.register_backbone("odd", factory))
    assert "\n" not in str(caught.value)


def test_wrong_arguments_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Give a function that builds it"):
        opendino.train("toy:", backbone=network())
    with pytest.raises(UsageError, match="not a dataset of images"):
        opendino.train(7)
    with pytest.raises(UsageError, match=r"Unknown key 'bacth'\. Did you mean batch"):
        opendino.train("toy:", bacth=3)
    with pytest.raises(UsageError, match="has no views"):
        opendino.register_method("broken", types.SimpleNamespace(Config=1, VIEWS={}, build=1))  # pyright: ignore
    with pytest.raises(UsageError, match="taken"):
        opendino.register_method("dino", sys.modules["opendino.methods.dino"])
    with pytest.raises(UsageError, match="devices=1"):
        opendino.train(Squares(), devices=2, device="cpu", out=tmp_path / "x")
    with pytest.raises(UsageError, match=r"augmentations holds a Identity.*own_method"):
        opendino.train("toy:", augmentations=[nn.Identity()])  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"A loss belongs to a method"):
        opendino.train("toy:", loss=abs)


def test_the_folder_and_the_command_line_mean_the_same(tmp_path: Path) -> None:
    from opendino.cli.train_command import parse
    from opendino.recipes import small
    from opendino.start import _with_settings

    asked = _with_settings(small.config("photos"), None, {"epochs": 50, "optim": {"lr": 1e-3}, "method": "byol"})
    assert asked == parse(["photos", "--method", "byol", "--epochs", "50", "--optim.lr", "1e-3"])


def test_a_method_from_python_trains_and_is_named_in_the_run(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples/plugin"))
    try:
        import opendino_simsiam as simsiam  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    settings = FAST | {"backbone": "conv4", "backbone_options": {"width": 2}}
    result = opendino.train("toy:textures?n=24&size=32", method=simsiam, out=tmp_path / "run", **settings)
    assert result.knn and next(iter(result.knn)) == "student"
    text = (tmp_path / "run/config.yaml").read_text()
    assert "name: opendino_simsiam" in text and "from: Python" in text
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert row
    registry._added[registry.METHODS].clear()
    with pytest.raises(UserError, match=r"Python \(opendino_simsiam\.py\), which .* --import opendino_simsiam"):
        opendino.resume(tmp_path / "run", steps=8)


def shading(name: str) -> types.ModuleType:
    """The augmentation of examples/plugin, under a name of its own."""
    path = Path(__file__).parents[1] / "examples/plugin/opendino_shading.py"
    spec = importlib.util.spec_from_file_location(f"somewhere.{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_trace() -> Iterator[None]:
    """What is added to the augmentations is gone afterwards."""
    known = dict(view_settings.AUGMENTATIONS)
    yield
    for name in view_settings.AUGMENTATIONS.keys() - known.keys():
        del registry._added[registry.AUGMENTATIONS][name], view_settings.AUGMENTATIONS[name]


@pytest.mark.usefixtures("no_trace")
def test_an_augmentation_given_in_python_trains_and_resumes(tmp_path: Path) -> None:
    given = {"backbone": network, "method": SMALL_DINO} | FAST
    lamp = shading("lamp")
    views = {"global": {"size": 32}, "all": {"lamp": {"p": 1.0}}}
    plain = opendino.train(Squares(), out=tmp_path / "plain", **given)
    whole = opendino.train(Squares(), out=tmp_path / "whole", augmentations=[lamp], **given | {"views": views})
    assert list(view_settings.AUGMENTATIONS).index("lamp") == list(view_settings.AUGMENTATIONS).index("gamma") + 1
    one, other = tensors(whole.run), tensors(plain.run)
    assert any(not torch.equal(value, other[key]) for key, value in one.items())
    shutil.copytree(whole.run, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000006")
    told = existing_runs.how_to_resume(existing_runs.read_run_config(whole.run), tmp_path)
    assert 'opendino.register_augmentation("lamp", lamp); opendino.resume(' in told
    opendino.resume(tmp_path / "cut", data=Squares())
    assert all(torch.equal(value, one[key]) for key, value in tensors(tmp_path / "cut").items())
    again = opendino.train(Squares(), out=tmp_path / "off", **given)  # known, and off
    assert all(torch.equal(value, other[key]) for key, value in tensors(again.run).items())
    assert "lamp" not in (tmp_path / "off/config.yaml").read_text()
    del registry._added[registry.AUGMENTATIONS]["lamp"], view_settings.AUGMENTATIONS["lamp"]
    with pytest.raises(UserError, match="'lamp' came from Python, which is not here"):
        opendino.resume(tmp_path / "whole", steps=8, data=Squares())


@pytest.mark.usefixtures("no_trace")
def test_the_augmentation_of_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/own_method.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^opendino\.train\(.*augmentations=.*\)$", page, re.M)

    def train(_: str, **given: Any) -> Result:
        small = FAST | {"backbone": network, "method": SMALL_DINO, "steps": 1, "out": tmp_path / "run"}
        return opendino.train(Squares(), **small | given)

    eval(line, {"opendino": types.SimpleNamespace(train=train), "opendino_shading": shading("opendino_shading")})
    assert re.search(r"opendino_shading:\n *p: 0\.5\n", (tmp_path / "run/config.yaml").read_text())


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize(
    ("change", "reason"),
    [({"title": None}, "has no title"), ({"apply": None}, "has no apply"), ({"p": 0.5}, "is on by default")],
)
def test_an_augmentation_that_would_break_runs_is_refused(change: dict[str, Any], reason: str) -> None:
    module = shading("wrong")
    if "p" in change:
        module.Config = dataclasses.make_dataclass("Config", [("p", float, 0.5)], frozen=True)
    else:
        delattr(module, next(iter(change)))
    with pytest.raises(UserError, match=reason):
        opendino.register_augmentation("wrong", module)
    assert "wrong" not in registry.names(registry.AUGMENTATIONS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"batch": 8, "optim": {"lr": 1e-3}}, "--batch 8 --optim.lr 1e-3"),
        ({"steps": 7, "method": "byol"}, "--steps 7 --method byol"),
        ({"init": "timm:resnet18"}, "--init timm:resnet18"),
        ({"recipe": "resnet50"}, "--recipe resnet50"),
    ],
)
def test_settings_are_those_of_the_command_line(changes: dict[str, Any], words: str) -> None:
    from opendino.cli import train_command

    assert opendino.Config("photos", **changes) == train_command.parse(["photos", *words.split()])


def test_a_result_is_its_report_in_a_notebook(tmp_path: Path) -> None:
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(Result))
    result = Result(**nothing | {"run": str(tmp_path), "verdict": "learned", "evidence": "k-NN 5 < 9"})
    assert result._repr_html_() == "<p><b>learned</b>: k-NN 5 &lt; 9</p>"
    (tmp_path / "report.html").write_text('<p title="x">curves</p>')
    assert 'srcdoc="&lt;p title=&quot;x&quot;&gt;curves&lt;/p&gt;"' in result._repr_html_()


@pytest.mark.skipif(torch.__version__ < "2.15", reason="torch 2.9 imports its compiler for erfinv on the device meta")
def test_a_run_that_does_not_compile_does_not_wait_for_the_compiler(tmp_path: Path) -> None:
    program = f"""
import sys, opendino
opendino.train("toy:textures?n=16&size=16", steps=2, backbone="conv4", backbone_options={{"width": 2}}, batch=8,
               workers=0, device="cpu", compile=False, eval_images=8, report=False, out={str(tmp_path / "run")!r})
print("imported:", sorted({{"torch._dynamo", "torch._inductor"}} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines()[-1] == "imported: []"
