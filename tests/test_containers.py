"""The Dockerfiles, as far as they can be checked without building them, and the commands that their page gives."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "Dockerfile", ROOT / "Dockerfile.cuda"]
IMAGE = re.compile(r"[a-z][a-z-]*:[\w.-]+")
"""A public image with its version: no host, no `latest` by default."""


def instructions(path: Path) -> list[tuple[str, str]]:
    """(keyword, rest) of a Dockerfile, lines that continue joined."""
    text = re.sub(r"\\\n\s*", "", "\n".join(line for line in path.read_text().splitlines() if line[:1] != "#"))
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line]


@pytest.fixture(scope="module")
def project() -> dict:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_dockerfile_names_what_exists(path: Path, project: dict) -> None:
    steps = instructions(path)
    (image,) = [rest for keyword, rest in steps if keyword == "FROM"]
    assert IMAGE.fullmatch(image) and f"python:{project['requires-python'][2:]}-slim" <= image
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    sources = [word for keyword, rest in steps if keyword == "COPY" for word in rest.split()[:-1]]
    assert sorted(sources) == sorted(kept) and all((ROOT / source).exists() for source in sources)
    needed = {"pyproject.toml", "src", project["readme"], *project["license-files"]}
    assert {name for name in needed if any(fnmatch(name, each) for each in kept)} == needed
    (extras,) = re.findall(r"/opt/opendino\[([\w,]+)\]", "".join(rest for _, rest in steps))
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert f"extras {', '.join(f'`{each}`' for each in extras.split(',')[:-1])}" in page()
    assert "http" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_image_runs_opendino_as_a_user_without_rights(path: Path, project: dict) -> None:
    steps = instructions(path)
    keywords = [keyword for keyword, _ in steps]
    user = dict(steps)["USER"]
    assert int(user) > 0 and f"useradd --create-home --uid {user} " in "".join(rest for _, rest in steps)
    assert "RUN" not in keywords[keywords.index("USER") :]
    assert json.loads(dict(steps)["ENTRYPOINT"])[0] in project["scripts"]


def page() -> str:
    return (ROOT / "docs/deployment.md").read_text(encoding="utf-8")


def test_the_page_publishes_ports_on_this_machine_only() -> None:
    lines = re.findall(r"^docker run .*$", page(), re.M)
    published = [words[words.index("-p") + 1] for words in map(shlex.split, lines) if "-p" in words]
    assert len(published) == 2 and all(port.startswith("127.0.0.1:") for port in published)
    assert all("-p" in line for line in lines if "--host 0.0.0.0" in line)


def test_the_page_names_verbs_and_flags_that_exist() -> None:
    tables = json.loads((ROOT / "src/opendino/cli/flag_tables.json").read_text(encoding="utf-8"))
    for line in re.findall(r"^docker run .*$", page(), re.M):
        image = re.search(r" opendino(?::cuda)? (\w+) ?(.*)", line)
        assert image, line
        verb, rest = image.groups()
        flags = [word for word in rest.split() if word.startswith("--")]
        assert verb in tables or verb == "doctor", line
        assert [flag for flag in flags if flag not in json.dumps(tables.get(verb, {}))] == [], line
