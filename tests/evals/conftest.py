"""A tiny model, and the command line with --json, for end-to-end tests of evals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opendino.cli import main
from opendino.models.load import preprocessing, save_backbone
from opendino.models.vit import VisionTransformer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    backbone = VisionTransformer(image_px=32, patch_px=8, embed_dim=24, depth=1, num_heads=2)
    save_backbone(folder, {"teacher": backbone}, preprocessing=preprocessing(32))
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
