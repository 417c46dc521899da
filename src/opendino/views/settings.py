"""Settings of views: the augmentations of a view, the groups of views of a run, and their values by dotted names."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from opendino.core import auto_values, registry
from opendino.core.errors import UsageError, UserError, nearest
from opendino.core.ranges import Checked, PixelSize, convert, hints, shown
from opendino.core.types import BlockMasks, Facts, ViewGroup, ViewSpec

# Not tuple[PixelSize, PixelSize]: in a union with a number, msgspec 0.22 crashes.
_Sides = Annotated[tuple[PixelSize, ...], Meta(min_length=2, max_length=2)]


def _augmentation(name: str) -> ModuleType:
    module = registry.load(registry.AUGMENTATIONS, name)
    if where := registry.origin(registry.AUGMENTATIONS, name):
        _check(name, module, where)
    return module


def _check(name: str, module: ModuleType, where: str) -> None:
    """Check an augmentation that is not ours.

    Raises:
        UserError: It lacks something, or is on by default, which would change every run.
    """
    missing = [part for part in ("ORDER", "Config", "sample", "title") if not hasattr(module, part)]
    if missing or not (hasattr(module, "apply") or hasattr(module, "place")):
        raise UserError(
            f"The augmentation '{name}' from {where} has no {missing[0] if missing else 'apply'}",
            "Install a version that has it; see opendino/views/augmentations/__init__.py",
        )
    if getattr(module.Config(), "p", None) != 0:
        raise UserError(
            f"The augmentation '{name}' from {where} is on by default",
            "Install a version whose Config has the field p with the default 0",
        )


def _order(item: tuple[str, ModuleType]) -> tuple[int, str]:
    return item[1].ORDER, item[0]


_MODULES = [(name, _augmentation(name)) for name in registry.names(registry.AUGMENTATIONS)]
AUGMENTATIONS: dict[str, ModuleType] = dict(sorted(_MODULES, key=_order))
"""Name → module, in the order in which they are applied."""

if TYPE_CHECKING:

    @dataclass(frozen=True)
    class View(Checked):
        """The augmentations of one view: a field per module of `augmentations`, with its Config."""

        def __init__(self, **augmentations: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

else:
    View = make_dataclass(
        "View",
        [(name, module.Config, field(default=module.Config())) for name, module in AUGMENTATIONS.items()],
        bases=(Checked,),
        frozen=True,
        namespace={"__module__": __name__, "__doc__": "The augmentations of one view, each with its Config."},
    )


@dataclass(frozen=True)
class GlobalView(View):
    """The augmentations of the first global view, and the size of all global views."""

    size: PixelSize | _Sides | Literal["auto"] = "auto"
    """Side of the views in pixels, or height and width. auto: from the image size and the device."""


@dataclass(frozen=True)
class LocalViews(GlobalView):
    """The augmentations of the local views, their size and number."""

    number: Annotated[int, Meta(ge=0, le=256)] | Literal["auto"] = "auto"
    """Number of views per image; fewer are faster and use less memory."""


def add(name: str, module: ModuleType) -> None:
    """Add an augmentation given in Python, for this process.

    Raises:
        UsageError: The name is one of ours or of a plug-in.
        UserError: The module lacks something.
    """
    _check(name, module, "Python")
    registry.add(registry.AUGMENTATIONS, name, module)
    modules = AUGMENTATIONS | {name: module}
    AUGMENTATIONS.clear()
    AUGMENTATIONS.update(sorted(modules.items(), key=_order))


def with_added(view: View) -> View:
    """The same view, with the augmentations that were added after its class was made."""
    kinds = hints(type(view))
    added = tuple((name, module.Config) for name, module in AUGMENTATIONS.items() if name not in kinds)
    return _extended(type(view), added)(**{name: getattr(view, name) for name in kinds}) if added else view


@functools.cache
def _extended(kind: type[View], added: tuple[tuple[str, Any], ...]) -> type[View]:
    more = [(name, config, field(default=config())) for name, config in added]
    return make_dataclass(kind.__name__, more, bases=(kind,), frozen=True, namespace={"__module__": __name__})


def active(view: View, augmentation: str) -> bool:
    """Whether a view has an augmentation: its probability is not 0. Every view has the crop."""
    if augmentation not in hints(type(view)):  # added later
        return False
    return getattr(getattr(view, augmentation), "p", 1) != 0


def view(values: Mapping[str, Any]) -> View:
    """A view by names of its settings, e.g. `view({"crop.scale": (0.25, 1.0), "blur.p": 0.5})`.

    Args:
        values: "augmentation.setting" → value; the others have the defaults of the augmentations.

    Raises:
        UsageError: A name is unknown.
        OutOfRange: A value is not allowed.
    """
    return changed({"view": View()}, {f"view.{name}": value for name, value in values.items()})["view"]


def changed(views: Mapping[str, View], values: Mapping[str, Any]) -> dict[str, View]:
    """Views with other values, by the names of their flags, e.g. `changed(dino.VIEWS, {"local.number": 4})`.

    Args:
        views: Name of a group → its settings.
        values: "group.augmentation.setting" → value; the group "all" stands for every group.

    Raises:
        UsageError: A name is unknown.
        OutOfRange: A value is not allowed.
    """
    found = dict(views)
    for name, value in values.items():
        group, *path = name.split(".")
        if group not in (*found, "all"):
            raise UsageError(f"There are no views {group!r}", f"Choose from {', '.join([*found, 'all'])}")
        for each in found if group == "all" else (group,):
            found[each] = _with(found[each], path, value, f"views.{name}")
    return found


def _with(config: Any, path: list[str], value: Any, name: str) -> Any:
    kinds = hints(type(config)) if hasattr(config, "__dataclass_fields__") else {}
    if not path or path[0] not in kinds:
        raise UsageError(f"There is no setting {name}", nearest(path[0] if path else "", kinds))
    value = _with(getattr(config, path[0]), path[1:], value, name) if path[1:] else convert(value, kinds[path[0]], name)
    return replace(config, **{path[0]: value})


def to_tree(views: Mapping[str, View]) -> dict[str, Any]:
    """Plain values. Of the augmentations of other packages only those that differ from their defaults, with "from"."""
    tree = msgspec.to_builtins(dict(views))
    for name, module in AUGMENTATIONS.items():
        if where := registry.origin(registry.AUGMENTATIONS, name):
            for group, settings in views.items():
                if name not in tree[group]:
                    continue
                if getattr(settings, name) == module.Config():
                    del tree[group][name]
                else:
                    tree[group][name]["from"] = where
    return tree


def without_origins(group: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of one group, without the "from" of `to_tree`.

    Raises:
        UserError: An augmentation is of a package that is not installed.
    """
    found = dict(group)
    for name, settings in group.items():
        if isinstance(settings, dict) and (where := settings.get("from")) is not None:
            if name not in AUGMENTATIONS:
                raise registry.not_here("augmentation", name, where)
            found[name] = {key: value for key, value in settings.items() if key != "from"}
    return found


