"""Every file of `methods/` keeps the contract of `core.contracts.Method`; a new one is tested the day it lands."""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import importlib.util
import json
import re
import tempfile
import types
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.factories import model_folder, small_vit

from opendino.cli import flag_table
from opendino.core import registry
from opendino.core.contracts import Method, MethodConfig
from opendino.core.types import Clock, Facts, Views, ViewSpec
from opendino.engine.collapse_detection import CURE, KINDS, diagnose
from opendino.models.load import preprocessing
from opendino.views import patch_masks
from opendino.views import settings as view_settings
from opendino.views.settings import changed

PACKAGE = "opendino.methods"
NAMES = registry.names(PACKAGE)
MEETINGS = {
    "a hundred photos on a CPU": Facts(100, 300, 0, 16, 40, 6, "cpu"),
    "ImageNet on many GPUs": Facts(1_281_167, 400, 1000, 1024, 375_000, 1251, "cuda"),
    "two tiny pictures, one step": Facts(2, 8, 2, 2, 1, 1, "mps"),
}
WIDTHS = {
    "out_dim": 16,
    "hidden_dim": 8,
    "bottleneck_dim": 4,
    "projection_dim": 4,
    "num_classes": 3,
}
CLOCK = Clock(0, 10, 5)
SICK = {
    "uniform": {"entropy_frac": 1.0, "marginal_frac": 1.0},
    "one-hot": {"entropy_frac": 0.0, "marginal_frac": 0.0},
    "constant": {"entropy_frac": 0.5, "marginal_frac": 0.5},
    "dead": {"feature_spread": 0.0},
}
"""Metrics of each kind of collapse."""


@functools.cache
def trained() -> tuple[tempfile.TemporaryDirectory[str], str]:
    """A model folder for methods whose teacher is one, of another architecture than their student."""
    home = tempfile.TemporaryDirectory()
    model_folder(Path(home.name), small_vit(image_px=24, embed_dim=12), 24)
    return home, home.name


def small(module: types.ModuleType) -> Any:
    """The default settings with the widths that keep a test fast, where the method has them."""
    known = {field.name for field in dataclasses.fields(module.Config)}
    given = WIDTHS | {"teacher": trained()[1]}
    config = module.Config(**{name: value for name, value in given.items() if name in known})
    return config.resolved(MEETINGS["a hundred photos on a CPU"])[0]


def spec(module: types.ModuleType, config: Any = None) -> ViewSpec:
    """Small views, with their settings by default; `config` for a method that is not `small`."""
    sizes = {"global.size": 32, "local.size": 16, "local.number": 2}
    values = {name: value for name, value in sizes.items() if name.partition(".")[0] in module.VIEWS}
    settings, _ = view_settings.resolved(changed(module.VIEWS, values), MEETINGS["a hundred photos on a CPU"])
    return dataclasses.replace(module.views(config or small(module), settings), patch_px=8)


def built(module: types.ModuleType) -> Method:
    made = module.build(small(module), lambda role: small_vit(image_px=32, embed_dim=8)).train()
    made.set_preprocessing(preprocessing(32))
    return made


def views(wanted: ViewSpec, batch: int = 3) -> Views:
    crops = {g.name: torch.randn(len(g.views), batch, 3, *g.view_px) for g in wanted.groups if g.views}
    masks = patch_masks.placeholders(wanted, batch, torch.device("cpu"))
    return Views(crops, torch.zeros(batch, dtype=torch.long), torch.arange(batch), wanted.num_labeled(batch), masks)


