"""Finding the original of a changed copy (Copydays, or copies made of any folder); near-duplicates in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import mean
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from opendino.core import distributed
from opendino.core.contracts import Source
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Cosine, PixelSize
from opendino.core.types import Report
from opendino.data.open_source import open_source
from opendino.datasets.copy_transforms import COPIES
from opendino.features.image_descriptors import Describe, skipped
from opendino.features.near_duplicates import near_duplicates
from opendino.features.ranking_metrics import POSITIVE, average_precision, search
from opendino.models.global_descriptor import Descriptor
from opendino.models.load import load

_SIZE_PX, _POWER, _DEPTH = 320, 4.0, 20  # of DINO v1 on Copydays


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino eval copy-detection` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; by default the one to use."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
    """Copydays (original/, strong/, jpegqual/*/, crops/*/), or any folder of images."""
    mode: Literal["auto", "copydays", "augment", "duplicates"] = "auto"
    """copydays: find the originals of the copies in DATA. augment: the same for copies made here of each image of DATA.
    duplicates: list groups of near-duplicate files in DATA. auto: copydays if DATA has a folder original/, else
    augment."""
    distractors: str | None = None
    """A folder of other images to hide the originals among; 10,000 of YFCC100M in the paper."""
    whiten: str | None = None
    """A folder of other images to learn a PCA whitening on; 20,000 of YFCC100M in the paper."""
    size_px: PixelSize | None = None
    """Both sides of the images that the network sees; by default 320 for Copydays, else what the model was trained
    for."""
    threshold: Cosine = 0.95
    """duplicates: cosine from which on two images count as one."""
    batch: Batch = 32
    """Images at a time."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "duplicates" and self.distractors:
            raise UsageError("--distractors has no meaning with --mode duplicates", "Leave one of them out")


def evaluate(config: Config) -> Report:
    """Mean average precision of finding originals by their copies; with mode duplicates, the groups.

    Raises:
        UserError: No such model or images, or a folder that is no Copydays where that was asked for.
    """
    if not config.data:
        raise UsageError("No images were named", "Give a folder of images, or Copydays")
    device = distributed.device(config.device)
    source = open_source(config.data)
    blocks = _blocks(source) if config.mode in ("auto", "copydays") else {}
    if config.mode == "copydays" and len(blocks) < 2:
        raise UserError(f"{config.data} is no Copydays", "It has a folder original/ and, beside it, folders of copies")
    model = load(config.model, config.which).to(device)
    size_px = config.size_px or (_SIZE_PX if len(blocks) > 1 else model.preprocessing["image_px"])
    sees = Descriptor(model, size_px, fit="square", pool="cls+gem", power=_POWER)
    seen = Describe(sees, device, config.whiten, centered=False, batch=config.batch)
    if config.mode == "duplicates":
        return _duplicates(config, source, seen)
    return _copydays(config, source, blocks, seen) if len(blocks) > 1 else _augment(config, source, seen)


def copy_precision(
    queries: Tensor, database: Tensor, positives: Callable[[int], list[int]], depth: int = _DEPTH
) -> list[float]:
    """Average precision of each query, by trapezoids, over the first `depth` results: as DINO v1 evaluates Copydays.

    Args:
        queries: float `[Q D]`, of unit length.
        database: float `[N D]`, of unit length.
        positives: Number of a query → its originals in the database, at least one.
        depth: Originals that come later count as not found.

    Returns:
        Q values in [0, 1].
    """

    def relevance(query: int) -> Tensor:
        out = torch.zeros(len(database), dtype=torch.int8, device=database.device)
        out[positives(query)] = POSITIVE
        return out

    return [average_precision(ranks[ranks < depth], len(ranks)) for ranks in search(queries, database, relevance)]


def _blocks(source: Source) -> dict[str, list[int]]:
    """Copydays' folders of images, `original` first; none where there is no such folder."""
    folders: dict[PurePosixPath, list[int]] = {}
    for index in range(len(source)):
        folders.setdefault(PurePosixPath(source.key(index)).parent, []).append(index)
    home = next((folder.parent for folder in folders if folder.name == "original"), None)
    if home is None:
        return {}
    below = {str(f.relative_to(home)): images for f, images in folders.items() if f.is_relative_to(home) and f != home}
    return {"original": below.pop("original"), **below}


