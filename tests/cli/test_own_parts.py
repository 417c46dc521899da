"""--import: what was given in Python is used from the command line, and only where the user names its file."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.factories import FAST, SMALL_DINO, noise_folder

import opendino
from opendino import existing_runs
from opendino.cli import main, own_parts
from opendino.core import registry
from opendino.core.errors import UsageError, UserError

NETWORKS = """
from torch import nn

def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2))

def _hidden() -> None: ...
"""


@pytest.fixture
def forget() -> Iterator[Callable[[], None]]:
    """Forgets parts and modules as a new process does."""
    modules, path = set(sys.modules), list(sys.path)

    def forget() -> None:
        registry._added[registry.BACKBONES].clear()
        for name in [name for name, it in sys.modules.items() if name not in modules and name.startswith("my_")]:
            del sys.modules[name]
        sys.path[:] = path

    yield forget
    forget()


def test_a_network_given_in_python_is_used_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], forget: Callable[[], None]
) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    images = str(noise_folder(tmp_path / "images", 8))
    backbone = importlib.import_module("my_networks").tiny
    given = FAST | {"method": SMALL_DINO, "batch": 4, "steps": 2, "out": tmp_path / "run"}
    opendino.train(images, backbone=backbone, **given)
    told = existing_runs.how_to_resume(existing_runs.read_run_config(tmp_path / "run"), tmp_path / "run")
    forget()
    for words in (["embed", "run", images, "--out", "x.parquet"], ["resume", "run", "--steps", "3"]):
        assert main(words) == 1
        assert (
            "The backbone 'tiny' came from Python (my_networks.py), which is not here. Add to the command: --import "
            "my_networks.py, the file that defines tiny; or in Python"
        ) in capsys.readouterr().err
        assert "my_networks" not in sys.modules  # the run names the file, but nothing imports it
        assert main([*words, "--import", "my_networks.py", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
        forget()
    assert told == f"opendino resume {tmp_path / 'run'} --import {tmp_path / 'my_networks.py'}"
    assert main([*told.split()[1:], "--steps", "4", "--json"]) == 0


def test_the_public_functions_networks_and_methods_of_a_file_are_registered(
    tmp_path: Path, forget: Callable[[], None]
) -> None:
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    plugin = Path(__file__).parents[2] / "examples/plugin/opendino_simsiam.py"
    (tmp_path / "my_simsiam.py").write_text(plugin.read_text())
    args, files = own_parts.take(
        ["train", "x", f"--import={tmp_path}/my_networks.py", "--import", f"{tmp_path}/my_simsiam.py"]
    )
    assert args == ["train", "x"]
    try:
        own_parts.add(files)
        assert registry.names(registry.BACKBONES) == ["python:SimSiam", "python:tiny"]
        assert "my_simsiam" in registry.names(registry.METHODS)
        assert registry.origin(registry.METHODS, "my_simsiam") == "Python (my_simsiam.py)"
    finally:
        registry._added[registry.METHODS].pop("my_simsiam", None)


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("my_script.py", 'import opendino\nopendino.train("photos")', r"starts a run when it is imported.*__main__"),
        ("my_script.py", "1 / 0", "cannot be imported: ZeroDivisionError"),
        ("json.py", "", "has the name of another module.*Rename"),
        ("my_other.py", None, "There is no file"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        own_parts.add([str(tmp_path / name)])
    assert not registry.importing and "my_script" not in sys.modules
    with pytest.raises(UserError, match="There is no module 'my_nowhere'"):
        own_parts.add(["my_nowhere"])
    with pytest.raises(UsageError, match="--import lacks a file"):
        own_parts.take(["embed", "--import"])


@pytest.mark.parametrize("where", ["Python (../../evil.py)", "Python (a b.py; rm)", "Python (\x1b[2J.py)"])
def test_a_stranger_s_run_cannot_put_a_path_or_a_command_into_the_hint(where: str) -> None:
    assert "--import FILE.py, the file" in registry.not_here("backbone", "python:net", where).hint
