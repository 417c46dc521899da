"""Copy detection: find the original of an edited copy (Copydays or synthetic copies); near-duplicates in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from opendino.datasets.copy_transforms import COPIES
from opendino.features.duplicate_threshold import EQUAL, cosine_distribution
from opendino.features.image_descriptors import Describe, skipped
from opendino.features.near_duplicates import near_duplicates
from opendino.features.nearest_neighbors import directed
from opendino.features.ranking_metrics import POSITIVE, average_precision, search
from opendino.models.global_descriptor import Descriptor
from opendino.models.load import load

_SIZE_PX, _POWER, _DEPTH = 320, 4.0, 20  # DINO v1's settings for Copydays


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino eval copy-detection`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
    """Copydays (original/, strong/, jpegqual/*/, crops/*/), or any folder of images."""
    mode: Literal["auto", "copydays", "augment", "duplicates"] = "auto"
    """copydays: find the originals of the copies in DATA; augment: create copies of every image in DATA and find their
    originals; duplicates: list near-duplicate files in DATA; auto: copydays if DATA has original/, else augment."""
    distractors: str | None = None
    """A folder of unrelated images added to the database (DINO v1: 10,000 from YFCC100M)."""
    whiten: str | None = None
    """A folder of unrelated images for fitting a PCA whitening (DINO v1: 20,000 from YFCC100M)."""
    size_px: PixelSize | None = None
    """Input height and width in pixels; default: 320 for Copydays, else the model's training size."""
    threshold: Cosine | None = None
    """duplicates: minimum cosine similarity of two near-duplicates; default: chosen so that chance would give about one
    pair."""
    batch: Batch = 32
    """Images per batch; lower it if memory runs out."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "duplicates" and self.distractors:
            raise UsageError("--distractors cannot be used with --mode duplicates", "Remove one of the two flags")


def evaluate(config: Config) -> Report:
    """Mean average precision of finding originals from their copies; with mode duplicates, the groups.

    Raises:
        UserError: The model or images do not exist, or `mode` is "copydays" and the folder has another layout.
    """
    if not config.data:
        raise UsageError(
            "DATA is missing", "Name a folder of images, or Copydays: opendino eval copy-detection MODEL DATA"
        )
    device = distributed.device(config.device)
    model = load(config.model, config.which).to(device)
    source = model.reading.open_images(config.data)
    blocks = _blocks(source) if config.mode in ("auto", "copydays") else {}
    if config.mode == "copydays" and len(blocks) < 2:
        raise UserError(
            f"{config.data} does not have the layout of Copydays",
            "It needs a folder original/ next to the folders of copies",
        )
    size_px = config.size_px or (_SIZE_PX if len(blocks) > 1 else model.preprocessing["image_px"])
    descriptor = Descriptor(model, size_px, fit="square", pool="cls+gem", power=_POWER)
    describe = Describe(descriptor, device, config.whiten, centered=False, batch=config.batch)
    if config.mode == "duplicates":
        return _duplicates(config, source, describe)
    return _copydays(config, source, blocks, describe) if len(blocks) > 1 else _augment(config, source, describe)


def copy_precision(
    queries: Tensor, database: Tensor, positives: Callable[[int], list[int]], depth: int = _DEPTH
) -> list[float]:
    """Trapezoidal average precision of each query over the first `depth` results, as DINO v1 evaluates Copydays.

    Args:
        queries: float `[Q D]`, L2-normalized.
        database: float `[N D]`, L2-normalized.
        positives: Maps a query index to the database indices of its originals, at least one.
        depth: Originals at a later rank count as not found.

    Returns:
        Q values in [0, 1].
    """

    def relevance(query: int) -> Tensor:
        out = torch.zeros(len(database), dtype=torch.int8, device=database.device)
        out[positives(query)] = POSITIVE
        return out

    return [average_precision(ranks[ranks < depth], len(ranks)) for ranks in search(queries, database, relevance)]


def _blocks(source: Source) -> dict[str, list[int]]:
    """Folder → image indices in the Copydays layout, `original` first; empty if there is no folder `original`."""
    folders: dict[PurePosixPath, list[int]] = {}
    for index in range(len(source)):
        folders.setdefault(PurePosixPath(source.key(index)).parent, []).append(index)
    root = next((folder.parent for folder in folders if folder.name == "original"), None)
    if root is None:
        return {}
    below = {str(f.relative_to(root)): images for f, images in folders.items() if f.is_relative_to(root) and f != root}
    return {"original": below.pop("original"), **below}


def _copydays(config: Config, source: Source, blocks: dict[str, list[int]], describe: Describe) -> Report:
    """Copydays: each copy is a query; the database is all originals and the distractors."""
    listed = [index for images in blocks.values() for index in images]
    images = describe(source, listed)
    row = {listed[kept]: row for row, kept in enumerate(images.kept)}
    originals = [index for index in blocks.pop("original") if index in row]
    database, bad = _with_distractors(config, images.features[[row[index] for index in originals], 0], describe)
    stems = [PurePosixPath(source.key(index)).stem for index in originals]
    numbered = all(stem.isdigit() and len(stem) > 2 and stem.endswith("00") for stem in stems)
    copy_key = partial(_copy_key, source, numbered=numbered)
    originals_by_key: dict[str, list[int]] = {}
    for number, index in enumerate(originals):
        originals_by_key.setdefault(copy_key(index), []).append(number)
    found: dict[str, list[float]] = {}
    for block, copies in blocks.items():
        queried = [index for index in copies if index in row and copy_key(index) in originals_by_key]
        if queried:
            positives = [originals_by_key[copy_key(index)] for index in queried]
            queries = images.features[[row[index] for index in queried], 0]
            found[block] = copy_precision(queries, database, positives.__getitem__)
    if not found:
        raise UserError(
            f"No copy in {config.data} has an original",
            "Name copies as in Copydays (200000.jpg, copies 200001.jpg, 200002.jpg, …), or like their original",
        )
    return _report(config, "Copydays", found, len(originals), len(database), images.bad + bad, describe.protocol)


def _copy_key(source: Source, index: int, numbered: bool) -> str:
    """What an original and its copies share: the name, of Copydays (`numbered`) without its last two digits."""
    stem = PurePosixPath(source.key(index)).stem
    return stem[:-2] if numbered else stem


def _augment(config: Config, source: Source, describe: Describe) -> Report:
    """Create copies of every image; each copy is a query for the image it was created from."""
    images = describe(source, views=lambda _, image: [image, *(change(image) for change in COPIES.values())])
    database, bad = _with_distractors(config, images.features[:, 0], describe)
    found = {
        name: copy_precision(images.features[:, number], database, lambda query: [query])
        for number, name in enumerate(COPIES, start=1)
    }
    num_originals, bad = len(images.kept), images.bad + bad
    return _report(config, "synthetic copies", found, num_originals, len(database), bad, describe.protocol)


def _with_distractors(config: Config, originals: Tensor, describe: Describe) -> tuple[Tensor, list[tuple[str, str]]]:
    if not config.distractors:
        return originals, []
    others = describe(describe.open_images(config.distractors))
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
    mean_all = 100 * mean(value for values in found.values() for value in values)
    strong = blocks.get("strong")
    rows = [*((block, blocks[block], len(values)) for block, values in found.items())]
    rows.append(("all", mean_all, sum(map(len, found.values()))))
    if num_database < 2:
        raise UserError(
            f"{config.data} has only 1 original", "With one image every search succeeds: use a folder with at least 2"
        )
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
        "mAP": mean_all if strong is None else strong,
        "mAP_strong": strong,
        "mAP_all": mean_all,
        "blocks": blocks,
        "queries": sum(map(len, found.values())),
        "originals": num_originals,
        "distractors": num_distractors,
        "skipped": len(bad),
        "protocol": protocol,
    })  # fmt: skip


def _duplicates(config: Config, source: Source, describe: Describe) -> Report:
    images = describe(source)
    features, threshold = images.features[:, 0], config.threshold
    if threshold is None:
        usable = features[directed(features)]
        threshold = cosine_distribution(usable).threshold if len(usable) > 1 else EQUAL
    groups: list[dict[str, Any]] = [
        {"files": [source.key(images.kept[i]) for i in group.indices], "similarity": list(group.similarity)}
        for group in near_duplicates(features, threshold)
    ]
    lines = [f"Near-duplicates in {config.data}: {len(groups)} groups, {len(images.kept)} images compared"]
    for group in groups:
        lines.append("")
        lines += [f"  {value:.3f}  {file}" for file, value in zip(group["files"], group["similarity"], strict=True)]
    lines += [
        "",
        f"cosine to the nearest image of the group, at least {threshold:.6g}; {describe.protocol}"
        + skipped(images.bad),
    ]
    return Report("\n".join(lines), {
        "groups": groups,
        "duplicates": sum(len(group["files"]) - 1 for group in groups),
        "images": len(images.kept),
        "threshold": threshold,
        "skipped": len(images.bad),
        "protocol": describe.protocol,
    })  # fmt: skip
