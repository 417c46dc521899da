"""Pictures of a model or a run: opendino visualize KIND ... [--out FILE]"""

from __future__ import annotations

import inspect
from pathlib import Path

from opendino.cli import Outcome, flags
from opendino.core import registry
from opendino.core.errors import UsageError, UserError, unknown
from opendino.visualize.crops import Seen

_KINDS = "opendino.visualize"


def run(args: list[str]) -> Outcome | None:
    """Draw; every kind of picture has its own flags."""
    names = registry.names(_KINDS)
    usage = f"usage: opendino visualize KIND ... [flags] [--json]; KIND is one of {', '.join(names)}"
    if args in (["-h"], ["--help"]):
        lines = [f"  {name:<15} {registry.summary(_KINDS, name)}" for name in names]
        print("\n".join([usage, "", *lines, "", "`opendino visualize KIND --help` shows its flags."]))
        return None
    if not args or args[0].startswith("-"):
        raise UsageError(f"visualize takes the name of a kind of picture, not {args[0] if args else 'nothing'}", usage)
    if args[0] not in names:
        raise unknown("kind of picture", args[0], names)
    module = registry.load(_KINDS, args[0])
    config = flags.parse(module.Config, args[1:], f"opendino visualize {args[0]}", registry.summary(_KINDS, args[0]))
    wants_run = "seen" in inspect.signature(module.show).parameters
    report = module.show(config, _seen(config.run)) if wants_run else module.show(config)
    return Outcome(report.text, report.fields)


def _seen(run: str) -> Seen:
    """What a run trains on: pictures know nothing of settings and methods."""
    from opendino import config as configs
    from opendino import resolve
    from opendino.data.cache import DecodedImages
    from opendino.data.decode import working_area_px
    from opendino.data.loader import Batches

    folder = Path(run).expanduser()
    if not (folder / "config.yaml").is_file():
        raise UserError(f"'{run}' is no run folder: it has no config.yaml", "Start one with: opendino train DATA")
    config = configs.from_tree(configs.read_tree(folder / "config.yaml"))
    parts = config.optim.grad_accum_steps
    if not isinstance(config.batch, int) or not isinstance(parts, int) or config.steps is None:
        raise UserError(f"{folder / 'config.yaml'} still has values to be decided", "Is it a run's own?")
    spec = configs.method_module(config).views(config.method)
    images = DecodedImages(resolve.images(config), working_area_px(spec))
    if config.batch > len(images):
        raise UserError(f"The run has {config.batch} images a step, and {config.data} holds {len(images)} now")
    told = registry.answers("opendino.methods", configs.method_name(config))
    student = "the local views" if getattr(config.method, "student_views", "") == "local" else told["Student sees"]
    batches = Batches(images, spec, config.seed, config.batch, parts)
    return Seen(batches, config.steps, student, told["Teacher sees"])
