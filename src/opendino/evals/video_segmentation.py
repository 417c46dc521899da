"""Follow objects through a film by their patch features, scored by J and F as DAVIS (Jabri et al. 2020, DINO)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn.functional import interpolate, normalize, one_hot

from opendino.core import atomic_write, distributed, log
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.ranges import Checked, Count, CountOrZero, PixelSize, Temperature
from opendino.core.types import Report
from opendino.data.source_files import printable
from opendino.datasets import mask_files, video_frames
from opendino.datasets.mask_metrics import statistics
from opendino.datasets.video_frames import Truth, Video
from opendino.models.load import Model, load
from opendino.models.patch_inputs import patch_px, to_network_input


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino eval video-segmentation` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; the one to use by default."""
    data: str = ""
    """DAVIS (with JPEGImages, Annotations and ImageSets), a folder of frames, or a film file."""
    mask: str = ""
    """The first frame's mask, an indexed or gray PNG that numbers the objects; not for DAVIS, which has its own."""
    out: str = ""
    """Write the masks found into this folder, as OUT/SEQUENCE/FRAME.png."""
    year: Literal[2016, 2017] = 2017
    """DAVIS: the list to use; in 2016 all objects are one."""
    resolution: str = "480p"
    """DAVIS: the folder below JPEGImages and Annotations."""
    sequences: tuple[str, ...] = ()
    """DAVIS: only these."""
    size_px: PixelSize = 480
    """Shorter side of the frames that the network sees."""
    num_last: CountOrZero = 7
    """Frames before the present one that it is compared with, besides the first."""
    radius: CountOrZero = 12
    """How many patches away, in rows and in columns, the same thing may have been; 0 for any number."""
    top_k: Count = 5
    """Most similar patches that decide."""
    temperature: Temperature = 0.1
    """Of the softmax over their cosine similarities."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def evaluate(config: Config) -> Report:
    """Follow the objects of every film, and score them where all frames have a mask.

    Raises:
        UserError: No such model, film or mask; one that cannot be used.
        UsageError: Flags that do not go together.
    """
    device = distributed.device(config.device)
    films = _films(config)
    model = load(config.model, config.which).to(device)
    began, notes, found = time.monotonic(), [], {}
    for film in films:
        found[film.name] = _follow(film, model, config, notes)
        log.say(f"{film.name}: {_line(found[film.name])}")
    return _report(found, list(dict.fromkeys(notes)), config, time.monotonic() - began)


def propagate(
    target: Tensor,
    context: Tensor,
    labels: Tensor,
    radius: int = 12,
    top_k: int = 5,
    temperature: float = 0.1,
    tile: int = 10,
) -> Tensor:
    """Soft labels of a frame from those of others (Jabri et al. 2020, arXiv:2006.14613, as in DINO).

    A patch takes the mean label of the `top_k` most similar patches of all context frames within `radius`, weighted
    with exp(cosine / temperature). Patches as similar as the last of them count too.

    Args:
        target: float `[h w D]`, the frame's patch features.
        context: float `[n h w D]`, those of the frames known.
        labels: float `[n C h w]`, their soft labels.
        radius: In patches, along rows and columns; 0 for no limit.
        top_k: Fewer where fewer are near.
        temperature: Above 0.
        tile: Patches are worked off in squares of this side, each with its surroundings. Bounds memory to
            n · tile² · (tile + 2 radius)² similarities, whatever the size of the frame.

    Returns:
        `[C h w]`.
    """
    height, width = target.shape[:2]
    radius = radius or max(height, width)
    target, context = normalize(target, dim=-1) / temperature, normalize(context, dim=-1)
    out = labels.new_empty(labels.shape[1:])
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            rows, columns = slice(top, min(top + tile, height)), slice(left, min(left + tile, width))
            near_rows, near_columns = _grown(rows, radius, height), _grown(columns, radius, width)
            keys = context[:, near_rows, near_columns].flatten(0, 2)
            values = labels[:, :, near_rows, near_columns].transpose(0, 1).flatten(1)
            far = ~(
                _within(rows, near_rows, radius, target.device)[:, None, :, None]
                & _within(columns, near_columns, radius, target.device)[None, :, None, :]
            ).flatten(2).flatten(0, 1)
            similarity = target[rows, columns].flatten(0, 1) @ keys.T
            similarity.view(len(far), len(context), -1).masked_fill_(far[:, None], -torch.inf)
            best = similarity.topk(min(top_k, similarity.shape[1])).values
            others = similarity < best[:, -1:]
            weights = similarity.sub_(best[:, :1]).exp_().masked_fill_(others, 0)
            found = values @ weights.T / weights.sum(1)
            out[:, rows, columns] = found.unflatten(1, (rows.stop - top, columns.stop - left))
    return out


class Tracker:
    """Follows the labels of a first frame from frame to frame.

    Args:
        features: Patch features of the first frame, float `[h w D]`.
        labels: Its labels, float `[C h w]`.
        num_last: Frames remembered besides the first.
        **how: For `propagate`.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_last: int = 7, **how: Any) -> None:
        self._first, self._how = (features, labels), how
        self._last: deque[tuple[Tensor, Tensor]] = deque(maxlen=num_last)

    def __call__(self, features: Tensor) -> Tensor:
        """Soft labels `[C h w]` of the next frame, of features `[h w D]`."""
        context, labels = (torch.stack(part) for part in zip(self._first, *self._last, strict=True))
        found = propagate(features, context, labels, **self._how)
        self._last.append((features, found))
        return found


