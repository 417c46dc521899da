"""Draw attention, features, crops or curves: opendino visualize KIND ... [--out FILE]"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opendino.cli import Outcome, flag_table, flags
from opendino.core import registry
from opendino.core.errors import UsageError, UserError, unknown

if TYPE_CHECKING:
    from opendino.config import Config
    from opendino.core.contracts import Source
    from opendino.core.types import Report
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
    prog, summary = f"opendino visualize {args[0]}", registry.summary(_KINDS, args[0])
    if args[0] == "crops":
        report = _crops(module, args[1:], prog, summary)
    else:
        report = module.show(flags.parse(module.Config, args[1:], prog, summary))
    return Outcome(report.text, report.fields)


def _crops(module: Any, args: list[str], prog: str, summary: str) -> Report:
    """The crops of a run; or of images before training, with the settings that flags of `opendino train` give."""
    from opendino.cli import train_command
    from opendino.visualize.drawing import tile_grid

    table = flags.describe(module.Config, prog)
    rest, chosen = flag_table.take(flags.with_booleans(args, table), *(name.removeprefix("--") for name in table.flags))
    own = [f"--{name}={value}" for name, value in chosen.items() if value is not None]
    if not rest or {"-h", "--help"} & set(rest):
        flags.parse(module.Config, rest, prog, summary)  # prints the help, or says what is missing
    settings = train_command.parse(rest)
    config = flags.parse(module.Config, [settings.data, *own], prog, summary)
    tile_grid.out(config.out, tile_grid.PICTURES)  # before seconds of work
    if not (Path(settings.data).expanduser() / "config.yaml").is_file():
        return module.show(config, _of_data(settings))
    if len(rest) > 1:
        raise UsageError(f"'{settings.data}' is a run, which has its own settings", "Give it without flags of train")
    return module.show(config, _of_run(settings.data))


def _of_run(run: str) -> RunBatches:
    """The batches of a run (`visualize` may not import config and methods)."""
    from opendino import config as configs
    from opendino import resolve

    path = Path(run).expanduser() / "config.yaml"
    config = configs.from_tree(configs.read_tree(path))
    micro_batches = config.optim.grad_accum_steps
    if not isinstance(config.batch, int) or not isinstance(micro_batches, int) or config.steps is None:
        raise UserError(f"{path} still has auto values", "Give the run folder that `opendino train` made")
    source = resolve.images(config)
    if config.batch > len(source):
        raise UserError(
            f"The run uses {config.batch} images per step, but {config.data} now has {len(source)}",
            "Restore the images",
        )
    return _batches(config, source, config.batch, micro_batches, config.steps)


def _of_data(config: Config) -> RunBatches:
    """The batches that a run with these settings would begin with; nothing that the views do not need is measured."""
    from opendino import resolve
    from opendino.core import distributed, log

    length = {"minutes": None, "epochs": "auto"} if config.minutes else {}
    unmeasured = {"precision": "float32", "compile": False, "threads": 1}
    config = replace(config, **length, **unmeasured, optim=replace(config.optim, grad_accum_steps=1))
    with log.muted():
        resolved, source = resolve.resolve_config(config, distributed.device(config.device))
    return _batches(resolved, source, resolved.batch, 1, resolved.steps)


def _batches(config: Config, source: Source, batch: int, micro_batches: int, steps: int) -> RunBatches:
    from opendino import config as configs
    from opendino import run_images
    from opendino.data.cache import DecodedImages
    from opendino.data.decode import working_area_px
    from opendino.data.loader import Batches
    from opendino.data.readers.decoded_image import RGB
    from opendino.visualize.crops import RunBatches

    spec = configs.views(config)
    answers = registry.answers("opendino.methods", configs.method_name(config))
    student = "the local views" if getattr(config.method, "student_views", "") == "local" else answers["Student sees"]
    batches = Batches(DecodedImages(source, working_area_px(spec)), spec, config.seed, batch, micro_batches)
    names = ("one channel",) if config.channel_mode == "separate" else run_images.channel_names(config) or RGB
    return RunBatches(batches, steps, student, answers["Teacher sees"], names)