def complete(defaults: Mapping[str, View], given: Mapping[str, Any]) -> dict[str, View]:
    """The settings of every group of views of a method: those that are given, and its defaults.

    Raises:
        UsageError: The method has no such group, or its settings are of another type.
    """
    defaults = {name: with_added(view) for name, view in defaults.items()}
    given = {name: with_added(view) if isinstance(view, View) else view for name, view in given.items()}
    for name, view in given.items():
        if name not in defaults:
            raise UsageError(
                f"The method has no views {shown(name)}",
                f"Choose from {', '.join(defaults)}; or use views={{}}, the method's own",
            )
        if type(view) is not type(defaults[name]):
            raise UsageError(f"views.{name} is {shown(view)}", "Use views.settings.changed(METHOD.VIEWS, {...})")
    return defaults | given


def global_and_local(views: Mapping[str, Any], masks: BlockMasks | None = None) -> ViewSpec:
    """The multi-crop of DINO: two global views ("global", "second") and `local.number` local ones.

    Args:
        views: Settings of the groups, without "auto".
        masks: Request for masks of patches of the global views.
    """
    first, second, local = views["global"], views["second"], views["local"]
    assert "auto" not in (first.size, local.size, local.number)
    return ViewSpec(
        (
            ViewGroup("global", first.size, (first, second), masks),
            ViewGroup("local", local.size, (local,) * local.number),
        )
    )


