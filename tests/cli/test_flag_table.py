"""Help and mistakes are answered from the shipped tables, without torch, and the tables are what the commands take."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from opendino.cli import EXTRAS, flag_table, flags, main, train_command, verbs
from opendino.cli.flag_table import Flag, Table, check
from opendino.core import registry
from opendino.core.errors import UsageError

ROOT = Path(__file__).parents[2]
COMMANDS = [name.split() for name in json.loads(flag_table.SHIPPED.read_text(encoding="utf-8"))]
MISTAKES = [
    "train photos --bach 3",
    "train photos --batch many",
    "train --recipe smal",
    "train photos more",
    "train photos --method byol --method.teacher-temp 0.1",
    "train photos --method byol --views.local.size 32",
    "train photos --recipe aerial --epochs many",
    "train --method swav",
    "train photos --config x.yaml --method lejepa --method.sigreg-weight 7",
    "train",
    "embed",
    "embed model photos",
    "eval knn model --kk 3",
    "eval nothing",
    "visualize nothing",
    "export model --to nothing --out x",
    "export model --out x",
    "resume",
    "doctor",
    "list",
]


def test_the_shipped_tables_are_what_the_commands_take() -> None:
    command = [sys.executable, ROOT / "docs/flag_tables.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_and_mistakes_do_not_import_torch() -> None:
    helps = [[*words, "--help"] for words in [*([verb] for verb in verbs()), *COMMANDS]] + [
        ["--help"],
        ["show", "pca", "-h"],
        ["train", "--help-all"],
    ]
    script = (
        "import json, sys\n"
        "from opendino.cli import main\n"
        "codes = [[main(words) for words in lists] for lists in json.loads(sys.argv[1])]\n"
        "print(json.dumps([codes, [name for name in ('torch', 'timm') if name in sys.modules]]))\n"
    )
    lists = [helps, [typed.split() for typed in MISTAKES]]
    done = subprocess.run([sys.executable, "-c", script, json.dumps(lists)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes, imported = json.loads(done.stdout.splitlines()[-1])
    assert codes == [[0] * len(helps), [2] * len(MISTAKES)]
    assert imported == []


def test_help_lists_every_extra(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"dev"}
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in EXTRAS) and "pip install 'opendino[app]'" in text


TABLE = Table(
    "opendino x",
    ["DATA"],
    1,
    {
        "--num": Flag({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"enum": ["auto"]}]}, "Use 1 to 9"),
        "--share": Flag({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "Use more than 0"),
        "--fast": Flag({"type": "boolean"}, "Use True or False"),
        "--sizes": Flag({}, ""),
        "--out": Flag({"anyOf": [{"type": "string", "pattern": "^[a-z]+$"}, {"type": "null"}]}, "Use text", True),
    },
)


@pytest.mark.parametrize(
    "words",
    [
        "data --out x",
        "data --out=x --num 9 --share 1e-3",
        "--out None --num auto data --fast",
        "--fast data --out x",
        "data --fast False --out x",
        "--sizes 1 2 3 data --out x",
        "data -k 3 --out x",
    ],
)
def test_right_words_pass(words: str) -> None:
    check(TABLE, words.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--out x", "No images were named"),
        ("data", "opendino x lacks --out. See opendino x --help"),
        ("data more --out x", "Unexpected argument 'more'"),
        ("data --out x --nun 3", "Unknown option '--nun'. Did you mean --num"),
        ("data --out x --num", "--num lacks a value"),
        ("data --num --out x", "--num lacks a value"),
        ("data --out x --num 10", "--num is 10. Use 1 to 9"),
        ("data --out x --num 2.5", "--num is 2.5. Use 1 to 9"),
        ("data --out x --num=many", "--num is 'many'. Use 1 to 9"),
        ("data --out x --share 0", "--share is 0. Use more than 0"),
        ("data --out x --share nan", "--share is nan. Use more than 0"),
        ("data --out x --fast=maybe", "--fast is 'maybe'. Use True or False"),
        ("data --out X", "--out is 'X'. Use text"),
    ],
)
def test_wrong_words_are_one_line(words: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(TABLE, words.split())
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    "words", ["x --method byol", "--method byol --help", "--config x.yaml --help", "--config x.yaml --bach"]
)
def test_what_a_file_or_the_defaults_of_a_method_decide_is_left_to_the_command(words: str) -> None:
    assert flag_table.shipped_help("train", words.split()) is None


@pytest.mark.parametrize(
    "words", [f"--method {name}" for name in registry.own_names(registry.METHODS)] + ["--recipe aerial"]
)
def test_the_flags_of_a_method_are_those_of_its_config(words: str) -> None:
    shipped, rest, _ = flag_table._of_a_run(flag_table._shipped()["train"], words.split())
    config = train_command._base(words.split(), "auto", None)[1]
    real = flags.describe(config, "opendino train").flags
    assert rest == [] and shipped is not None
    assert {flag: it for flag, it in shipped.flags.items() if not flag.startswith("--views.all.")} == real


def test_plugin_methods_are_left_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"opendino.methods": {"mine": object()}}
    monkeypatch.setattr(flag_table.registry, "_added", {})
    assert flag_table.shipped_help("train", ["--help"]) is not None
    monkeypatch.setattr(flag_table.registry, "_added", names)
    assert flag_table.shipped_help("train", ["--help"]) is None
