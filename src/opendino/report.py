"""Writes a run's report.html: verdict, scores, curves, attention maps, nearest neighbors, a map, next commands.

One file that needs no network connection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from opendino import config as configs
from opendino.core import accuracy, atomic_write, distributed, log, metrics_log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.data.metadata import confounders_hint
from opendino.data.sampler import permutation
from opendino.embeddings.table_groups import CLUSTER, folder_names, group_names
from opendino.engine import verdict
from opendino.features.feature_table import FeatureTable, table
from opendino.features.image_stream import Bad, skipped_message
from opendino.features.nearest_neighbors import directed, nearest
from opendino.features.projection import project
from opendino.models.load import Model, load
from opendino.visualize import attention
from opendino.visualize.drawing import line_charts, panels, scatter_map, style, templates, tile_grid
from opendino.visualize.drawing.image_encoder import ImageEncoder
from opendino.visualize.drawing.tile_grid import Sheet, Tile

NAME = "report.html"
_NUM_GALLERY = 200  # images among which nearest neighbors are searched, and of which the map consists
_QUERIES, _NEIGHBORS, _THUMB_PX = 6, 6, 120
Content = dict[str, Any]
"""The values that a part of pages/report.html shows."""


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
    rows, columns = metrics_log.sampled(folder / "metrics.jsonl"), panels.of_file(folder / "metrics.jsonl")
    assert config.steps is not None
    steps, model = config.steps, load(folder).to(distributed.device(config.device))
    source = functools.cache(lambda: model.reading.open_images(config.data))
    gallery = functools.cache(lambda: _gallery(model, source()))
    sections = [
        _section("", "summary", lambda: _summary(folder, config, rows)),
        _section("Accuracy and baselines", "scores", lambda: _scores(rows, steps)),
        _section("Curves", "picture", lambda: _curves(folder.name, columns)),
        _section("Attention", "picture", lambda: _attention(model, source())),
        _section("Nearest neighbors", "picture", lambda: _neighbors(model, source(), gallery())),
        _section("Map", "picture", lambda: _map(model, source(), gallery())),
        _section(
            "Next commands",
            "commands",
            lambda: {"run": folder, "batch_effects": confounders_hint(str(folder), config.data, config.labels)},
        ),
        _section("Settings", "settings", lambda: {"yaml": configs.dump(config)}),
    ]
    path = folder / NAME
    atomic_write.write(path, templates.render("report.html", title=folder.name, sections=sections))
    return path


def _section(title: str, kind: str, content: Callable[[], Content]) -> Content:
    """A section of the page, or why it could not be drawn; an error in it does not affect the other sections."""
    section: Content = {"title": title, "kind": kind, "content": {}, "error": ""}
    try:
        section["content"] = content()
    except Exception as error:
        log.warn(f"report: {title or 'the summary'} is missing: {error}")
        section["error"] = str(error) or repr(error)
    return section


def _summary(folder: Path, config: configs.Config, rows: Sequence[dict[str, Any]]) -> Content:
    assert config.steps is not None
    found = verdict.of_rows(rows, config.steps, config.method.cures)
    done = max((row["step"] for row in rows), default=0)
    facts = {
        "method": configs.method_name(config), "network": config.backbone, "images": config.data,
        "steps": f"{done:,} of {config.steps:,}", "batch": config.batch,
        "device": distributed.device(config.device).type,
    }  # fmt: skip
    return {"name": folder.name, "verdict": found, "good": found.name == verdict.LEARNED, "facts": facts}


def _scores(rows: Sequence[dict[str, Any]], total_steps: int) -> Content:
    """The last evaluation."""
    found = next((row for row in reversed(rows) if "effective_rank" in row), {})
    charts = {
        f"{accuracy.knn_title(found)}, top-1 on held-out images:": panels.bars(found),
        "Classifier, top-1:": panels.bars(found, "accuracy"),
    }
    notes = [f"{text[0].upper()}{text[1:]}"] if (text := accuracy.baseline_text(found)) else []
    if "effective_rank" in found:
        notes.append(f"Effective rank of the features: {found['effective_rank']:.1f}")
    return {
        "interrupted": found.get("step") == 0,
        "step": f"{found['step']:,} of {total_steps:,}" if found and found["step"] < total_steps else "",
        "charts": {title: bars for title, bars in charts.items() if bars},
        "notes": notes,
    }


def _curves(name: str, columns: Mapping[str, metrics_log.Column]) -> Content:
    charts = panels.charts({name: columns})
    if not charts:
        return _note("Nothing has been measured yet.")
    notes = [f"{chart.panel.title}: {chart.panel.caption}" for chart in charts if chart.panel.caption]
    return {"notes": notes, "svg": style.svg(line_charts.figure(charts))}


def _attention(model: Model, source: Source) -> Content:
    """Attention maps of four images."""
    images, tiles, skipped = _sample_images(source, 4), list[Tile | None](), Bad()
    if not images:
        return _note("No image could be read.")
    try:
        sides = [pixels.shape[:2] for _, pixels in images]
        fitting = [min(each) for each in sides if max(each) <= 4 * min(each)]
        encoder = ImageEncoder(model, max(model.preprocessing["image_px"], min([240, *fitting])))
        for key, pixels in images:
            try:
                prepared = encoder.prepare(pixels)
            except BadImage as error:
                skipped.append((key, str(error)))
                continue
            maps, large = encoder.attention(prepared), _large(encoder.picture(prepared))
            overlay = attention.heat(large, maps.mean(0), overlay=True)
            kept = attention.keep_mass(maps.mean(0).flatten(), 0.6).view(maps.shape[1:])
            dimmed = tile_grid.dimmed(large, kept)
            tiles += [Tile(large, "image"), Tile(overlay, "attention"), Tile(dimmed, "60% of attention")]
    except UserError as error:
        return _note(str(error))
    notes = [skipped_message(skipped)] if skipped else []
    if not tiles:
        return _note(*notes)
    sheet = Sheet([row for row in (tiles[:6], tiles[6:]) if row])
    return {"notes": [encoder.quantity, *notes], "svg": sheet.svg()}


def _gallery(model: Model, source: Source) -> FeatureTable:
    """Features of some images, spread over the source.

    Raises:
        UserError: No image can be read.
    """
    return table(model, source, indices=permutation(len(source), 0, 0)[:_NUM_GALLERY].tolist())


def _neighbors(model: Model, source: Source, found: FeatureTable) -> Content:
    """Six images with their nearest neighbors by cosine similarity of features."""
    if len(found) < 3:
        return _note("Too few images to compare.")
    queries = torch.arange(min(_QUERIES, len(found)))
    cosines, places = nearest(found.features, found.features[queries], min(_NEIGHBORS + 1, len(found)))
    rows: list[list[Tile | None]] = []
    for query, near, scores in zip(queries.tolist(), places.tolist(), cosines.tolist(), strict=True):
        # A score below -1 marks an image whose features are all zero.
        others = [(place, score) for place, score in zip(near, scores, strict=True) if place != query and score >= -1]
        row = [Tile(_thumb(model, source, int(found.indices[query])), "query")]
        row += [
            Tile(_thumb(model, source, int(found.indices[at])), f"{score:.2f}") for at, score in others[:_NEIGHBORS]
        ]
        rows.append([*row])
    text = f"Nearest by cosine among {len(found):,} of {len(source):,} images, with the cosine similarity above each."
    text += " Good: what you would call the same kind stands beside each query."
    return {"notes": [text], "svg": Sheet(rows).svg()}


def _map(model: Model, source: Source, found: FeatureTable) -> Content:
    """The same images as points of a plane, colored by folder, and some of them as pictures."""
    vectors = found.features[directed(found.features)]
    if len(vectors) < 3:
        return _note("Too few images for a map.")
    vectors, indices = normalize(vectors, dim=1), found.indices[directed(found.features)].tolist()
    names = folder_names([source.key(index) for index in indices])
    if not any(names):
        names = group_names([], vectors, CLUSTER)
    points = project(vectors)
    thumbnails = {row: _thumb(model, source, indices[row]) for row in scatter_map.shown_rows(points)}
    text = (
        f"{len(vectors):,} images by the first two principal components of their features: what lies together looks "
        f"alike to the model. Good: kinds that you can tell apart lie apart. All images: opendino map, opendino app."
    )
    return {"notes": [text], "svg": style.svg(scatter_map.figure(points, names, thumbnails))}


def _note(*lines: str) -> Content:
    return {"notes": lines, "svg": ""}


def _sample_images(source: Source, number: int) -> list[tuple[str, np.ndarray]]:
    """Up to `number` readable images with their keys, sampled from the whole source."""
    found: list[tuple[str, np.ndarray]] = []
    for index in permutation(len(source), 0, 1)[: 4 * number].tolist():
        if len(found) < number and (pixels := _read(source, index)) is not None:
            found.append((source.key(index), pixels))
    return found


def _read(source: Source, index: int) -> np.ndarray | None:
    try:
        return decode(source.read(index), pixel_format=source.pixel_format)
    except BadImage:
        return None


def _thumb(model: Model, source: Source, index: int) -> Image.Image:
    pixels = _read(source, index)
    return tile_grid.square(None if pixels is None else model.reading.picture(pixels), _THUMB_PX)


def _large(image: Image.Image) -> Image.Image:
    scale = min(1.6 * _THUMB_PX / min(image.size), 6.4 * _THUMB_PX / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST)
