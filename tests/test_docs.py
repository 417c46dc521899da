"""README, pages and examples name only files, symbols, commands and extras that exist."""

import ast
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from opendino.core import registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "opendino"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "docs" / "log.md")  # keeps the names of its day
PROGRAMS = [*sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "docs").rglob("*.py"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.ipynb"))

FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"[\w*.-]+(?:/[\w*.-]+)*/?")
SYMBOL = re.compile(r"(?P<path>[\w./-]+\.py): (?P<name>\w+)")
SOURCE_FILE = re.compile(r"\.(?:py|md|toml|lock|ipynb|svg)$")
VERB = re.compile(r"(?:^|[\s`/])opendino (?P<verb>[a-z]+)(?: (?P<rest>[\w| -]+))?", re.M)
IMPORT = re.compile(r"^(?:from|import) .+$", re.M)
LEFT_BY_A_RUN = {"README.md"}  # also of exported folders
KINDS = {"eval": "evals", "visualize": "visualize", "experiment": "experiments"}


def spans(text: str) -> list[str]:
    """What a page has in backticks: inline spans, and the lines of fenced blocks."""
    fenced = [line for block in FENCE.findall(text) for line in block.splitlines()[1:-1]]
    return [*SPAN.findall(FENCE.sub("", text)), *fenced]


def paths(text: str) -> list[str]:
    """Paths of files of this repository, as far as a span tells: by their ending or by their first folder."""
    folders = {each.name for each in (*ROOT.iterdir(), *PACKAGE.iterdir()) if each.is_dir()} - {"runs", ".venv"}
    found = []
    for span in spans(text):
        for word in re.split(r"[\s:,()\[\]\"']+", span):
            first, separator, _ = word.partition("/")
            if PATH.fullmatch(word) and (SOURCE_FILE.search(word) or (separator and first in folders)):
                found.append(word)
    return found


def exists(path: str) -> bool:
    if path in LEFT_BY_A_RUN:
        return True
    if re.search(r"\b[A-Z]+\.\w+$", path):  # a placeholder: NAME.py
        path = str(Path(path).parent)
    return any((base / path).exists() or any(base.glob(path)) for base in (ROOT, PACKAGE))


