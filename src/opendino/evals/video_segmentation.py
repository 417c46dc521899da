"""Video object segmentation by label propagation, scored by J and F as in DAVIS (Jabri et al. 2020, DINO)."""

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
    """Options of `opendino eval video-segmentation`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    data: str = ""
    """DAVIS (with JPEGImages, Annotations and ImageSets), a folder of frames, or a video file."""
    mask: str = ""
    """Mask of the first frame: a palette or gray PNG with one number per object; not for DAVIS, which has its own."""
    out: str = ""
    """Folder for the predicted masks, written as OUT/SEQUENCE/FRAME.png."""
    year: Literal[2016, 2017] = 2017
    """DAVIS: version of the sequence list; 2016 merges all objects into one."""
    resolution: str = "480p"
    """DAVIS: name of the sub-folder of JPEGImages and Annotations."""
    sequences: tuple[str, ...] = ()
    """DAVIS: only these sequences; default: all in the list."""
    size_px: PixelSize = 480
    """Shorter side of the input frames, in pixels."""
    num_last: CountOrZero = 7
    """Number of preceding frames to propagate from, in addition to the first frame."""
    radius: CountOrZero = 12
    """Search radius in patches, along rows and columns; 0 means unlimited."""
    top_k: Count = 5
    """Number of most similar patches to propagate from."""
    temperature: Temperature = 0.1
    """Temperature of the softmax over the cosine similarities of these patches."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def evaluate(config: Config) -> Report:
    """Propagate the masks of every video, and score those with a ground truth mask for every frame.

    Raises:
        UserError: The model, a video or a mask does not exist or cannot be used.
        UsageError: The flags are incompatible.
    """
    device = distributed.device(config.device)
    videos = _open_videos(config)
    model = load(config.model, config.which).to(device)
    model.reading.check_frames(config.model)
    began, notes, found = time.monotonic(), [], {}
    for video in videos:
        found[video.name] = _segment(video, model, config, notes)
        log.say(f"{video.name}: {_summary_line(found[video.name])}")
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
    """Propagate soft labels to a frame from other frames (Jabri et al. 2020, arXiv:2006.14613, as in DINO).

    A patch gets the mean label of the `top_k` most similar patches of all context frames within `radius`, weighted by
    exp(cosine / temperature). Patches tied with the last of them are included.

    Args:
        target: float `[h w D]`, patch features of the frame.
        context: float `[n h w D]`, patch features of the n frames with known labels.
        labels: float `[n C h w]`, soft labels of these frames.
        radius: In patches, along rows and columns; 0 means unlimited.
        top_k: Number of patches to average; fewer if fewer are within `radius`.
        temperature: Above 0.
        tile: Side in patches of the square tiles of `target` that are processed at a time. It limits memory to
            n · tile² · (tile + 2 radius)² similarities for any frame size.

    Returns:
        Soft labels float `[C h w]`.
    """
    height, width = target.shape[:2]
    radius = radius or max(height, width)
    target, context = normalize(target, dim=-1) / temperature, normalize(context, dim=-1)
    out = labels.new_empty(labels.shape[1:])
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            rows, columns = slice(top, min(top + tile, height)), slice(left, min(left + tile, width))
            near_rows, near_columns = _grown(rows, radius, height), _grown(columns, radius, width)
            keys = context[:, near_rows, near_columns].flatten(0, 2)  # [n * kh * kw, D]
            values = labels[:, :, near_rows, near_columns].transpose(0, 1).flatten(1)  # [C, n * kh * kw]
            # The mask of keys outside the radius of a query is the same in every context frame: [qh * qw, kh * kw].
            far = ~(
                _within(rows, near_rows, radius, target.device)[:, None, :, None]
                & _within(columns, near_columns, radius, target.device)[None, :, None, :]
            ).flatten(2).flatten(0, 1)
            similarity = target[rows, columns].flatten(0, 1) @ keys.T  # [qh * qw, n * kh * kw]
            similarity.view(len(far), len(context), -1).masked_fill_(far[:, None], -torch.inf)
            best = similarity.topk(min(top_k, similarity.shape[1])).values
            others = similarity < best[:, -1:]  # a threshold keeps ties, topk indices would not
            weights = similarity.sub_(best[:, :1]).exp_().masked_fill_(others, 0)
            found = values @ weights.T / weights.sum(1)  # [C, qh * qw]
            out[:, rows, columns] = found.unflatten(1, (rows.stop - top, columns.stop - left))
    return out


