"""The command line: help, lists, and one clear line for every mistake, which leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.factories import noise_folder

import opendino.cli
from opendino.cli import main
from opendino.core import registry


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with every kind of path that a user may name."""
    noise_folder(tmp_path / "photos", 6)
    noise_folder(tmp_path / "one", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/notes.md").touch()
    (tmp_path / "corrupt").mkdir()
    for number in range(5):
        (tmp_path / f"corrupt/{number}.jpg").write_bytes(b"\xff\xd8 no image")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("data: photos\n")
    (tmp_path / "wrong.yaml").write_text("bach: 3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


MISTAKES = {
    # what is typed: (exit code, what the line must name, what it must say to do)
    "train photo": (1, "photo does not exist", "Did you mean photos?"),
    "train nowhere/else": (1, "nowhere/else does not exist", "There is no 'nowhere' in"),
    "train empty": (1, "No files in folder ", "Give a folder"),
    "train texts": (1, "texts: 1 file seen (1 .md)", "Images end in"),
    "train photos/0.png": (1, "photos/0.png is a single image", "Give the folder it lies in: "),
    "train one": (1, "The set has 1 image", "Give a folder with more images"),
    "train corrupt": (1, "5 of 5 images looked at cannot be read, e.g. 0.jpg", "Remove or convert them"),
    "train photos --batch 8": (1, "The dataset has 6 images, fewer than one batch of 8", "Use --batch 6 or less"),
    "train photos --out run": (1, "'run' exists already", "opendino resume run; or choose another --out"),
    "train photos --out wrong.yaml": (1, "'wrong.yaml' exists already", "Choose another --out"),
    "train photos --val nowhere --steps 1 --backbone conv4": (1, "nowhere does not exist", "There is no 'nowhere'"),
    "resume runn": (1, "'runn' is no run folder", "opendino train DATA"),
    "resume photos": (1, "'photos' is no run folder", "opendino train DATA"),
    "resume": (2, "resume takes one run folder, not nothing", "opendino resume RUN"),
    "continue": (2, "continue takes a run folder first, not nothing", "opendino continue RUN"),
    "continue --steps 3": (2, "continue takes a run folder first, not --steps", "opendino continue RUN"),
    "continue photos": (1, "'photos' is no run folder", "opendino train DATA"),
    "resume run more": (2, "not run more", "opendino resume RUN"),
    "train": (2, "No images were named", "Give a folder of images"),
    "train photos --bach 8": (2, "Unknown option '--bach'", "Did you mean --batch"),
    "train photos --views.local.numbr 8": (2, "Unknown option '--views.local.numbr'", "--views.local.number"),
    "train photos --config wrong.yaml": (2, "Unknown key 'bach'", "Did you mean batch"),
    "train photos --config gone.yaml": (2, "Cannot read gone.yaml", "No such file"),
    "train photos --config": (2, "--config lacks its value", "Write --config"),
    "train photos --recipe smal": (2, "Unknown recipe 'smal'", "Did you mean small?"),
    "train photos --method dinosaur": (2, "Unknown method 'dinosaur'", "dino"),
    "train photos --backbone resnet5": (2, "Unknown backbone 'resnet5'", "resnet50"),
    "train photos --backbone vit_huge/16": (2, "vit_huge/16", "vit_"),
    "train photos --backbone vit_small/x": (2, "'vit_small/x' lacks a patch size", "vit_small/16"),
    "train toy:clouds": (2, "clouds", "textures"),
    "train photos --batch many": (2, "'many'", "a whole number from 1"),
    "train photos --epochs ten": (2, "'ten'", "a number above 0"),
    "train photos --precision half": (2, "'half'", "bfloat16"),
    "train photos --device gpu": (2, "Unknown device 'gpu'", "cuda"),
    "train photos --batch 0": (2, "--batch is 0", "a whole number from 1"),
    "train photos --seed -1": (2, "--seed is -1", "a whole number from 0"),
    "train photos --views.local.number -1": (2, "--views.local.number is -1", "a whole number from 0"),
    "train photos --method.teacher-temp 0": (2, "--method.teacher-temp is 0", "from 0.0001"),
    "train photos --optim.lr 0": (2, "--optim.lr is 0", "above 0"),
    "train photos --every 2": (2, "every is '2'", "seconds such as 2s"),
    "train photos --minutes 0": (2, "--minutes is 0", "above 0"),
    "train photos --epochs 2 --steps 3": (2, "epochs=2.0 and steps=3", "Give one of them"),
    "train photos --views.global.crop.scale 0.5": (2, "--views.global.crop.scale", "Expected 2"),
    "train photos more": (2, "more", "opendino train --help"),
    "train photos --batch 6 --optim.grad-accum-steps 4": (
        1, "6 images do not divide into optim.grad_accum_steps=4", "divisor of 6",
    ),
    "trian photos": (2, "Unknown verb 'trian'", "Did you mean train?"),
    "list recipies": (2, "Unknown kind 'recipies'", "Did you mean recipes"),
    "list": (2, "list takes one kind, not nothing", "recipes"),
    "--verson": (2, "Unknown verb '--verson'", "Available"),
}  # fmt: skip


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line_with_value_and_next_step_and_leaves_nothing(
    here: Path, typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code, named, advised = MISTAKES[typed]
    before = tree(here)
    assert main(typed.split()) == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    told = [line for line in captured.err.splitlines() if line.startswith("opendino: ")]
    assert len(told) == 1 and named in told[0] and advised in told[0], captured.err
    if "--val" not in typed:  # found out only after the settings were decided and shown
        assert captured.err.splitlines() == told
    assert tree(here) == before


@pytest.mark.parametrize(
    "typed", ["train photo", "train photos --batch many", "trian x", "resume runn", "train corrupt"]
)
def test_json_is_one_document_with_message_and_hint(here: Path, typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code = main([*typed.split(), "--json"])
    assert exit_code == MISTAKES.get(typed, (2,))[0]
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"message", "hint"}
    assert document["error"]["message"] and document["error"]["hint"]


@pytest.mark.parametrize("kind", ["methods", "recipes", "evals", "sources", "augmentations"])
def test_lists_are_the_folders(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    package = {"sources": "opendino.data.sources", "augmentations": "opendino.views.augmentations"}.get(
        kind, f"opendino.{kind}"
    )
    assert main(["list", kind, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)[kind]
    assert [*listed] == registry.names(package)
    assert all(listed.values()), "each has a first line"
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == registry.names(package)


def test_backbones_are_listed_by_names_that_build(capsys: pytest.CaptureFixture[str]) -> None:
    from opendino.models.build import backbone

    assert main(["list", "backbones", "--json"]) == 0
    ours = [name for name, text in json.loads(capsys.readouterr().out)["backbones"].items() if text == "ours"]
    assert "vit_small/16" in ours
    assert backbone(ours[0]).embed_dim > 0


@pytest.mark.parametrize("typed", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    verbs = [name.removesuffix("_command") for name in registry.names("opendino.cli") if name.endswith("_command")]
    assert len(verbs) >= 19 and all(f"\n  {verb}" in captured.out for verb in verbs)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == opendino.__version__


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def pressed(args: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("opendino.cli.resume_command.run", pressed)
    assert main(["resume", "x"]) == 130
    captured = capsys.readouterr()
    assert captured.err.lower().startswith("opendino: interrupted") and captured.err.count("\n") == 1
    assert captured.out == ""
    assert main(["resume", "x", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize(
    ("number", "says"), [(28, "disk is full"), (122, "disk quota"), (30, "Cannot write"), (13, "Not allowed")]
)
def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, says: str
) -> None:
    def refused(args: list[str]) -> None:
        raise OSError(number, "refused", "/there/file")

    monkeypatch.setattr("opendino.cli.resume_command.run", refused)
    assert main(["resume", "x"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and says in line and "/there/file" in line


def test_help_and_lists_import_nothing_heavy() -> None:
    program = """
import sys
import opendino
from opendino.cli import main
for typed in (["--help"], ["--version"], ["resume", "--help"], ["trian"], ["list", "methods"]):
    main(typed)
print("heavy:", sorted({"torch", "numpy", "tyro", "timm", "PIL", "rich"} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines()[-1] == "heavy: []"


def test_one_line_says_that_torch_is_imported_before_it_is() -> None:
    program = """
import sys
from opendino.cli import main
from opendino.core.errors import UserError

class Stop:
    def find_spec(self, name, *_):
        if name == "torch":
            raise UserError("here")

sys.meta_path.insert(0, Stop())
for typed in ("train photos", "demo", "resume run", "continue run", "app photos"):
    main([*typed.split(), "--json"])
short = "eval knn run", "predict head photos", "select photos.lance --num 1 --out x.txt"
for typed in short:
    main([*typed.split(), "--json"])
sys.stderr.isatty = lambda: True
for typed in short:
    main([*typed.split(), "--json"])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    expected = [f"opendino {verb}: importing PyTorch ..." for verb in ("train", "demo", "resume", "continue", "app")]
    in_terminal = [f"opendino {verb}: importing PyTorch ..." for verb in ("eval", "predict", "select")]
    lines = [line for told in (*expected, None, None, None, *in_terminal) for line in (told, "opendino: here") if line]
    assert ended.stderr.splitlines() == lines
    assert [json.loads(line)["error"]["message"] for line in ended.stdout.splitlines()] == ["here"] * 11


@pytest.mark.parametrize("verb", ["print('x' * 10**6)", "sys.stdout.write('x')", "sys.exit(0)"])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, verb: str) -> None:
    """As with `opendino ... | head`: output after the reader has exited leads to no traceback."""
    program = f"import sys, opendino.cli as cli; cli._run = lambda _: {verb} or 0; sys.exit(cli.main([]))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_pipe_between_our_own_processes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(opendino.cli, "_run", broken)
    with pytest.raises(BrokenPipeError):
        main([])
