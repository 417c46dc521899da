"""The settings of a run: YAML round trips, merging, and one-line errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opendino import config as configs
from opendino.config import Config
from opendino.core.errors import UsageError
from opendino.engine import optim
from opendino.methods import byol, dino
from opendino.views.settings import changed

FULL = Config(
    data="~/photos", val="toy:", out="runs/x", backbone="vit/8",
    backbone_options={"depth": 2, "mlp_ratio": 1.5, "x": True},
    method=dino.Config(out_dim="auto", momentum=0.9, centering="none"),
    views=changed(dino.VIEWS, {"local.number": 0, "global.crop.scale": (0.5, 0.9), "global.size": (16, 32)}),
    optim=optim.Config(name="lars", lr=1e-7, grad_accum_steps=4, clip_by="global"), steps=7, batch=3, cache="disk",
)  # fmt: skip


def read(tmp_path: Path, text: str, base: Config | None = None) -> Config:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return configs.from_tree(configs.read_tree(path), base)


@pytest.mark.parametrize("config", [Config(data="a"), FULL, Config(data="ü: #1\n", epochs=0.25)])
def test_yaml_gives_the_same_settings_back(tmp_path: Path, config: Config) -> None:
    assert read(tmp_path, configs.dump(config)) == config


def test_the_method_is_named_in_the_tree() -> None:
    assert configs.to_tree(FULL)["method"]["name"] == "dino" == configs.method_name(FULL)
    assert configs.method_module(FULL) is dino
    assert configs.method_config("dino") == dino.Config()


def test_a_few_lines_change_only_what_they_name(tmp_path: Path) -> None:
    laid = read(tmp_path, "batch: 5\nmethod:\n  name: dino\n  momentum: 0.5\noptim: {lr: 0.5}\nval: null\n", FULL)
    expected = replace(
        FULL, batch=5, method=replace(FULL.method, momentum=0.5), optim=replace(FULL.optim, lr=0.5), val=None
    )
    assert laid == expected


def test_another_method_brings_its_own_defaults(tmp_path: Path) -> None:
    base = configs.with_method(FULL, "byol")
    laid = read(tmp_path, "method: {name: dino, momentum: 0.5}\nviews: {local: {number: 4}}\n", base)
    assert laid.method == dino.Config(momentum=0.5)
    assert laid.views == changed(dino.VIEWS, {"local.number": 4})


def test_all_stands_for_every_group_and_single_groups_come_after_it(tmp_path: Path) -> None:
    laid = read(tmp_path, "views:\n  local: {flip: {p: 0.1}}\n  all: {flip: {p: 0}, crop: {fixed: true}}\n", FULL)
    assert [view.flip.p for view in laid.views.values()] == [0, 0, 0.1]
    assert all(view.crop.fixed for view in laid.views.values())


def test_views_are_those_of_the_method() -> None:
    with pytest.raises(UsageError, match=r"has no views .local.\. Choose from global, second; or"):
        Config(data="a", method=byol.Config(), views=dino.VIEWS)
    with pytest.raises(UsageError, match=r"views\.local is 3"):
        Config(data="a", views={"local": 3})
    assert Config(data="a", method=byol.Config()).views == byol.VIEWS
    assert configs.with_method(FULL, "byol").views == byol.VIEWS
    with pytest.raises(UsageError, match=r"There are no views 'locals'"):
        changed(dino.VIEWS, {"locals.number": 3})
    with pytest.raises(UsageError, match=r"There is no setting views\.local\.blurr\.p\. Did you mean blur"):
        changed(dino.VIEWS, {"local.blurr.p": 3})
    with pytest.raises(UsageError, match=r"views\.all\.blur\.p is 3"):
        changed(dino.VIEWS, {"all.blur.p": 3})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bach: 3", "Unknown key 'bach'. Did you mean batch"),
        ("method: {center_moment: 3}", "Unknown key 'method.center_moment'. Did you mean center_momentum"),
        ("views: {locals: {number: 3}}", "Unknown key 'views.locals'. Did you mean local"),
        ("views: {local: {blurr: {p: 1}}}", "Unknown key 'views.local.blurr'. Did you mean blur"),
        ("views: {second: {size: 32}}", "Unknown key 'views.second.size'"),
        ("views: 3", "views is 3"),
        ("views: {local: 3}", "Unknown key 'views.local'"),
        ("optim: {learning_rate: 3}", "Unknown key 'optim.learning_rate'"),
        ("1: 3", "Unknown key '1'"),
        ("method: {name: dinosaur}", "Unknown method 'dinosaur'. Did you mean dino?"),
        ("batch: many", "batch is 'many'"),
        ("batch: 2.5", "batch is 2.5"),
        ("seed: null", "seed is None"),
        ("seed: true", "seed is True"),
        ("cache: disc", "cache is 'disc'"),
        ("precision: half", "precision is 'half'"),
        ("optim: adamw", "optim is 'adamw'"),
        ("optim: {name: adam}", "optim.name is 'adam'"),
        ("views: {global: {crop: {scale: 0.5}}}", "views.global.crop.scale is 0.5"),
        ("views: {global: {crop: {scale: [0.5]}}}", r"views.global.crop.scale is \[0.5\]"),
        ("method: {centering: maybe}", "method.centering is 'maybe'"),
        ("method: {momentum: 3}", "momentum is 3"),
        ("batch: 0", "batch is 0"),
        ("epochs: 0\nsteps: null", "epochs is 0"),
        ("workers: -1", "workers is -1"),
        ("- a\n- b", "has no settings"),
        ("", "has no settings"),
        ("a: [", "is not YAML"),
        ("[" * 2000, "is not YAML"),
        ("batch: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("mean: [123.7, 116.3, 103.5]", r"mean is \[123\.7, 116\.3, 103\.5\]\. .*: 0\.4851 0\.4561 0\.4059"),
        ("mean: [.nan, 0, 0]", r"mean is \[nan, 0, 0\]"),
        ("views: {all: {color_jitter: {hue: .nan}}}", r"views\.global\.color_jitter\.hue is nan"),
        ("views: {local: {size: -16}}", r"views\.local\.size is -16\. Use a whole number from 1 to 16,384"),
        ("views: {local: {size: 0}}", "views.local.size is 0"),
        ("method: {out_dim: 1000000000000}", "method.out_dim is 1000000000000"),
        ("max_nonfinite: 0", "max_nonfinite is 0"),
        ("eval_every: soon", "eval_every is 'soon'. Use a duration"),
        ("optim: {lr_warmup: 9999999999999ep}", "optim.lr_warmup is '9999999999999ep'"),
        ("backbone_options: {depth: 10000000}", "backbone_options is"),
        ('init: "a\\0b"', "NUL"),
    ],
)
def test_invalid_settings_are_rejected_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        read(tmp_path, text, FULL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch: 3\nseed: 1\nbatch: 4\n", "has the key 'batch' twice, in lines 1 and 3. Keep one of them"),
        ("method:\n  name: dino\n  'name': byol\n", "has the key 'name' twice, in lines 2 and 3"),
        ("optim: {lr: 1, lr: 2}", "has the key 'lr' twice, in line 1"),
    ],
)
def test_a_duplicate_key_is_rejected_with_both_lines(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=rf"settings\.yaml {says}"):
        read(tmp_path, text, FULL)


def test_the_same_key_in_two_sections_is_allowed(tmp_path: Path) -> None:
    laid = read(tmp_path, "optim: {name: sgd}\nmethod: {name: dino}\n", FULL)
    assert (laid.optim.name, configs.method_name(laid)) == ("sgd", "dino")


def test_a_method_must_be_a_dataclass() -> None:
    with pytest.raises(UsageError, match=r"method is 'dino'\. Use a method's Config"):
        Config(data="a", method="dino")


def test_choices_are_listed_for_an_invalid_choice(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "cache: disc", FULL)
    assert caught.value.hint == "Choose from auto, device, disk, off, ram"


def test_epochs_and_steps_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"epochs=2 and steps=3 were both given\. Give one of them"):
        Config(data="a", epochs=2, steps=3)
    with pytest.raises(UsageError, match="were both given"):
        read(tmp_path, "data: a\nepochs: 2\nsteps: 3\n")


def test_settings_without_data_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The settings have no data\. Add a line such as data: ~/photos"):
        read(tmp_path, "batch: 3\n")


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "gone.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=f"Cannot read .*: {says}"):
            configs.read_tree(path)