class Tracker:
    """Propagates the labels of the first frame from frame to frame.

    Args:
        features: Patch features of the first frame, float `[h w D]`.
        labels: Labels of the first frame, float `[C h w]`.
        num_last: Number of preceding frames to keep, in addition to the first.
        **options: Passed to `propagate`.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_last: int = 7, **options: Any) -> None:
        self._first, self._options = (features, labels), options
        self._last: deque[tuple[Tensor, Tensor]] = deque(maxlen=num_last)

    def __call__(self, features: Tensor) -> Tensor:
        """Soft labels `[C h w]` of the next frame from its features `[h w D]`."""
        context, labels = (torch.stack(part) for part in zip(self._first, *self._last, strict=True))
        found = propagate(features, context, labels, **self._options)
        self._last.append((features, found))
        return found


def harden(soft: Tensor, height: int, width: int) -> Tensor:
    """Label of every pixel: upsample the soft labels, scale each to [0, 1], take the argmax.

    Args:
        soft: float `[C h w]`, non-negative.
        height, width: Size of the output, in pixels.

    Returns:
        uint8 `[height width]`, from 0 to C - 1.
    """
    soft = interpolate(soft[None], (height, width), mode="bilinear")[0]
    low, high = soft.amin((1, 2), keepdim=True), soft.amax((1, 2), keepdim=True)
    stretched = torch.where(high > low, (soft - low) / (high - low), soft)  # a constant map is not scaled
    return stretched.argmax(0).to(torch.uint8)


def working_size(height: int, width: int, short_px: int, patch_px: int) -> tuple[int, int]:
    """Input size (height, width): `short_px` for the shorter side, the longer a multiple of 64 px (DINO).

    Both sides are rounded down to multiples of `patch_px`; 64 is first rounded down to such a multiple as well. The
    longer side is at least the shorter.
    """
    step = patch_px * max(1, 64 // patch_px)
    short = max(patch_px, short_px // patch_px * patch_px)
    long = max(short, short_px * max(height, width) // min(height, width) // step * step)
    return (long, short) if height > width else (short, long)


def _grown(part: slice, radius: int, end: int) -> slice:
    """The slice extended by the radius on both sides, within [0, end)."""
    return slice(max(0, part.start - radius), min(end, part.stop + radius))


def _within(queries: slice, keys: slice, radius: int, device: torch.device) -> Tensor:
    """Whether each key is within the radius of each query along one axis, bool `[queries keys]`."""
    places = [torch.arange(part.start, part.stop, device=device) for part in (queries, keys)]
    return (places[0][:, None] - places[1]).abs() <= radius


def _open_videos(config: Config) -> list[Video]:
    """The videos to segment; refuses an output folder that would overwrite their frames or masks."""
    if not config.data:
        raise UsageError("--data is missing", "Name DAVIS, a folder of frames, or a video file")
    path = Path(config.data).expanduser()
    if not path.exists():
        raise UserError(f"{printable(str(path))} does not exist", "Name DAVIS, a folder of frames, or a video file")
    if path.is_dir() and video_frames.is_davis(path):
        if config.mask:
            raise UsageError("--mask cannot be used with DAVIS", "Remove it: DAVIS has its own first masks")
        videos = video_frames.davis(path, config.year, config.resolution, config.sequences)
    elif not config.mask:
        raise UsageError(
            f"{printable(str(path))} does not have the layout of DAVIS",
            "Give the mask of the first frame: --mask FIRST.png",
        )
    elif not config.out:
        raise UsageError(
            "One mask is not enough for a score, and --out is missing", "Give --out FOLDER for the predicted masks"
        )
    else:
        name = path.resolve().name if path.is_dir() else path.stem
        videos = [Video(name, path, (Path(config.mask).expanduser(),))]
    if config.out:
        out = Path(config.out).expanduser()
        for video in videos:
            if (out / video.name).resolve() in {video.path.resolve(), *(mask.parent.resolve() for mask in video.masks)}:
                raise UsageError(
                    f"--out {config.out} would overwrite the files of {video.name}", "Choose another folder"
                )
    return videos


def _segment(video: Video, model: Model, config: Config, notes: list[str]) -> dict[str, Any]:
    """Propagate the masks of one video, write them, and score them."""
    frames = video_frames.frames(video.path)
    name, image = next(frames, ("", BadImage("there are no frames")))
    if isinstance(image, BadImage):
        raise UserError(
            f"The first frame of {video.name} cannot be read: {image}",
            "It is needed for all others: repair or remove it",
        )
    height, width = image.shape[:2]
    truth = Truth(video, height, width, notes)
    size = working_size(height, width, config.size_px, patch_px(model))
    features = _features(model, image, size)
    small_mask = torch.from_numpy(mask_files.resize(truth.first, *features.shape[:2])).long()
    labels = one_hot(small_mask, 1 + len(truth.numbers)).permute(2, 0, 1).to(features)
    options = {"radius": config.radius, "top_k": config.top_k, "temperature": config.temperature}
    tracker = Tracker(features, labels, config.num_last, **options)
    _write(config, video, name, truth.encode(truth.first))
    scores: dict[int, Tensor] = {}
    frame_index = skipped = 0
    for frame_index, (name, image) in enumerate(frames, start=1):
        if isinstance(image, BadImage):
            notes.append(f"{video.name}: frame {name} was skipped: {image}")
            skipped += 1
            continue
        found = harden(tracker(_features(model, image, size)), *size)
        mask = mask_files.resize(found.cpu().numpy(), height, width)
        _write(config, video, name, truth.encode(mask))
        if len(video.masks) > 1:
            scores[frame_index] = truth.score(frame_index, mask)
    scores.pop(frame_index, None)  # the official DAVIS evaluation ignores the first and the last frame
    if not scores:
        notes.append(f"{video.name}: nothing to score: {_why_unscored(video, frame_index + 1)}")
    return {"frames": frame_index + 1, "skipped": skipped, **_summary(truth.numbers, list(scores.values()))}


def _features(model: Model, image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Patch features `[h w D]` of a frame, resized without antialiasing and rounded to integers, as in DINO."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()  # [1, 3, H, W]
    pixels = interpolate(pixels, size, mode="bilinear")[0].round().permute(1, 2, 0)
    features = model.features(to_network_input(pixels.numpy().astype(np.uint8), model))
    return features.patches[0].unflatten(0, features.grid)


def _write(config: Config, video: Video, frame: str, png: bytes) -> None:
    """Write a mask, if --out is given."""
    if not config.out:
        return
    folder = Path(config.out).expanduser() / video.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write.write(folder / f"{frame}.png", png)
    except OSError as error:
        where = printable(str(folder))
        raise UserError(f"Cannot write into {where}: {error.strerror}", "Choose another --out") from error


def _why_unscored(video: Video, num_frames: int) -> str:
    if num_frames < 3:
        return "the first and the last frame are not scored, and there is no other"
    return "only the first frame has a mask" if len(video.masks) == 1 else "no frame could be read"


_METRICS = [f"{measure}_{what}" for measure in "JF" for what in ("mean", "recall", "decay")]


def _summary(numbers: list[int], scores: list[Tensor]) -> dict[str, Any]:
    """J and F per frame, `[2 objects]` each → mean, recall and decay in percent for each object, and their means."""
    if not scores:
        return {**dict.fromkeys([*_METRICS, "JF_mean"]), "objects": {}}
    over_time = torch.stack(scores).permute(2, 1, 0)  # [objects, 2, frames]
    values = [[100 * value for measure in each for value in statistics(measure)] for each in over_time]
    objects = {
        str(number): dict(zip(_METRICS, each, strict=True)) for number, each in zip(numbers, values, strict=True)
    }
    return {**_mean(list(objects.values())), "objects": objects}


def _mean(objects: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Means over objects, not videos, as in the official DAVIS evaluation."""
    if not objects:
        return dict.fromkeys([*_METRICS, "JF_mean"])
    means = {name: sum(each[name] for each in objects) / len(objects) for name in _METRICS}
    return {**means, "JF_mean": (means["J_mean"] + means["F_mean"]) / 2}