@cache
def defined(path: Path) -> set[str]:
    """Names at the top level of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        for each in ast.walk(node) if isinstance(node, ast.If | ast.Try | ast.With) else [node]:
            match each:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    names.add(each.name)
                case ast.Assign() | ast.AnnAssign():
                    targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                    names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
                case ast.Import() | ast.ImportFrom():
                    names |= {(alias.asname or alias.name).partition(".")[0] for alias in each.names}
    return names


def module_file(name: str) -> Path | None:
    """The file of a module of this package."""
    path = ROOT.joinpath("src", *name.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def missing(code: str) -> list[str]:
    """Names that a program takes from this package and that are not there: imports, and attributes of its modules."""
    tree, modules, wrong = ast.parse(code), dict[str, Path](), list[str]()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "opendino":
            continue
        assert node.module
        home = module_file(node.module)
        for alias in node.names:
            submodule = module_file(f"{node.module}.{alias.name}")
            if submodule:
                modules[alias.asname or alias.name] = submodule
            elif home is None or alias.name not in defined(home):
                wrong.append(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            path = modules[node.value.id]
            package = path.name == "__init__.py" and (path.with_name(f"{node.attr}.py")).exists()
            if not package and node.attr not in defined(path):
                wrong.append(f"{node.value.id}.{node.attr}")
    return wrong


def verbs() -> set[str]:
    return {name.removesuffix("_command") for name in registry.names("opendino.cli") if name.endswith("_command")}


def wrong_commands(text: str) -> list[str]:
    """Commands that a text names and that do not exist, by their verb, or by what they are to evaluate or draw."""
    wrong = []
    for span in spans(text):
        for found in VERB.finditer(span):
            verb, words = found["verb"], re.split(r"\s*\|\s*|\s+", found["rest"] or "")
            if verb not in verbs():
                wrong.append(f"opendino {verb}")
            elif verb in KINDS:
                known = registry.names(f"opendino.{KINDS[verb]}")
                named = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)][:1]
                wrong += [f"opendino {verb} {name}" for name in named if name.replace("-", "_") not in known]
        recipes = re.findall(r"--recipe ([a-z]\w*)", span)
        wrong += [f"--recipe {name}" for name in recipes if name not in registry.names("opendino.recipes")]
    return wrong


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_exist(page):
    assert [path for path in paths(page.read_text()) if not exists(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_symbols_exist(page):
    found = [(match["path"], match["name"]) for span in spans(page.read_text()) for match in SYMBOL.finditer(span)]
    homes = {path: PACKAGE / path if (PACKAGE / path).exists() else ROOT / path for path, _ in found}
    assert [f"{path}: {name}" for path, name in found if name not in defined(homes[path])] == []


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=page_id)
def test_commands_exist(page):
    assert wrong_commands(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_code_in_pages_takes_what_exists(page):
    lines = "\n".join(line for block in FENCE.findall(page.read_text()) for line in IMPORT.findall(block))
    assert missing(lines) == []


@pytest.mark.parametrize("program", PROGRAMS, ids=page_id)
def test_programs_take_what_exists(program):
    assert missing(program.read_text()) == []


@pytest.mark.parametrize("notebook", EXAMPLES, ids=page_id)
def test_notebooks_take_what_exists(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    assert missing("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")) == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_the_file_tree_of_the_tour_is_complete():
    tree = next(block for block in FENCE.findall((ROOT / "docs" / "tour.md").read_text()) if "src/opendino/" in block)
    listed = set(re.findall(r"^  ([\w.]+/?) ", tree, re.M))
    there = {
        f"{each.name}/" if each.is_dir() else each.name
        for each in PACKAGE.iterdir()
        if each.is_file() or any(each.glob("*.py"))
    }
    assert listed == there - {"__init__.py", "__main__.py", "__pycache__/", "py.typed"}


def test_the_tour_names_every_room():
    tour = (ROOT / "docs" / "tour.md").read_text()
    rooms = [each for each in PACKAGE.iterdir() if (each / "__init__.py").is_file()]
    assert [room.name for room in rooms if f"`{room.name}/" not in tour] == []


def test_the_layers_in_pages_are_those_that_are_checked():
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = "\n".join(next(each for each in contracts if each["type"] == "layers")["layers"])
    for page in ("CONTRIBUTING.md", "docs/decisions/0010-layers.md"):
        assert f"```\n{layers}\n```" in (ROOT / page).read_text(), page


def test_extras_are_listed():
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    listed = re.findall(r"^\| `pip install \"opendino\[(\w+)\]\"` \|", (ROOT / "docs" / "install.md").read_text(), re.M)
    assert sorted(listed) == sorted(extras - {"dev"})


def test_the_checks_find_what_is_wrong():
    page = "See `data/no_such.py` and `engine/optim.py`.\n```\nopendino judge RUN\nopendino eval nothing RUN\n```\n"
    assert [path for path in paths(page) if not exists(path)] == ["data/no_such.py"]
    assert wrong_commands(page) == ["opendino judge", "opendino eval nothing"]
    code = "from opendino.data.draw import draw\nfrom opendino.engine import optim\noptim.no_such()\noptim.clip\n"
    assert missing(code) == ["opendino.data.draw.draw", "optim.no_such"]


def test_the_table_of_augmentations_has_every_setting_in_its_order() -> None:
    from dataclasses import fields

    from opendino.views.settings import AUGMENTATIONS

    page = (ROOT / "docs" / "augmentations.md").read_text(encoding="utf-8")
    rows = {row[1]: row[0] for row in re.finditer(r"^\| `(\w+)` \|.*$", page, re.M)}
    assert [name for name in rows if name in AUGMENTATIONS] == list(AUGMENTATIONS)
    for name, module in AUGMENTATIONS.items():
        assert all(f"`{field.name}`" in rows[name] for field in fields(module.Config)), name
        assert rows[name].endswith("RGB |") == ("only for RGB" in Path(module.__file__).read_text(encoding="utf-8")), (
            name
        )
