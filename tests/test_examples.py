"""The notebooks run from top to bottom."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.factories import noise_folder

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
COLAB = next(path for path in EXAMPLES if path.stem == "colab")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path != COLAB], ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("STEPS", "4")
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without their outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    if path.stem != "first_model":
        return
    shown = {key for cell in notebook.cells for output in cell.get("outputs", ()) for key in output.get("data", ())}
    assert "image/png" in shown
    assert (tmp_path / "vectors.parquet").exists()


@pytest.mark.slow
def test_the_notebook_for_colab_runs_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat

    notebook = nbformat.read(COLAB, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without their outputs"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("DATA", str(noise_folder(tmp_path / "photos", 40)))
    names: dict[str, Any] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)  # a cell at a time, as there
    assert names["images"].vectors.shape[0] == 40
    with zipfile.ZipFile("model.zip") as archive:
        assert {"backbone.json", "backbone.safetensors", "README.md"} <= set(archive.namelist())
