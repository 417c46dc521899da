"""Writes docs/methods.md from the methods themselves: python docs/methods.py [--check]"""

from __future__ import annotations

import sys
from pathlib import Path

from opendino.core import registry
from opendino.core.types import Facts, ViewGroup
from opendino.models.build import backbone
from opendino.views.settings import resolved

PACKAGE, PAGE = "opendino.methods", Path(__file__).with_name("methods.md")
COMMANDS = {
    "mean_teacher": "opendino train ~/photos --method mean_teacher --labels labels.csv --val ~/photos-val",
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
            "# Four methods on one frame",
            "",
            "A student that learns by gradients, a teacher that does not, and what passes between them. This page is made",
            "by `make docs` from the methods' own files; a test fails where it lags behind them.",
            "",
            f"| | {' | '.join(f'[{name}](../src/opendino/methods/{name}.py)' for name in names)} |",
            f"|---|{'---|' * len(names)}",
            *(f"| {what} | {' | '.join(cells)} |" for what, cells in rows),
            "",
            "Views and networks are the defaults for photographs on a GPU.",
            "",
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


def measured(name: str) -> dict[str, str]:
    """What the code itself says: views drawn, networks kept and their parts."""
    module = registry.load(PACKAGE, name)
    config, _ = module.Config().resolved(IMAGENET)
    spec = module.views(config, resolved(module.VIEWS, IMAGENET)[0])
    found = {"Views": " + ".join(described(group) for group in spec.groups if group.views)}
    found["Labels in a batch"] = f"{spec.labeled_frac:.0%} at least" if spec.labeled_frac else "none needed"
    if name == "distill":  # needs a trained teacher to be built
        return found | {"Parts of the student": "backbone, head or classifier", "A run leaves": "student"}
    method = module.build(config, lambda role: backbone("vit/16", embed_dim=24, depth=1, num_heads=2))
    extra = [part for part in method.student if part not in method.teacher]
    parts = ", ".join(f"{part} (the student alone)" if part in extra else part for part in method.student)
    return found | {"Parts of the student": parts, "A run leaves": ", ".join(method.product)}


def described(group: ViewGroup) -> str:
    """e.g. "2 × 224 px"."""
    return f"{len(group.views)} × {group.short_px} px"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(PAGE.read_text(encoding="utf-8") != page() and f"{PAGE} lags behind the methods: make docs")
    PAGE.write_text(page(), encoding="utf-8")
