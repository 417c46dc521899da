"""The notebooks run from top to bottom."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.factories import noise_folder

from opendino.core import registry

EXAMPLES = Path(__file__).parents[1] / "examples"


def code_cells(name: str) -> list[str]:
    """The code of a notebook, which must be valid and without outputs."""
    import nbformat

    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without their outputs"
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_notebook_runs_in_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("STEPS", "2")
    assert code_cells("first_model")
    notebook = nbformat.read(EXAMPLES / "first_model.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {key for cell in notebook.cells for output in cell.get("outputs", ()) for key in output.get("data", ())}
    assert "image/png" in shown
    assert (tmp_path / "vectors.parquet").exists()


@pytest.mark.slow
def test_own_data_network_and_callback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "2")
    names: dict[str, Any] = {}
    for cell in code_cells("own_parts"):
        exec(cell, names)
    assert names["run"].steps == 2 and names["model"].embed([names["source"].read(0)]).shape == (1, 512)
    assert capsys.readouterr().out.count("'teacher'") >= 2
    del registry._added[registry.BACKBONES]["python:network"]  # other tests know no network


@pytest.mark.slow
def test_the_notebook_for_colab_runs_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = code_cells("colab")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("DATA", str(noise_folder(tmp_path / "photos", 40)))
    names: dict[str, Any] = {}
    for cell in cells:
        exec(cell, names)  # a cell at a time, as there
    assert names["images"].vectors.shape[0] == 40
    with zipfile.ZipFile("model.zip") as archive:
        assert {"backbone.json", "backbone.safetensors", "README.md"} <= set(archive.namelist())