def harden(soft: Tensor, height: int, width: int) -> Tensor:
    """The label of every pixel: each soft label enlarged, stretched to 0 .. 1, and the strongest taken.

    Args:
        soft: float `[C h w]`, not negative.
        height, width: In pixels.

    Returns:
        uint8 `[height width]`, 0 .. C - 1.
    """
    soft = interpolate(soft[None], (height, width), mode="bilinear")[0]
    low, high = soft.amin((1, 2), keepdim=True), soft.amax((1, 2), keepdim=True)
    stretched = torch.where(high > low, (soft - low) / (high - low), soft)  # one that is the same everywhere stays
    return stretched.argmax(0).to(torch.uint8)


def working_size(height: int, width: int, short_px: int, patch_px: int) -> tuple[int, int]:
    """(height, width) for the network: the shorter side given, the longer cut to a multiple of 64 px, as in DINO.

    Both are multiples of `patch_px`, for which 64 becomes the next multiple below; the longer is never the shorter.
    """
    step = patch_px * max(1, 64 // patch_px)
    short = max(patch_px, short_px // patch_px * patch_px)
    long = max(short, short_px * max(height, width) // min(height, width) // step * step)
    return (long, short) if height > width else (short, long)


def _grown(part: slice, radius: int, end: int) -> slice:
    return slice(max(0, part.start - radius), min(end, part.stop + radius))


def _within(queries: slice, keys: slice, radius: int, device: torch.device) -> Tensor:
    """Which keys are near which queries along one axis, bool `[queries keys]`."""
    places = [torch.arange(part.start, part.stop, device=device) for part in (queries, keys)]
    return (places[0][:, None] - places[1]).abs() <= radius


def _films(config: Config) -> list[Video]:
    """What to follow; no output may fall on its images or masks."""
    if not config.data:
        raise UsageError("No film was named", "Give --data with DAVIS, a folder of frames, or a film file")
    path = Path(config.data).expanduser()
    if not path.exists():
        raise UserError(f"{printable(str(path))} does not exist", "Give DAVIS, a folder of frames, or a film file")
    if path.is_dir() and video_frames.is_davis(path):
        if config.mask:
            raise UsageError("--mask does not go with DAVIS", "Its first annotations are the masks")
        films = video_frames.davis(path, config.year, config.resolution, config.sequences)
    elif not config.mask:
        raise UsageError(f"{printable(str(path))} is not laid out as DAVIS", "Give its first mask: --mask FIRST.png")
    elif not config.out:
        raise UsageError("One mask leaves nothing to score", "Give --out FOLDER for the masks found")
    else:
        name = path.resolve().name if path.is_dir() else path.stem
        films = [Video(name, path, (Path(config.mask).expanduser(),))]
    if config.out:
        out = Path(config.out).expanduser()
        for film in films:
            if (out / film.name).resolve() in {film.path.resolve(), *(mask.parent.resolve() for mask in film.masks)}:
                raise UsageError(f"--out {config.out} would overwrite what is in {film.name}", "Choose another folder")
    return films


def _follow(film: Video, model: Model, config: Config, notes: list[str]) -> dict[str, Any]:
    """Follow the objects of one film, write their masks, and score them."""
    frames = video_frames.frames(film.path)
    name, image = next(frames, ("", BadImage("there is none")))
    if isinstance(image, BadImage):
        raise UserError(f"The first frame of {film.name} cannot be read: {image}", "All others follow from it")
    height, width = image.shape[:2]
    truth = Truth(film, height, width, notes)
    size = working_size(height, width, config.size_px, patch_px(model))
    features = _features(model, image, size)
    small = torch.from_numpy(mask_files.resize(truth.first, *features.shape[:2])).long()
    labels = one_hot(small, 1 + len(truth.numbers)).permute(2, 0, 1).to(features)
    how = {"radius": config.radius, "top_k": config.top_k, "temperature": config.temperature}
    tracker = Tracker(features, labels, config.num_last, **how)
    _write(config, film, name, truth.encode(truth.first))
    scores: dict[int, Tensor] = {}
    number = skipped = 0
    for number, (name, image) in enumerate(frames, start=1):
        if isinstance(image, BadImage):
            notes.append(f"{film.name}: frame {name} was left out, {image}")
            skipped += 1
            continue
        found = harden(tracker(_features(model, image, size)), *size)
        mask = mask_files.resize(found.cpu().numpy(), height, width)
        _write(config, film, name, truth.encode(mask))
        if len(film.masks) > 1:
            scores[number] = truth.score(number, mask)
    scores.pop(number, None)  # the official evaluator leaves out the first and the last frame
    if not scores:
        notes.append(f"{film.name}: nothing to score, {_why_not(film, number + 1)}")
    return {"frames": number + 1, "skipped": skipped, **_summary(truth.numbers, list(scores.values()))}


def _features(model: Model, image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Patch features `[h w D]` of a frame, resized without antialias and to whole values, as in DINO."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    pixels = interpolate(pixels, size, mode="bilinear")[0].round().permute(1, 2, 0)
    features = model.features(to_network_input(pixels, model))
    return features.patches[0].unflatten(0, features.grid)


def _write(config: Config, film: Video, frame: str, png: bytes) -> None:
    if not config.out:
        return
    folder = Path(config.out).expanduser() / film.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write.write(folder / f"{frame}.png", png)
    except OSError as error:
        where = printable(str(folder))
        raise UserError(f"Cannot write into {where}: {error.strerror}", "Choose another --out") from error


def _why_not(film: Video, num_frames: int) -> str:
    if num_frames < 3:
        return "the first and the last frame do not count and there is no other"
    return "only the first frame has a mask" if len(film.masks) == 1 else "no frame could be read"


_NAMES = [f"{measure}_{what}" for measure in "JF" for what in ("mean", "recall", "decay")]


def _summary(numbers: list[int], scores: list[Tensor]) -> dict[str, Any]:
    """Scores of the frames, each `[2 objects]` → percent for every object, and their means."""
    if not scores:
        return {**dict.fromkeys([*_NAMES, "JF_mean"]), "objects": {}}
    over_time = torch.stack(scores).permute(2, 1, 0)
    values = [[100 * value for measure in each for value in statistics(measure)] for each in over_time]
    objects = {str(number): dict(zip(_NAMES, each, strict=True)) for number, each in zip(numbers, values, strict=True)}
    return {**_mean(list(objects.values())), "objects": objects}


def _mean(objects: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Over objects, not films, as the official evaluator."""
    if not objects:
        return dict.fromkeys([*_NAMES, "JF_mean"])
    means = {name: sum(each[name] for each in objects) / len(objects) for name in _NAMES}
    return {**means, "JF_mean": (means["J_mean"] + means["F_mean"]) / 2}


def _line(scores: dict[str, Any]) -> str:
    if scores["J_mean"] is None:
        return f"{scores['frames']} frames, nothing to score"
    return f"{scores['frames']} frames, J {scores['J_mean']:.1f}, F {scores['F_mean']:.1f}"


def _report(found: dict[str, dict[str, Any]], notes: list[str], config: Config, seconds: float) -> Report:
    means = _mean([scores for film in found.values() for scores in film["objects"].values()])
    rows = [(f"{name} {number}", scores) for name, film in found.items() for number, scores in film["objects"].items()]
    rows += [("mean over objects", means)] if rows else []
    width = max((len(name) for name, _ in rows), default=0)
    columns = ("J mean", "recall", "decay", "F mean", "recall", "decay")
    lines = [" ".join([" " * width, *(f"{column:>7}" for column in columns)])] if rows else []
    lines += [" ".join([name.ljust(width), *(f"{scores[key]:7.1f}" for key in _NAMES)]) for name, scores in rows]
    if rows:
        lines += [f"J&F {means['JF_mean']:.1f}"]
    if config.out:
        lines += [f"masks written to {config.out}"]
    lines += [
        f"Percent. Shorter side {config.size_px} px; labels from the first frame and the {config.num_last} before, "
        f"within {config.radius or 'any number of'} patches, top {config.top_k}, temperature {config.temperature}; "
        "J and F without the first and the last frame, as DAVIS.",
        *(f"note: {note}" for note in notes),
    ]
    counts = {name: sum(film[name] for film in found.values()) for name in ("frames", "skipped")}
    return Report("\n".join(lines), {**means, "per_sequence": found, **counts, "seconds": seconds, "notes": notes})
