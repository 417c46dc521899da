"""The package as it is published: the wheel, the source distribution, and the files around them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MOST_BYTES = 2 * 2**20
"""The wheel has no images and no weights."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built from the files that git knows."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out)], cwd=ROOT, check=True, capture_output=True
    )
    return out


def test_the_wheel_has_every_file_of_the_package_and_no_other(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert inside == {name.removeprefix("src/") for name in tracked.split()} and "opendino/py.typed" in inside
    assert wheel.stat().st_size < MOST_BYTES


def test_the_wheel_trains_where_the_sources_are_not(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")  # as pip does; before the editable installation on the path
    code = "import opendino, sys; print(opendino.__file__); from opendino.cli import main; sys.exit(main())"
    words = ["demo", "toy:textures?n=48&size=32", "--val", "toy:textures?n=24&size=32&split=val", "--steps", "3"]
    words += ["--batch", "8", "--workers", "0", "--eval-images", "24", "--out", str(tmp_path / "run")]
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(tmp_path / "site")) and "k-NN accuracy on held-out images" in ended.stdout
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_source_distribution_builds_and_documents_itself(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/opendino/__init__.py", "tests/conftest.py"} <= inside
    assert not [name for name in inside if name.startswith((".venv", "runs/", "build/"))]


def test_the_version_stands_in_one_place() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert (
        f"To become {version}" in (ROOT / "CHANGELOG.md").read_text()
        or f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_workflows_and_forms_are_what_github_reads() -> None:
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        parsed = yaml.safe_load(workflow.read_text())
        assert {"name", True, "jobs", "permissions"} == parsed.keys(), workflow  # YAML 1.1 reads `on` as True
        for job in parsed["jobs"].values():
            assert job["runs-on"] and all({"uses", "run"} & step.keys() for step in job["steps"])
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        parsed = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= parsed.keys()
        for field in parsed["body"]:
            assert field["type"] in ("textarea", "input") and field["id"] and field["attributes"]["label"]
