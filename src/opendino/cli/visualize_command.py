"""Draw attention, features, crops or curves: opendino visualize KIND ... [--out FILE]"""

from __future__ import annotations

import inspect
from pathlib import Path

from opendino.cli import Outcome, flags
from opendino.core import registry
from opendino.core.errors import UsageError, UserError, unknown
from opendino.visualize.crops import RunBatches

_KINDS = "opendino.visualize"


def run(args: list[str]) -> Outcome | None:
    """Draw a visualization; each kind has its own flags."""
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
    wants_run = "run" in inspect.signature(module.show).parameters
    report = module.show(config, _run_batches(config.run)) if wants_run else module.show(config)
    return Outcome(report.text, report.fields)


def _run_batches(run: str) -> RunBatches:
    """The batches of a run, for visualizations that show them (`visualize` may not import config and methods)."""
    from opendino import config as configs
    from opendino import resolve, run_images
    from opendino.data.cache import DecodedImages
    from opendino.data.decode import working_area_px
    from opendino.data.loader import Batches
    from opendino.data.readers.decoded_image import RGB

    folder = Path(run).expanduser()
    if not (folder / "config.yaml").is_file():
        raise UserError(f"'{run}' is not a run folder: it has no config.yaml", "Start one with: opendino train DATA")
    config = configs.from_tree(configs.read_tree(folder / "config.yaml"))
    micro_batches = config.optim.grad_accum_steps
    if not isinstance(config.batch, int) or not isinstance(micro_batches, int) or config.steps is None:
        raise UserError(
            f"{folder / 'config.yaml'} still has auto values", "Give the run folder that `opendino train` made"
        )
    spec = configs.views(config)
    images = DecodedImages(resolve.images(config), working_area_px(spec))
    if config.batch > len(images):
        raise UserError(
            f"The run uses {config.batch} images per step, but {config.data} now has {len(images)}",
            "Restore the images",
        )
    answers = registry.answers("opendino.methods", configs.method_name(config))
    student = "the local views" if getattr(config.method, "student_views", "") == "local" else answers["Student sees"]
    batches = Batches(images, spec, config.seed, config.batch, micro_batches)
    names = ("one channel",) if config.channel_mode == "separate" else run_images.channel_names(config) or RGB
    return RunBatches(batches, config.steps, student, answers["Teacher sees"], names)