def _copydays(config: Config, source: Source, blocks: dict[str, list[int]], seen: Describe) -> Report:
    """Each copy is to find its originals, among all of them and the distractors."""
    listed = [index for images in blocks.values() for index in images]
    images = seen(source, listed)
    row = {listed[kept]: row for row, kept in enumerate(images.kept)}
    originals = [index for index in blocks.pop("original") if index in row]
    database, bad = _with_distractors(config, images.features[[row[index] for index in originals], 0], seen)
    place: dict[str, list[int]] = {}
    for number, index in enumerate(originals):
        place.setdefault(_family(source, index), []).append(number)
    found: dict[str, list[float]] = {}
    for block, copies in blocks.items():
        asked = [index for index in copies if index in row and _family(source, index) in place]
        if asked:
            owners = [place[_family(source, index)] for index in asked]
            queries = images.features[[row[index] for index in asked], 0]
            found[block] = copy_precision(queries, database, owners.__getitem__)
    if not found:
        raise UserError(
            f"No copy in {config.data} has an original",
            "Copydays calls an original 200000.jpg and its copies 200001.jpg and so on; else they have the same name",
        )
    return _report(config, "Copydays", found, len(originals), len(database), images.bad + bad, seen.protocol)


def _family(source: Source, index: int) -> str:
    """What an original and its copies have in common: Copydays' numbers but for the last two digits, else the name."""
    stem = PurePosixPath(source.key(index)).stem
    return stem[:-2] if stem.isdigit() and len(stem) > 2 else stem


def _augment(config: Config, source: Source, seen: Describe) -> Report:
    """Copies made of every image, each to find the image it was made of."""
    images = seen(source, views=lambda _, image: [image, *(change(image) for change in COPIES.values())])
    database, bad = _with_distractors(config, images.features[:, 0], seen)
    found = {
        name: copy_precision(images.features[:, number], database, lambda query: [query])
        for number, name in enumerate(COPIES, start=1)
    }
    num_originals, bad = len(images.kept), images.bad + bad
    return _report(config, "copies made here", found, num_originals, len(database), bad, seen.protocol)


def _with_distractors(config: Config, originals: Tensor, seen: Describe) -> tuple[Tensor, list[tuple[str, str]]]:
    if not config.distractors:
        return originals, []
    others = seen(open_source(config.distractors))
    return torch.cat([originals, others.features[:, 0]]), others.bad


def _report(
    config: Config,
    what: str,
    found: dict[str, list[float]],
    num_originals: int,
    num_database: int,
    bad: list[tuple[str, str]],
    protocol: str,
) -> Report:
    blocks = {block: 100 * mean(values) for block, values in found.items()}
    every = 100 * mean(value for values in found.values() for value in values)
    strong = blocks.get("strong")
    rows = [*((block, blocks[block], len(values)) for block, values in found.items())]
    rows.append(("all", every, sum(map(len, found.values()))))
    if num_database < 2:
        raise UserError(f"{config.data} has one original", "Among one image every search is right: give more")
    width = max(len(block) for block, _, _ in rows) + 2
    num_distractors = num_database - num_originals
    text = "\n".join([
        f"Copy detection on {config.data} ({what}): {num_originals} originals, {num_distractors} distractors",
        f"{'':{width}}{'mAP':>8}{'queries':>9}",
        *(f"{block:{width}}{value:8.2f}{count:9}" for block, value, count in rows),
        "",
        f"percent; trapezoidal average precision over the first {_DEPTH} results",
        protocol + skipped(bad),
    ])  # fmt: skip
    return Report(text, {
        "mAP": every if strong is None else strong,
        "mAP_strong": strong,
        "mAP_all": every,
        "blocks": blocks,
        "queries": sum(map(len, found.values())),
        "originals": num_originals,
        "distractors": num_distractors,
        "skipped": len(bad),
        "protocol": protocol,
    })  # fmt: skip


def _duplicates(config: Config, source: Source, seen: Describe) -> Report:
    images = seen(source)
    groups: list[dict[str, Any]] = [
        {"files": [source.key(images.kept[i]) for i in group.indices], "similarity": list(group.similarity)}
        for group in near_duplicates(images.features[:, 0], config.threshold)
    ]
    lines = [f"Near-duplicates in {config.data}: {len(groups)} groups, {len(images.kept)} images looked at"]
    for group in groups:
        lines.append("")
        lines += [f"  {value:.3f}  {file}" for file, value in zip(group["files"], group["similarity"], strict=True)]
    lines += [
        "",
        f"cosine to the nearest of the group, {config.threshold:g} or more; {seen.protocol}{skipped(images.bad)}",
    ]
    return Report("\n".join(lines), {
        "groups": groups,
        "duplicates": sum(len(group["files"]) - 1 for group in groups),
        "images": len(images.kept),
        "threshold": config.threshold,
        "skipped": len(images.bad),
        "protocol": seen.protocol,
    })  # fmt: skip
