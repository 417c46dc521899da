"""Pages of the site that are not files below docs/, and links between all of them. A hook of mkdocs.yml.

The README and its neighbors, notebooks, the help of the commands and the public names of Python are read where they are,
so that the site repeats nothing. A link to another file of the repository leads to a copy of it below files/.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "opendino"
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "docs/decisions": "decisions/index.md",
    "examples/first_model.ipynb": "tutorials/first_model.md",
    "examples/own_parts.ipynb": "tutorials/own_parts.md",
    "examples/colab.ipynb": "tutorials/colab.md",
}
"""Path in the repository → page."""
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)")
TABLE_IN_LIST = re.compile(r"^(?:  \|.*\n)+", re.M)
"""Rows of a table in a list item; GitHub wants two spaces before them, Python-Markdown four and blank lines around."""
NAMES = {
    "everyday": (
        "Everyday names",
        "What `import opendino` gives, and what these functions return. [From Python](../python.md) shows them in use.",
        ["opendino.embedded_images.EmbeddedImages", "opendino.embedded_images.Hit", "opendino.loading.ImageModel",
         "opendino.models.load.Model", "opendino.engine.run_result.Result", "opendino.sklearn.Embedder",
         "opendino.core.errors.UserError", "opendino.core.errors.UsageError"],
    ),
    "interfaces": (
        "Interfaces",
        "What a method, a network, a source of images or a callback of your own implements, and the values that travel "
        "between the layers. [A method of your own](../own_method.md) uses most of them.",
        ["opendino.core.contracts.Method", "opendino.core.contracts.MethodConfig", "opendino.core.contracts.Backbone",
         "opendino.core.contracts.Source", "opendino.core.types"],
    ),
}  # fmt: skip
"""Page → title, introduction, names in its order."""


def pages() -> dict[str, str]:
    """Markdown of every page that is not a file below docs/, by its path in the site."""
    found = {page: _text(path) for path, page in MOVED.items() if path != "docs/decisions"}
    return found | {"decisions/index.md": _decisions()} | _commands() | _names()


def _text(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".ipynb"):
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    shown = [source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells]
    title, *rest = shown
    return "\n\n".join([title, f"This page is a notebook: [{Path(path).name}](/{path}). A test runs it.", *rest])


def _decisions() -> str:
    titles = {
        path.name: path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for path in sorted((ROOT / "docs/decisions").glob("*.md"))
    }
    rows = [f"- [{title}]({name})" for name, title in titles.items()]
    return "# Decisions\n\nWhat a reader would otherwise undo: what, why, what else was considered.\n\n" + "\n".join(
        rows
    )


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _commands() -> dict[str, str]:
    """One page per verb with the help of its commands, and their list."""
    tables = json.loads((PACKAGE / "cli/flag_tables.json").read_text(encoding="utf-8"))
    full = (PACKAGE / "cli/train_help.txt").read_text(encoding="utf-8")
    found, rows = {}, []
    for path in sorted((PACKAGE / "cli").glob("*_command.py")):
        verb = path.stem.removesuffix("_command")
        summary, _, usage = _docstring(path).partition("\n")[0].partition(f" opendino {verb}")
        summary = summary.removesuffix(":")
        parts = [f"# opendino {verb}", summary + "." * (summary[-1] != "?"), _fenced(f"opendino {verb}{usage}")]
        for name, table in tables.items():
            if name == verb:
                parts[-1] = _fenced("\n".join(table["help"]))
            elif name.startswith(f"{verb} "):
                parts += [f"## opendino {name}", _fenced("\n".join(table["help"]))]
        if verb == "train":
            parts += ["## Every setting", "`opendino train --help-all`", _fenced(full)]
        found[f"commands/{verb}.md"] = "\n\n".join(parts)
        rows.append(f"| [opendino {verb}]({verb}.md) | {summary} |")
    head = "# Commands\n\nWhat `opendino VERB --help` prints.\n\n| command | what it does |\n|---|---|\n"
    return {"commands/index.md": head + "\n".join(rows)} | found


def _fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def _names() -> dict[str, str]:
    """The public names of Python: those of the package itself, of the evaluations, and of the interfaces."""
    module = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    public = next(
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    found = {}
    for page, (title, introduction, names) in NAMES.items():
        own = [f"opendino.{name}" for name in public if name != "evaluate"] if page == "everyday" else []
        found[f"reference/{page}.md"] = "\n\n".join(
            [f"# {title}", introduction, *(f"::: {each}" for each in [*own, *names])]
        )
    parts = ["# Evaluations", _docstring(PACKAGE / "evaluate.py")]
    for path in sorted((PACKAGE / "evals").glob("[!_]*.py")):
        parts += [
            f"## opendino.evaluate.{path.stem}", _docstring(path).partition("\n")[0],
            f"::: opendino.evals.{path.stem}.Config\n    options: {{show_root_heading: false, show_root_toc_entry: false}}",
        ]  # fmt: skip
    return found | {"reference/evaluations.md": "\n\n".join(parts)}


def relinked(page: str, text: str) -> tuple[str, dict[str, Path]]:
    """Let the links of a page lead to pages of the site, and to copies of other files of the repository.

    Args:
        page: Path of the page in the site.
        text: Its Markdown, with links relative to where it is in the repository, or to the root if they begin with "/".

    Returns:
        The Markdown with other links; and the files that the site needs a copy of, by their path in the site.
    """
    home = next((path for path, moved in MOVED.items() if moved == page and (ROOT / path).is_file()), f"docs/{page}")
    copies = {}

    def replaced(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        target = link[1:] if link[0] == "/" else posixpath.normpath(posixpath.join(posixpath.dirname(home), link))
        if target in MOVED and link[0] != "/":
            place = MOVED[target]
        elif target.startswith("docs/"):
            place = target.removeprefix("docs/")
        elif (ROOT / target).is_file():
            place = f"files/{target}"
            copies[place] = ROOT / target
        else:  # the strict build names it
            return match[0]
        return f"]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(replaced, text), copies


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, and the files of the repository that pages link to."""
    from mkdocs.structure.files import File

    for page, text in pages().items():
        files.append(File.generated(config, page, content=text))
    copies = [relinked(page.src_uri, page.content_string)[1] for page in files.documentation_pages()]
    for place, path in {place: path for each in copies for place, path in each.items()}.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let the links of a page lead to pages of the site, and set tables in lists as Python-Markdown reads them."""
    markdown = TABLE_IN_LIST.sub(lambda match: f"\n{match[0].replace('  |', '    |')}\n", markdown)
    return relinked(page.file.src_uri, markdown)[0]
