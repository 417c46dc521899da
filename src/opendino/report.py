"""Writes a run's report.html: verdict, scores, curves, attention maps, nearest neighbors, next commands.

One file that needs no network connection.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from opendino import config as configs
from opendino import resolve
from opendino.core import accuracy, atomic_write, distributed, log, metrics_log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.data.metadata import confounders_hint
from opendino.data.sampler import permutation
from opendino.engine.collapse_detection import Verdict, examine
from opendino.features.feature_table import table
from opendino.features.image_stream import Bad, skipped_message
from opendino.features.nearest_neighbors import nearest
from opendino.models.load import Model, load
from opendino.visualize import attention
from opendino.visualize.curves import BUCKETS, thinned
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.image_encoder import ImageEncoder
from opendino.visualize.drawing.line_plots import plot
from opendino.visualize.drawing.tile_grid import Sheet, Tile

NAME = "report.html"
_NUM_GALLERY = 200  # images among which nearest neighbors are searched
_QUERIES, _NEIGHBORS, _THUMB_PX = 6, 6, 120
_NAMES = {
    "teacher": "teacher", "student": "student", "baseline": "on labels alone", "start": "the weights it started from",
    "untrained": "the same network untrained", "pixels": "raw pixels",
}  # fmt: skip
_PLOTS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("loss (nats)", {"loss": "loss"}),
    (
        "entropy of the teacher's output (fraction of ln K)",
        {"entropy_frac": "of an image", "marginal_frac": "of the mean"},
    ),
    ("KL(teacher ‖ student) (nats)", {"kl": "KL"}),
    ("spread (0 is a collapse)", {"feature_spread": "features", "projection_spread": "projections"}),
    ("effective rank of the features", {"effective_rank": "effective rank"}),
    ("learning rate of the head", {"lr": "learning rate"}),
    ("teacher's momentum", {"momentum": "momentum"}),
    ("teacher's temperature", {"teacher_temp": "temperature"}),
    ("gradient norm", {"grad_norm": "before clipping"}),
    ("images per second", {"images_per_second": "images/s"}),
    ("fraction of time", {"data_wait": "waiting for images", "mfu": "MFU"}),
)
_COLUMNS = ("knn", *(name for _, names in _PLOTS for name in names))


def write(run: str | Path) -> Path:
    """Write `report.html` to a run's folder, atomically; possible at any time after the first checkpoint.

    Args:
        run: The folder of a run.

    Returns:
        Path of the page.

    Raises:
        UserError: There is no such run, or it has no model yet.
    """
    folder = Path(run).expanduser()
    if not (folder / "config.yaml").is_file() or not (folder / "metrics.jsonl").is_file():
        raise UserError(f"'{run}' is no run folder: it has no metrics.jsonl", "Start one with: opendino train DATA")
    config = configs.from_tree(configs.read_tree(folder / "config.yaml"))
    rows, columns = (
        metrics_log.sampled(folder / "metrics.jsonl"),
        metrics_log.columns(folder / "metrics.jsonl", _COLUMNS),
    )
    assert config.steps is not None
    steps, model = config.steps, load(folder).to(distributed.device(config.device))
    source = functools.cache(lambda: resolve.images(config))
    sections = [
        _section(lambda: _summary(folder, config, rows, examine(rows, steps))),
        _section(lambda: _scores(rows, steps), "Accuracy and baselines"),
        _section(lambda: f'<div class="plots">{_plots(columns)}</div>', "Curves"),
        _section(lambda: _attention(model, source()), "Attention"),
        _section(lambda: _neighbors(model, source()), "Nearest neighbors"),
        _section(lambda: _commands(folder, config), "Next commands"),
        _section(lambda: f"<pre>{html.escape(configs.dump(config))}</pre>", "Settings"),
    ]
    path = folder / NAME
    atomic_write.write(path, _PAGE.format(title=html.escape(folder.name), style=_STYLE, body="\n".join(sections)))
    return path


def _section(content: Callable[[], str], title: str = "") -> str:
    """A section of the page, or a note why it could not be drawn; an error in it does not affect the other sections."""
    heading = f"<h2>{title}</h2>" if title else ""
    try:
        return heading + content()
    except Exception as error:
        log.warn(f"report: {title or 'the summary'} is missing: {error}")
        return f'{heading}<p class="bad">This section could not be drawn: {html.escape(str(error) or repr(error))}</p>'


def _summary(folder: Path, config: configs.Config, rows: Sequence[dict[str, Any]], verdict: Verdict) -> str:
    done = max((row["step"] for row in rows), default=0)
    good = verdict.name in ("healthy", "too early")
    cure = f"<p><b>What to do:</b> {html.escape(verdict.cure)}</p>" if verdict.cure else ""
    facts = {
        "method": configs.method_name(config), "network": config.backbone, "images": config.data,
        "steps": f"{done:,} of {config.steps:,}", "batch": f"{config.batch}",
        "device": distributed.device(config.device).type,
    }  # fmt: skip
    text = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
    verdict_line = f"<b>{html.escape(verdict.name)}</b>: {html.escape(verdict.evidence)}"
    heading = f"<h1>{html.escape(folder.name)}</h1>"
    return f'{heading}<p class="{"good" if good else "bad"}">{verdict_line}</p>{cure}<table>{text}</table>'


def _scores(rows: Sequence[dict[str, Any]], total_steps: int) -> str:
    """Bar charts of the last evaluation, the network to use first."""
    found = next((row for row in reversed(rows) if "effective_rank" in row), {})
    if found.get("step") == 0:
        return "<p>The run was interrupted before its first evaluation.</p>"
    parts = []
    if found and found["step"] < total_steps:
        parts.append(f"<p>Measured at step {found['step']:,} of {total_steps:,}; the run was not finished.</p>")
    for kind, title in (("knn", "k-NN, top-1 on held-out images"), ("accuracy", "classifier, top-1")):
        bars = [
            f"<tr><th>{html.escape(_name(name))}</th>"
            f'<td><div class="bar" style="width:{3 * found[kind][name]:.0f}px"></div>{text}</td></tr>'
            for name, text in accuracy.shown(found, kind).items()
        ]
        parts += [f"<p>{title}:</p><table>{''.join(bars)}</table>"] if bars else []
    if not parts:
        parts.append(
            "<p>No accuracy without labels. With one folder per class, or with <code>--val</code> and a few labeled "
            "images, it is shown here.</p>"
        )
    if text := accuracy.yardstick(found):
        parts.append(f"<p>{text[0].upper()}{text[1:]}.</p>")
    if "effective_rank" in found:
        parts.append(f"<p>Effective rank of the features: {found['effective_rank']:.1f}.</p>")
    return "".join(parts)


def _name(network: str) -> str:
    return _NAMES.get(network, network)


def _plots(columns: Mapping[str, metrics_log.Column]) -> str:
    knn = {_name(name.partition(".")[2]): column for name, column in columns.items() if name.startswith("knn.")}
    plots = [_plot("k-NN, top-1 (%)", knn)] if knn else []
    for title, names in _PLOTS:
        lines = {text: columns[name] for name, text in names.items() if name in columns}
        if lines:
            plots.append(_plot(title, lines))
    return "".join(plots)


def _plot(title: str, columns: Mapping[str, metrics_log.Column]) -> str:
    lines = {name: (column.steps, column.values) for name, column in columns.items()}
    bands = {}
    for name, column in columns.items():
        if (column.high > column.low).any():
            steps, low, _, high = thinned(column.steps, column.values, BUCKETS, column[2:])
            bands[name] = steps, low, high
    return plot(title, lines, bands=bands)


def _attention(model: Model, source: Source) -> str:
    """Attention maps of four images."""
    images, rows, skipped = _sample_images(source, 4), list[list[Tile | None]](), Bad()
    if not images:
        return "<p>No image could be read.</p>"
    try:
        fitting = [min(image.size) for _, image in images if max(image.size) <= 4 * min(image.size)]
        encoder = ImageEncoder(model, max(model.preprocessing["image_px"], min([240, *fitting])))
        for key, image in images:
            try:
                prepared = encoder.prepare(image)
            except BadImage as error:
                skipped.append((key, str(error)))
                continue
            maps, large = encoder.attention(prepared), _large(prepared)
            overlay = attention.heat(large, maps.mean(0), overlay=True)
            kept = attention.keep_mass(maps.mean(0).flatten(), 0.6).view(maps.shape[1:])
            rows.append(
                [
                    Tile(large, "image"),
                    Tile(overlay, "attention"),
                    Tile(tile_grid.dimmed(large, kept), "60% of the mass"),
                ]
            )
    except UserError as error:
        return f"<p>{html.escape(str(error))}</p>"
    text = f"<p>{html.escape(skipped_message(skipped))}</p>" if skipped else ""
    if not rows:
        return text
    columns = [tile for row in rows for tile in row]
    sheet = Sheet([part for part in (columns[:6], columns[6:]) if part])
    return f'<p>{html.escape(encoder.quantity)}</p>{text}<div class="wide">{sheet.svg()}</div>'


def _neighbors(model: Model, source: Source) -> str:
    """Six images with their nearest neighbors by cosine similarity of features."""
    try:
        found = table(model, source, indices=permutation(len(source), 0, 0)[:_NUM_GALLERY].tolist())
    except UserError as error:
        return f"<p>{html.escape(str(error))}</p>"
    if len(found) < 3:
        return "<p>Too few images to compare.</p>"
    queries = torch.arange(min(_QUERIES, len(found)))
    cosines, places = nearest(found.features, found.features[queries], min(_NEIGHBORS + 1, len(found)))
    rows: list[list[Tile | None]] = []
    for query, near, scores in zip(queries.tolist(), places.tolist(), cosines.tolist(), strict=True):
        # A score below -1 marks an image whose features are all zero.
        others = [(place, score) for place, score in zip(near, scores, strict=True) if place != query and score >= -1]
        others = others[:_NEIGHBORS]
        row = [Tile(_thumb(source, int(found.indices[query])), "query")]
        row += [Tile(_thumb(source, int(found.indices[place])), f"{score:.2f}") for place, score in others]
        rows.append([*row])
    text = f"Nearest by cosine among {len(found):,} of {len(source):,} images, with the cosine similarity above each."
    return f'<p>{text}</p><div class="wide">{Sheet(rows).svg()}</div>'


def _commands(folder: Path, config: configs.Config) -> str:
    run = html.escape(str(folder))
    hint = confounders_hint(str(folder), config.data, config.labels)
    lines = [
        f"opendino resume {run}                     # if it stopped early",
        f"opendino train DATA --init {run}          # on other images, from these weights",
        f"opendino eval knn {run} --train DIR --val DIR",
        f"opendino embed {run} DATA --out vectors.parquet",
        f"opendino visualize attention {run} IMAGE...",
        f"opendino export {run} --to timm --out MODEL",
        f"opendino doctor {run}",
    ]
    python = f'import opendino\n\nvectors = opendino.load("{run}").embed(["a.jpg", "b.jpg"])  # [2, D]'
    batch_effects = f"<p>{html.escape(hint)}</p>" if hint else ""
    return "<pre>{}</pre>{}<p>From Python:</p><pre>{}</pre>".format("\n".join(lines), batch_effects, python)


def _sample_images(source: Source, number: int) -> list[tuple[str, Image.Image]]:
    """Up to `number` readable images with their keys, sampled from the whole source."""
    found: list[tuple[str, Image.Image]] = []
    for index in permutation(len(source), 0, 1)[: 4 * number].tolist():
        if len(found) < number and (image := _read(source, index)):
            found.append((source.key(index), image))
    return found


def _read(source: Source, index: int) -> Image.Image | None:
    try:
        return Image.fromarray(decode(source.read(index)))
    except BadImage:
        return None


def _thumb(source: Source, index: int) -> Image.Image:
    return tile_grid.square(_read(source, index), _THUMB_PX)


def _large(image: Image.Image) -> Image.Image:
    scale = min(1.6 * _THUMB_PX / min(image.size), 6.4 * _THUMB_PX / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { margin-bottom: .3rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; }
th { text-align: left; font-weight: normal; color: #555; padding: .1rem 1.5rem .1rem 0; }
pre { background: #f6f6f6; padding: .8rem; overflow: auto; font-size: 13px; }
.good, .bad { padding: .6rem .9rem; border-left: 6px solid #009e73; background: #eef8f4; }
.bad { border-color: #d55e00; background: #fdf1e8; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; }
.wide svg { width: 100%; height: auto; }
.bar { display: inline-block; height: .8em; background: #0072b2; margin-right: .5em; }
"""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style>
<body>
{body}
</body></html>
"""
