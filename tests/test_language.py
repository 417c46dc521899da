"""Plain words: help texts, errors, docstrings, comments and pages use standard terms and American spelling."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "opendino").rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

# Words that make a reader stop, and what to write instead.
FORBIDDEN = {
    r"whatever|whoever|whichever": "name the thing",
    r"in (?:its|their) stead|in place of": "instead of",
    r"anew": "again",
    r"lest": "so that … not",
    r"shall": "is, must or will",
    r"besides": "also",
    r"thereby|hence|whence": "so",
    r"work(?:s|ed|ing)? off": "process, split into micro-batches",
    r"(?:go|goes|going|went|gone) on": "continue",
    r"(?:come|comes|came) round": "repeat",
    r"look(?:s|ed|ing)? after": "monitor, check",
    r"ma(?:kes?|de) of": "say what is computed",
    r"sees? to": "does",
    r"is believed": "is used without a check",
    r"by and large": "roughly",
    r"parted": "sharded",
    r"let go": "release",
    r"(?:un)?heard of": "known",
    r"nobody can say": "say what is not known",
    r"one and all|now and then": "say how often",
}
BRITISH = (
    r"colour|grey|neighbour|behaviour|favour|centred|centring|\bcentres?\b|labelled|labelling|modelling|cancelled|"
    r"(?:normal|optim|initial|visual|recogn|solar|organ|general|summar|serial|quant|standard|synchron|token|random|"
    r"vector|minim|maxim)is(?:e|es|ed|ing|er|ers|ation)\b|analys(?:e|ed|ing)\b|artefact|catalogue|judgement|licence"
)
PATTERN = re.compile(
    "|".join(rf"(?P<w{i}>\b(?:{words})\b)" for i, words in enumerate(FORBIDDEN)) + f"|(?P<british>{BRITISH})", re.I
)


def prose(path: Path) -> list[tuple[int, str]]:
    """What people read of a file: (line, text) of strings and comments of a module, of the text of a page."""
    text = path.read_text()
    if path.suffix == ".md":
        return list(enumerate(text.splitlines(), 1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return [
        (token.start[0] + i, line)
        for token in tokens
        if token.type in kinds
        for i, line in enumerate(token.string.splitlines())
    ]


def found(path: Path) -> list[str]:
    hits = []
    for line, text in prose(path):
        for hit in PATTERN.finditer(text):
            index = (hit.lastgroup or "")[1:]
            advice = [*FORBIDDEN.values()][int(index)] if index.isdecimal() else "American spelling"
            hits.append(f"{path.relative_to(ROOT)}:{line}: '{hit[0]}' ({advice})")
    return hits


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_words(path):
    assert not found(path)


def test_the_check_finds_what_it_forbids(tmp_path, monkeypatch):
    page = tmp_path / "a.md"
    page.write_text("The images are decoded anew,\nwhatever the colour.\n")
    monkeypatch.setitem(found.__globals__, "ROOT", tmp_path)
    assert [hit.split(": ")[1] for hit in found(page)] == [
        "'anew' (again)",
        "'whatever' (name the thing)",
        "'colour' (American spelling)",
    ]


def test_no_file_is_longer_than_400_lines() -> None:
    files = [
        path for folder in ("src", "tests", "benchmarks", "examples", "docs") for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    assert len(files) > 500
    assert not {path.name: lines for path in files if (lines := len(path.read_text().splitlines())) > 400}
