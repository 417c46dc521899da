"""List what is available: opendino list methods|backbones|recipes|evals|sources|augmentations"""

from __future__ import annotations

from opendino.cli import Outcome
from opendino.core import registry
from opendino.core.errors import UsageError, unknown

_FOLDERS = {
    "methods": "opendino.methods",
    "recipes": "opendino.recipes",
    "evals": "opendino.evals",
    "sources": "opendino.data.sources",
    "augmentations": "opendino.views.augmentations",
}
_KINDS = sorted([*_FOLDERS, "backbones"])


def run(args: list[str]) -> Outcome | None:
    """List the names of one kind, each with its one-line description."""
    usage = f"usage: opendino list {'|'.join(_KINDS)} [--json]"
    if args in (["-h"], ["--help"]):
        print(usage)
        return None
    if len(args) != 1:
        raise UsageError(f"list takes one kind, not {' '.join(args) or 'nothing'}", usage)
    kind = args[0]
    if kind not in _KINDS:
        raise unknown("kind", kind, _KINDS)
    if kind == "backbones":
        from opendino.models.build import backbone_names

        plugins = {name: registry.summary(registry.BACKBONES, name) for name in registry.names(registry.BACKBONES)}
        found = dict.fromkeys(backbone_names(), "ours") | plugins
        found["any timm name"] = "e.g. resnet50, convnext_tiny, resnet18/3x3"
    else:
        found = {name: registry.summary(_FOLDERS[kind], name) for name in registry.names(_FOLDERS[kind])}
    width = max(map(len, found))
    return Outcome("\n".join(f"{name:<{width}}  {text}" for name, text in found.items()), {kind: found})
