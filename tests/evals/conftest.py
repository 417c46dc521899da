"""A tiny model, and the command line with --json, for end-to-end tests of evals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.factories import model_folder, small_vit

from opendino.cli import main


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model_folder(folder, small_vit(image_px=32), 32)
    return folder


@pytest.fixture
def ask(request: pytest.FixtureRequest, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`opendino eval` of the test file's `EVAL` with `--json`: its answer, or {"exit": code, "error": …}."""

    def typed(*words: object) -> dict[str, Any]:
        code = main(["eval", request.module.EVAL, str(tiny_model), *map(str, words), "--json"])
        captured = capsys.readouterr()
        answer = json.loads(captured.out)
        if code:
            assert captured.err.count("\n") == 1, captured.err
            answer["exit"] = code
        return answer

    return typed
