"""Views of a training step: the exact crops of student and teacher, their boxes and augmentation parameters.

Given images instead of a run, the settings are those that `opendino train` would choose.

Views depend only on (seed, epoch, image), so the views of any past or future step can be reproduced. Each image is
shown at its cached size with one numbered box per view. The title of a view lists its augmentations by name with their
random parameters; docs/augmentations.md explains them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import tyro
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Checked, Count, CountOrZero
from opendino.core.types import Report, ViewSpec
from opendino.data.loader import Batch, Batches
from opendino.data.picture import picture
from opendino.data.readers.decoded_image import RGB
from opendino.features.image_stream import skipped_message
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import ViewParameters
from opendino.views.settings import AUGMENTATIONS
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.style import COLORS
from opendino.visualize.drawing.tile_grid import Sheet, Tile

_TITLES: dict[str, Callable[[dict[str, Tensor]], str | None]] = {
    name: module.title for name, module in AUGMENTATIONS.items() if name != "crop"
} | {"mask": lambda values: f"{values['where'].double().mean():.0%}" if values["where"].any() else None}
"""Name of what is done to a view → its parameters as text, None for nothing."""
_ORDER = [*AUGMENTATIONS, "mask"]
_COLUMNS = 6
_TILE_PX = tile_grid.WIDTH_PX // _COLUMNS


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino visualize crops`."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DATA")]
    """A run folder; or images that are not trained on yet, with any flags of `opendino train`, e.g. --recipe NAME."""
    step: CountOrZero = 0
    """Training step to show, from 0."""
    images: Count = 2
    """Number of images to show, from the start of the batch."""
    stages: bool = False
    """Show each view after every augmentation, one row per view."""
    out: str = "crops.png"
    """Output file: .png, .jpg, .webp, .pdf, .svg or .html."""


@dataclass(frozen=True)
class RunBatches:
    """Training data of a run; the caller builds it from the settings of the run.

    Attributes:
        batches: Batches of the run for a world size of 1.
        steps: Number of training steps of the run.
        student, teacher: Description of the views that each network gets.
        channels: Names of the C channels.
    """

    batches: Batches
    steps: int
    student: str
    teacher: str
    channels: tuple[str, ...] = RGB


def show(config: Config, run: RunBatches) -> Report:
    """Draw the views of a step.

    Raises:
        UsageError: The run has no such step.
        UserError: The images cannot be read.
    """
    path = tile_grid.out(config.out, tile_grid.PICTURES)
    if config.step >= run.steps:
        raise UsageError(f"--step is {config.step} and the run has {run.steps:,} steps", f"Use 0 to {run.steps - 1}")
    batch = run.batches[config.step * run.batches.micro_batches]
    if isinstance(batch, UserError):
        raise batch
    batch = first(batch, config.images)
    epoch = config.step // run.batches.steps_per_epoch
    spec, places = run.batches.spec, range(len(batch.indices))
    Sheet([row for place in places for row in tiles(batch, place, spec, config.stages, run.channels)]).save(path)
    source = run.batches.images.source
    image_fields = [
        {"image": source.key(int(batch.indices[place])), "views": choices(batch, place)} for place in places
    ]
    lines = [f"step {config.step} (epoch {epoch}), {len(image_fields)} image{'s' * (len(image_fields) > 1)} → {path}"]
    lines += [f"the student gets {run.student}, the teacher {run.teacher}"]
    lines += [f"note: {skipped_message(batch.bad)}"] * bool(batch.bad)
    found = {"paths": [str(path)], "step": config.step, "epoch": epoch, "images": image_fields}
    return Report("\n".join(lines), found | {"student": run.student, "teacher": run.teacher})


def first(batch: Batch, number: int) -> Batch:
    """The first `number` images of a batch."""
    view_parameters = {name: d.map(lambda x: x[:, :number]) for name, d in batch.draws.items()}
    return replace(
        batch, canvas=batch.canvas[:number], sizes=batch.sizes[:number], labels=batch.labels[:number],
        indices=batch.indices[:number], draws=view_parameters,
    )  # fmt: skip


def tiles(
    batch: Batch, place: int, spec: ViewSpec, stages: bool = False, channels: Sequence[str] = RGB
) -> list[list[Tile | None]]:
    """The rows of a `Sheet` about one image of a batch: the image with its boxes, then its views.

    Args:
        batch: A batch with its view parameters.
        place: Position of the image in the batch.
        spec: The view specification of the batch.
        stages: One row per view with the crop and the result of each stage that changed it. Otherwise the final views.
        channels: Names of the C channels, see `data.picture`.
    """
    canvas = batch.canvas[place : place + 1]
    view_parameters = {name: d.map(lambda x: x[:, place : place + 1]) for name, d in batch.draws.items()}
    height, width = batch.sizes[place].tolist()
    image = picture(canvas[0, :, :height, :width].permute(1, 2, 0).contiguous().numpy(), channels)
    done = choices(batch, place)
    image_tile = Tile(boxed(image, [(each["group"], each["box"]) for each in done]), "image and boxes")
    finished = _views(canvas, view_parameters, spec, channels)
    if not stages:
        flat = [
            image_tile,
            *(Tile(view, _title(n, each)) for n, (view, each) in enumerate(zip(finished, done, strict=True))),
        ]
        return [list(flat[start : start + _COLUMNS]) for start in range(0, len(flat), _COLUMNS)]
    names = list(dict.fromkeys(name for d in view_parameters.values() for name in d))  # in order of application
    names.sort(key=_ORDER.index)
    after = [
        _views(canvas, {group: until(d, name) for group, d in view_parameters.items()}, spec, channels)
        for name in names
    ]
    rows: list[list[Tile | None]] = [[image_tile]]
    for n, each in enumerate(done):
        titles = {"crop": f"{n} {each['group']}"} | each["augmentations"]
        row: list[Tile | None] = [
            Tile(after[i][n], titles[name].replace(" ", "\n", name != "crop"))
            for i, name in enumerate(names)
            if name in titles
        ]
        rows.append(row)
    return rows


def until(draw: ViewParameters, name: str) -> ViewParameters:
    """The parameters of the augmentations up to one of them, in their order."""
    return ViewParameters({each: values for each, values in draw.items() if _ORDER.index(each) <= _ORDER.index(name)})


def choices(batch: Batch, place: int) -> list[dict[str, Any]]:
    """Random parameters of each view of an image, as plain values; views in the order of their groups.

    "box" is (top, left, height, width) in pixels of the cached image. "augmentations" has the name of each augmentation
    that changes the view, with a title of its parameters.
    """
    found = []
    for group, d in batch.draws.items():
        for v in range(len(d["crop"]["box"])):
            one = {name: {key: x[v, place] for key, x in values.items()} for name, values in d.items()}
            titles = {name: _TITLES[name](values) for name, values in one.items() if name != "crop"}
            found.append(
                {
                    "group": group, "box": one["crop"]["box"].tolist(),
                    "augmentations": {k: f"{k} {text}".strip() for k, text in titles.items() if text is not None},
                }
            )  # fmt: skip
    return found


def boxed(image: Image.Image, boxes: list[tuple[str, list[int]]]) -> Image.Image:
    """The image scaled to a tile, with one numbered box per view and one color per group.

    Args:
        image: RGB; scaled to the width of a tile, at most twice as high as wide.
        boxes: Name of the view group, and (top, left, height, width) in pixels of the image.
    """
    scale = min(_TILE_PX / image.width, 2 * _TILE_PX / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(_TILE_PX // 14)
    groups = list(dict.fromkeys(name for name, _ in boxes))
    for n, (name, (top, left, height, width)) in enumerate(boxes):
        color = COLORS[groups.index(name) % len(COLORS)]
        corners = [x * scale for x in (left, top, left + width, top + height)]
        corners[2:] = [max(end - 1, start) for start, end in zip(corners[:2], corners[2:], strict=True)]
        pen.rectangle(corners, outline=color, width=3)
        at = corners[0] + 4, corners[1] + 4
        pen.rectangle(pen.textbbox(at, str(n), font), fill=color)
        pen.text(at, str(n), "white", font)
    return image


def _views(
    canvas: Tensor, view_parameters: dict[str, ViewParameters], spec: ViewSpec, channels: Sequence[str]
) -> list[Image.Image]:
    """The views of one image at tile size, computed by the function that training uses."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    views = []
    made = multi_crop(canvas, view_parameters, spec)
    for group in spec.groups:
        crops = made.get(group.name, torch.empty(0, 1))  # [V 1 C H W]
        if "mask" in view_parameters.get(group.name, {}):  # masked patches are shown in the mean color
            where = view_parameters[group.name]["mask"]["where"].unflatten(2, spec.grid(group))
            crops = crops.masked_fill(interpolate(where.float(), group.view_px).bool()[:, :, None], 0)
        for view in crops[:, 0]:
            view_image = picture((view * std + mean).permute(1, 2, 0).numpy(), channels)
            enlarge = Image.Resampling.NEAREST if view_image.width < _TILE_PX else Image.Resampling.LANCZOS
            size = [round(side * _TILE_PX / max(view_image.size)) for side in view_image.size]
            views.append(view_image.resize((size[0], size[1]), enlarge))
    return views


def _title(n: int, done: dict[str, Any]) -> str:
    """Title of a final view: its number and group, and its augmentations."""
    return f"{n} {done['group']}\n{', '.join(done['augmentations'].values())}"