def resolved(views: Mapping[str, View], facts: Facts) -> tuple[dict[str, View], list[str]]:
    """Replace every "auto" by a value.

    Returns:
        The new views, and the reasons for each change, one line each.
    """
    found = {name: rule for name, rule in _rules(views, facts).items() if _value(views, name) == "auto"}
    new = changed(views, {name: value for name, (value, _) in found.items()})
    used = {name: rule for name, rule in found.items() if _used(new, name)}
    return new, auto_values.reasons(_for_all(used, views))


def _used(views: Mapping[str, View], name: str) -> bool:
    """Whether a setting has an effect: its augmentation is active, or it is what turns that off."""
    group, augmentation, *field = name.split(".")
    if [augmentation, *field] == ["crop", "scale"] and _value(views, f"{group}.crop.fixed"):
        return False  # crops are cut without resizing
    return not field or field == ["p"] or active(views[group], augmentation)


def _for_all(found: Mapping[str, tuple[Any, str]], views: Mapping[str, View]) -> dict[str, tuple[Any, str]]:
    """The same rules, with one "all.NAME" instead of one for each group where all are equal."""
    merged: dict[str, tuple[Any, str]] = {}
    for name, rule in found.items():
        _, _, rest = name.partition(".")
        same = all(found.get(f"{group}.{rest}") == rule for group in views)
        merged[f"all.{rest}" if same else name] = rule
    return merged


def _rules(views: Mapping[str, View], facts: Facts) -> dict[str, tuple[Any, str]]:
    """Name of a setting → its value where it is "auto", and why."""
    small, patch = facts.convolutional, facts.patch_px
    large_scale, small_scale, why_scale = auto_values.scales(facts)
    colors, why_colors = auto_values.colors(facts)
    blurs, why = ((0.2, 0.1, 0.1), "as in the demo") if small else ((1.0, 0.1, 0.5), "as in the paper")
    rules: dict[str, tuple[Any, str]] = {"global.size": auto_values.size_px(facts)}
    size = _value(views, "global.size")
    size = rules["global.size"][0] if size == "auto" else size
    sides = [size] if isinstance(size, int) else list(size)
    if small:
        sides, why_size = [side // 2 for side in sides], "half of the global size, convolutional network"
    else:
        sides = [max(patch, round(side * 96 / 224 / patch) * patch) for side in sides]
        why_size = "96/224 of the global size, as in the paper"
    rules["local.size"] = sides[0] if len(sides) == 1 else tuple(sides), why_size
    rules["local.number"] = 4 if small else 6, why
    for group, blur in zip(("global", "second", "local"), blurs, strict=True):
        rules[f"{group}.crop.scale"] = small_scale if group == "local" else large_scale, why_scale
        rules[f"{group}.blur.p"] = blur, why
        rules |= {f"{group}.{name}": (strength, why_colors) for name, strength in colors.items()}
    return {name: rule for name, rule in rules.items() if name.partition(".")[0] in views}


def _value(views: Mapping[str, View], name: str) -> Any:
    group, *path = name.split(".")
    value: Any = views[group]
    for part in path:
        value = getattr(value, part, None)  # an augmentation that the view does not have
    return value