def _summary_line(scores: dict[str, Any]) -> str:
    if scores["J_mean"] is None:
        return f"{scores['frames']} frames, nothing to score"
    return f"{scores['frames']} frames, J {scores['J_mean']:.1f}, F {scores['F_mean']:.1f}"


def _report(found: dict[str, dict[str, Any]], notes: list[str], config: Config, seconds: float) -> Report:
    means = _mean([scores for video in found.values() for scores in video["objects"].values()])
    rows = [
        (f"{name} {number}", scores) for name, video in found.items() for number, scores in video["objects"].items()
    ]
    rows += [("mean over objects", means)] if rows else []
    width = max((len(name) for name, _ in rows), default=0)
    columns = ("J mean", "recall", "decay", "F mean", "recall", "decay")
    lines = [" ".join([" " * width, *(f"{column:>7}" for column in columns)])] if rows else []
    lines += [" ".join([name.ljust(width), *(f"{scores[key]:7.1f}" for key in _METRICS)]) for name, scores in rows]
    if rows:
        lines += [f"J&F {means['JF_mean']:.1f}"]
    if config.out:
        lines += [f"masks written to {config.out}"]
    lines += [
        f"Percent. Shorter side {config.size_px} px; labels from the first and the {config.num_last} preceding "
        f"frames, within {config.radius or 'any number of'} patches, top {config.top_k}, "
        f"temperature {config.temperature}; "
        "J and F without the first and the last frame, as in DAVIS.",
        *(f"note: {note}" for note in notes),
    ]
    counts = {name: sum(video[name] for video in found.values()) for name in ("frames", "skipped")}
    return Report("\n".join(lines), {**means, "per_sequence": found, **counts, "seconds": seconds, "notes": notes})
