"""Writes docs/methods.md from the methods themselves: python docs/methods.py [--check]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from opendino.core import registry
from opendino.core.types import Facts, ViewGroup
from opendino.models.build import backbone
from opendino.views.settings import resolved

PACKAGE, PAGE = "opendino.methods", Path(__file__).with_name("methods.md")
RESULTS = Path(__file__).parents[1] / "benchmarks/results"
COMMANDS = {
    "mean_teacher": "opendino train ~/photos --method mean_teacher --labels labels.csv --val ~/photos-val",
    "supervised": "opendino finetune runs/photos ~/photos --labels labels.csv",
    "distill": "opendino train ~/photos --method distill --method.teacher runs/big --backbone vit_tiny/16",
}
IMAGENET = Facts(1_281_167, 375, 1000, 1024, 125_100, 1251, "cuda")


def page() -> str:
    """The whole page."""
    names = sorted(registry.names(PACKAGE), key=lambda name: (name != "dino", name))
    answers = {name: registry.answers(PACKAGE, name) for name in names}
    facts = {name: measured(name) for name in names}
    rows = [
        *((question, [answers[name][question] for name in names]) for question in registry.METHOD_QUESTIONS),
        *((what, [facts[name][what] for name in names]) for what in facts[names[0]]),
    ]
    return "\n".join(
        [
            "# Methods",
            "",
            "Each trains the same networks on the same images and views, with another objective. This page is made by",
            "`make docs` from the methods' own files. How to write one: [own_method.md](own_method.md).",
            "",
            f"| | {' | '.join(f'[{name}](../src/opendino/methods/{name}.py)' for name in names)} |",
            f"|---|{'---|' * len(names)}",
            *(f"| {what} | {' | '.join(cells)} |" for what, cells in rows),
            "",
            "Views and networks are the defaults for photographs on a GPU.",
            "",
            *comparison(),
            "One command each:",
            "",
            "```",
            *(COMMANDS.get(name, f"opendino train ~/photos --method {name}") for name in names),
            "```",
            "",
            "On images drawn on the spot, without data, in minutes on a CPU:",
            "",
            "```",
            "opendino demo --out runs/demo",
            "opendino demo --method byol",
            "opendino demo --method mean_teacher --labels 10%",
            "opendino demo --method distill --method.teacher runs/demo --backbone-options width 8",
            "```",
            "",
            *(f"- **{name}**: {registry.summary(PACKAGE, name)}" for name in names),
            "",
        ]
    )


def comparison() -> list[str]:
    """The newest result of benchmarks/methods.py as a table; nothing if there is none."""
    files = sorted(RESULTS.glob("methods_*.json"), key=lambda path: path.stem.rpartition("_")[2])
    if not files:
        return []
    found = json.loads(files[-1].read_text(encoding="utf-8"))
    lines = [
        "## Which one for my images?",
        "",
        f"Small networks and views, the same images seen by all, one learning rate per network and none tuned per "
        f"method; mean ± standard deviation over seeds, k-NN and linear accuracy in percent, "
        f"{found['machine']} ([file](../benchmarks/results/{files[-1].name})):",
        "",
        "```",
        found["command"],
        "```",
        "",
        "| set | network | method | k-NN | linear | rank | processor seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if f"| {row['set']} | {row['network']} |" not in lines[-1]:  # the first of this set and network
            lines.append(f"| {row['set']} | {row['network']} | untrained | {with_spread(row['untrained'])} | | | |")
        cells = [with_spread(row[measure]) for measure in ("knn", "linear", "rank", "seconds")]
        lines.append(f"| {row['set']} | {row['network']} | {row['method']} | {' | '.join(cells)} |")
    return [*lines, ""]


def with_spread(value: dict[str, float | None]) -> str:
    """e.g. "71.3 ± 0.8"."""
    spread = "" if value["stdev"] is None else f" ± {value['stdev']:.1f}"
    return f"{value['mean']:.1f}{spread}"


def measured(name: str) -> dict[str, str]:
    """What the code itself says: views drawn, networks kept and their parts."""
    module = registry.load(PACKAGE, name)
    config, _ = module.Config().resolved(IMAGENET)
    spec = module.views(config, resolved(module.VIEWS, IMAGENET)[0])
    found = {"Views": " + ".join(described(group) for group in spec.groups if group.views)}
    found["Labels in a batch"] = "all" if spec.labeled_frac == 1 else f"{spec.labeled_frac:.0%} at least" if spec.labeled_frac else "none needed"
    if name == "distill":  # needs a trained teacher to be built
        return found | {"Parts of the student": "backbone, head or classifier", "A run leaves": "student"}
    method = module.build(config, lambda role: backbone("vit/16", embed_dim=24, depth=1, num_heads=2))
    extra = [part for part in method.student if method.teacher and part not in method.teacher]
    parts = ", ".join(f"{part} (the student alone)" if part in extra else part for part in method.student)
    return found | {"Parts of the student": parts, "A run leaves": ", ".join(method.product)}


def described(group: ViewGroup) -> str:
    """e.g. "2 × 224 px"."""
    return f"{len(group.views)} × {group.short_px} px"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(PAGE.read_text(encoding="utf-8") != page() and f"{PAGE} lags behind the methods: make docs")
    PAGE.write_text(page(), encoding="utf-8")
