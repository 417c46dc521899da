"""Every file of `visualize/` is a command: its help, the file it writes, the document it prints, its errors."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
from tests.factories import dino_run, model_folder, noise_folder, small_vit

from opendino import config as configs
from opendino.cli import main
from opendino.core import registry

PACKAGE = "opendino.visualize"
NAMES = registry.names(PACKAGE)
EXAMPLES = {
    "attention": ["{model}", "{images}/0.png", "--size-px", "16"],
    "correspondence": ["{model}", "{images}/0.png", "{images}/1.png", "--size-px", "16"],
    "crops": ["{run}", "--images", "1"],
    "curves": ["{run}"],
    "pca": ["{model}", "{images}/0.png", "--size-px", "16"],
    "temperature": ["--prototypes", "8"],
    "video": ["{model}", "{images}", "--size-px", "32"],
}
"""The shortest command of each; a new visualization adds one."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, a folder of images, and a run's settings and metrics."""
    home = tmp_path_factory.mktemp("places")
    run = home / "run"
    run.mkdir()
    config = dino_run(run)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, grad_accum_steps=1))
    (run / "config.yaml").write_text(configs.dump(config))
    rows = [{"step": step, "ok": True, "loss": 3.0 / step} for step in range(1, 11)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": model_folder(home / "model", small_vit("vit/4", depth=2)),
        "images": str(noise_folder(home / "images", 3, 32, 32)),
        "run": str(run),
    }


def typed(name: str, *words: str) -> int:
    """The exit code of `opendino visualize NAME WORDS`, however it ends."""
    try:
        return main(["visualize", name, *words])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_each_has_an_example() -> None:
    assert sorted(EXAMPLES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_frozen_config_and_show(name: str) -> None:
    module = registry.load(PACKAGE, name)
    assert registry.summary(PACKAGE, name).endswith(".")
    assert dataclasses.is_dataclass(module.Config) and module.Config.__dataclass_params__.frozen
    assert "out" in [field.name for field in dataclasses.fields(module.Config)]
    assert list(inspect.signature(module.show).parameters) in (["config"], ["config", "run"])
    assert inspect.getdoc(module.show)


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(name, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == "" and registry.summary(PACKAGE, name) in " ".join(captured.out.split())
    for field in dataclasses.fields(registry.load(PACKAGE, name).Config):
        positional = {"film": "VIDEO", "runs": "RUN"}.get(field.name, field.name.upper())
        assert f"--{field.name.replace('_', '-')}" in captured.out or positional in captured.out, field.name


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_the_file_it_names_and_the_same_again(
    name: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suffix = Path(registry.load(PACKAGE, name).Config.__dataclass_fields__["out"].default).suffix
    out = tmp_path / f"out{suffix}"
    words = [word.format(**places) for word in EXAMPLES[name]] + ["--out", str(out), "--json"]
    documents, contents = [], []
    for _ in range(2):
        assert typed(name, *words) == 0
        documents.append(json.loads(capsys.readouterr().out))
        documents[-1].pop("seconds", None)
        contents.append(out.read_bytes())
    assert documents[0] == documents[1] and contents[0] == contents[1]
    assert documents[0]["paths"] == [str(out)]
    assert [path.name for path in tmp_path.iterdir()] == [out.name], "nothing partial is left"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("words", "exit_codes", "told"),
    [
        (["--no-such-flag"], {2}, "--no-such-flag"),
        (["--out", "x.exe"], {1, 2}, "x.exe"),
        (["--out", "no/such/folder/x{suffix}"], {1, 2}, "no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    name: str, words: list[str], exit_codes: set[int], told: str, places: dict[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    suffix = Path(registry.load(PACKAGE, name).Config.__dataclass_fields__["out"].default).suffix
    given = [word.format(**places) for word in EXAMPLES[name]] + [word.format(suffix=suffix) for word in words]
    assert typed(name, *given) in exit_codes
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("opendino: ") and told in captured.err
    assert list(tmp_path.iterdir()) == []