def test_the_articles_four_are_there() -> None:
    assert {"dino", "byol", "mean_teacher", "distill"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_answers_what_docs_methods_asks(name: str) -> None:
    text = registry.load(PACKAGE, name).__doc__
    for question in registry.METHOD_QUESTIONS:
        assert re.search(rf"^{question}: \S.+[^.]$", text, re.MULTILINE), f"'{question}: ...' in one line"


@pytest.mark.parametrize("name", NAMES)
def test_three_public_names_besides_functions_of_its_own(name: str) -> None:
    module = registry.load(PACKAGE, name)
    own = [
        value
        for key, value in vars(module).items()
        if key[0] != "_" and getattr(value, "__module__", "") == module.__name__
    ]
    types = {value.__name__ for value in own if isinstance(value, type)} - {"ResolvedConfig"}
    assert types == {"Config"} and issubclass(module.Config, MethodConfig)
    assert {"views", "build"} <= {value.__name__ for value in own}
    assert (module.__doc__ or "").strip()
    assert dataclasses.is_dataclass(module.Config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.Config().anything = 1


@pytest.mark.parametrize("name", NAMES)
def test_its_cures_name_flags_that_it_has(name: str) -> None:
    config = registry.load(PACKAGE, name).Config
    assert set(config.cures) <= set(KINDS)
    settings = {f"--method.{field.name.replace('_', '-')}" for field in dataclasses.fields(config)}
    train = json.loads(flag_table.SHIPPED.read_text(encoding="utf-8"))["train"]
    shared = {flag for flag in train["flags"] if not flag.startswith("--method.")}
    for kind in KINDS:
        cure = config.cures.get(kind, CURE)
        named = re.findall(r"--[\w.-]*\w", cure)
        assert named and set(named) <= settings | shared, f"{kind}: {cure}"
        assert not re.search(r"\w_\w|\n", cure), f"{kind}: a setting is named by its flag"
        assert diagnose(SICK[kind], config.cures).cure == cure


@pytest.mark.parametrize("name", NAMES)
def test_it_knows_neither_the_engine_nor_another_method(name: str) -> None:
    tree = ast.parse(Path(cast(str, importlib.util.find_spec(f"{PACKAGE}.{name}").origin)).read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [each for each in imported if each.startswith(("opendino.engine", "opendino.methods", "opendino.data"))]


@pytest.mark.parametrize("facts", MEETINGS.values(), ids=MEETINGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_auto_becomes_a_value_with_its_reason(name: str, facts: Facts) -> None:
    module = registry.load(PACKAGE, name)
    fields = dataclasses.fields(module.Config)
    autos = {f.name: "auto" for f in fields if "auto" in str(f.type)}
    resolved, reasons = module.Config(**autos).resolved(facts)
    assert type(resolved) is getattr(module, "ResolvedConfig", module.Config)
    assert hasattr(module, "ResolvedConfig") == bool(autos)
    assert "auto" not in [getattr(resolved, field.name) for field in fields]
    changes = [change for reason in reasons for change in reason.partition(": ")[0].split(", ")]
    assert autos.keys() <= {change.partition(" = ")[0] for change in changes}
    assert all(": " in reason and "\n" not in reason for reason in reasons)
    assert resolved.resolved(facts) == (resolved, []), "what is decided stays decided"
    settings, reasons = view_settings.resolved(module.VIEWS, facts)
    assert all(": " in reason and "\n" not in reason for reason in reasons)
    assert isinstance(module.views(resolved, settings), ViewSpec)


@pytest.mark.parametrize("name", NAMES)
def test_student_and_teacher_begin_equal_and_only_the_student_learns(name: str) -> None:
    method = built(registry.load(PACKAGE, name))
    assert isinstance(method, Method)
    assert "backbone" in method.student
    assert "backbone" in method.teacher or not method.teacher, "a method without a teacher has none at all"
    assert tuple(method.networks())[: len(method.product)] == method.product
    if "teacher" in method.product:  # it follows the student
        student, teacher = method.student.state_dict(), method.teacher.state_dict()
        assert all(torch.equal(value, student[key]) for key, value in teacher.items())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert any(p.requires_grad for p in method.student.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_pass_gives_a_finite_loss_and_changes_nothing(name: str) -> None:
    module = registry.load(PACKAGE, name)
    method = built(module)
    before = copy.deepcopy(method.state_dict())
    output = method(views(spec(module)), CLOCK)
    assert output.loss.shape == () and bool(output.loss.isfinite()) and output.loss.requires_grad
    assert all(value.shape == () and not value.requires_grad for value in output.metrics.values())
    assert torch.equal(output.metrics["loss"], output.loss.detach())
    output.loss.backward()
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # the engine puts them back where it must
    same = {key: torch.equal(value, before[key]) for key, value in method.state_dict().items()}
    assert all(equal for key, equal in same.items() if not key.endswith(statistics))
    assert not any(p.grad is not None for p in method.teacher.parameters())
    learning = [p for p in method.student.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning), "several processes wait for the gradient of each"


@pytest.mark.parametrize("name", NAMES)
def test_after_a_step_the_teacher_follows_unless_the_step_was_void(name: str) -> None:
    module = registry.load(PACKAGE, name)
    method = built(module)
    batch = views(spec(module))
    for ok in (False, True):
        method(batch, CLOCK).loss.backward()
        method.before_step(CLOCK)
        before = copy.deepcopy(method.state_dict())
        if ok:
            with torch.no_grad():
                for p in method.student.parameters():
                    p.add_(0.1)
        student = copy.deepcopy(method.student.state_dict())
        method.after_step(CLOCK, torch.tensor(ok))
        assert all(torch.equal(value, student[key]) for key, value in method.student.state_dict().items())
        same = all(torch.equal(value, before[f"teacher.{key}"]) for key, value in method.teacher.state_dict().items())
        assert same == (not ok or "teacher" not in method.product), "a frozen teacher never moves"
        if not ok:
            assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
