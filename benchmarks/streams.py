"""Cost of reading images from a folder, from shards of the originals, from packed shards and from Parquet.

Run: python benchmarks/streams.py IMAGES [--num 1500] [--repeats 3] [--out FILE.json]. IMAGES is a folder of
small images; they are read as they are and as copies enlarged to 500 x 333, the usual size of a photo on the web. Every
source has the same images and is read by the loader in the order of an epoch into canvases of working size, in this
process and one source after the other, from a warm page cache. Needs `opendino[streams]`. Also the
constants of docs/scale.md: index, order, shuffle, ranks. A table goes to stderr, the last line of stdout is one JSON
document.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import keep

from opendino.core.contracts import Source
from opendino.core.types import ViewGroup, ViewSpec
from opendino.data import mmap_table
from opendino.data.cache import DecodedImages
from opendino.data.decode import decode
from opendino.data.loader import Batches
from opendino.data.open_source import open_source
from opendino.data.sampler import Windowed, permutation
from opendino.data.shard_index import scan
from opendino.data.shard_writer import Plan, pack
from opendino.data.source_files import is_image
from opendino.views.settings import view

SIDE_PX = 256
SPEC = ViewSpec((ViewGroup("global", 224, (view({}),) * 2),))


def main() -> None:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--num", type=int, default=1500, help="images read of each source")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = os.environ["HF_HOME"] = f"{name}/cache"
        document = {
            "what": f"images/s per core from bytes to a canvas of at most {SIDE_PX} x {SIDE_PX} px, by CPU time",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
            "versions": f"torch {torch.__version__}, pillow {Image.__version__}, numpy {np.__version__}",
            "date": time.strftime("%Y-%m-%d"),
            "load_before": load,
            "num": args.num,
            "repeats": args.repeats,
            "sources": _sources(args, Path(name)),
            "index": _index(Path(name)),
            "order": _order(),
            "shuffle": _shuffle(),
            "ranks": {str(world): _shards_a_rank(world) for world in (1, 8, 32)},
            "load_after": os.getloadavg()[0],
        }
    keep(document, args.out)


def _sources(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    files = sorted(path for path in args.images.rglob("*") if is_image(path.name))
    chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))[: args.num]]
    found = {}
    for kind in ("as they are", "500x333"):
        root = work / kind.replace(" ", "-")
        for number, path in enumerate(chosen):
            to = root / "folder" / path.parent.name / f"{number:06d}{'.jpg' if kind == '500x333' else path.suffix}"
            to.parent.mkdir(parents=True, exist_ok=True)
            if kind == "500x333":
                Image.fromarray(decode(path.read_bytes())).resize((500, 333), Image.Resampling.BICUBIC).save(
                    to, quality=90
                )
            else:
                to.write_bytes(path.read_bytes())
        sources = _written(root)
        seconds: dict[str, list[float]] = {name: [] for name in sources}
        for _ in range(args.repeats):
            for name, source in sources.items():
                seconds[name].append(_read(source))
        rates = {name: args.num / min(each) for name, each in seconds.items()}
        kb = {
            name: sum(len(source.read(i)) for i in range(args.num)) / args.num / 1e3 for name, source in sources.items()
        }
        found[kind] = {
            name: {
                "images_per_second_per_core": round(rate, 1),
                "times_folder": round(rate / rates["folder"], 3),
                "kb_per_image": round(kb[name], 2),
                "seconds": [round(each, 3) for each in seconds[name]],
            }
            for name, rate in rates.items()
        }
        for name, row in found[kind].items():
            print(
                f"{kind:>12}  {name:<22} {row['images_per_second_per_core']:>8} {row['times_folder']:>6}",
                file=sys.stderr,
            )
    return found


def _written(root: Path) -> dict[str, Source]:
    """The same images behind every kind of source."""
    import datasets

    datasets.disable_progress_bars()
    folder = open_source(root / "folder")
    (root / "shards").mkdir()
    paths = sorted((root / "folder").rglob("*.*"))
    for number, part in enumerate(np.array_split(np.arange(len(paths)), 8)):
        with tarfile.open(root / f"shards/{number:03d}.tar", "w") as tar:
            for i in part:
                tar.add(paths[i], f"{i:06d}{paths[i].suffix}")
    pack(folder, Plan("folder", len(folder), SIDE_PX**2, "jpeg", 4), root / "packed")
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    features = datasets.Features({"image": datasets.Image()})
    (root / "parquet").mkdir()
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(str(root / "parquet/train.parquet"))
    return {
        "folder": folder,
        "shards of originals": open_source(root / "shards"),
        "packed shards": open_source(root / "packed"),
        "Parquet (hf, as Arrow)": open_source(root / "parquet"),
    }


def _read(source: Source) -> float:
    """CPU seconds for one epoch of canvases."""
    data = Batches(DecodedImages(source, SIDE_PX**2), SPEC, 0, 50)
    began = time.process_time()
    for n in range(len(source) // 50):
        data[n]
    return time.process_time() - began


def _index(work: Path) -> dict[str, Any]:
    """The index of a shard as img2dataset writes it (image, caption, json), and of many samples at once."""
    path, num = work / "a.tar", 10_000
    with tarfile.open(path, "w") as tar:
        for i in range(num):
            for ending, size in (("jpg", 2000), ("txt", 60), ("json", 400)):
                info = tarfile.TarInfo(f"{i:09d}.{ending}")
                info.size = size
                tar.addfile(info, _Zeros())
    began = time.process_time()
    contents = scan(path)
    scanned = time.process_time() - began
    began = time.process_time()
    with tarfile.open(path, "r:") as tar:
        for _ in tar:
            pass
    by_tarfile = time.process_time() - began
    many = 10_000_000
    columns = {
        "text": np.full(9 * many, 48, np.uint8),
        "ends": np.arange(1, many + 1) * 9,
        "offsets": np.arange(many),
        "sizes": np.zeros(many, np.int32),
        "labels": np.zeros(many, np.int32),
    }
    assert len(contents.names) == num
    mmap_table.save(work / "many.index", columns, {})
    began, before = time.process_time(), _anonymous_mib()
    assert mmap_table.load(work / "many.index")
    return {
        "scan_microseconds_per_member": round(scanned / num / 3 * 1e6, 2),
        "tarfile_microseconds_per_member": round(by_tarfile / num / 3 * 1e6, 2),
        "bytes_per_sample": round((work / "many.index").stat().st_size / many, 1),
        "open_seconds_per_10_million": round(time.process_time() - began, 2),
        "private_mib_per_10_million": round(_anonymous_mib() - before, 1),
    }


class _Zeros:
    def read(self, size: int) -> bytes:
        return bytes(size)


def _anonymous_mib() -> float:
    """Memory of this process alone, without mapped files."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(float(line.split()[1]) / 1024 for line in file if line.startswith("RssAnon"))


def _order() -> dict[str, Any]:
    """An epoch of 100 million images in 10,000 shards."""
    began, before = time.process_time(), _anonymous_mib()
    order = Windowed(np.full(10_000, 10_000), 0, 0)
    made = time.process_time() - began
    began = time.process_time()
    for place in range(40_000):
        order[place]
    each = (time.process_time() - began) / 40_000
    began = time.process_time()
    order.part(5000)
    part, windowed = time.process_time() - began, _anonymous_mib() - before
    before, began = _anonymous_mib(), time.process_time()
    whole = permutation(20_000_000, 0, 0)
    return {
        "begin_epoch_seconds": round(made, 3),
        "next_part_seconds": round(part, 4),
        "microseconds_per_image": round(each * 1e6, 2),
        "mib": round(windowed, 1),
        "permutation_seconds_per_100_million": round(5 * (time.process_time() - began), 1),
        "permutation_mib_per_100_million": round(5 * whole.nbytes / 2**20),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _shuffle(shards: int = 500, each: int = 1000, batch: int = 256) -> dict[str, Any]:
    """How close windowed epochs are to permutations."""
    num = shards * each
    found = {"shards": shards, "images_per_shard": each, "batch": batch}
    for window in (1, 8, 32, 128, 0):
        epochs = []
        for epoch in range(2):
            order = Windowed(np.full(shards, each), 0, epoch, window=window) if window else permutation(num, 0, epoch)
            parts = [order.part(n) for n in range(shards)] if isinstance(order, Windowed) else [order]
            epochs.append(np.concatenate(parts))
        shard = epochs[0][: num // batch * batch].reshape(-1, batch) // each
        same = [(np.bincount(row, minlength=shards) ** 2).sum() - batch for row in shard]
        places = [np.argsort(epoch) for epoch in epochs]
        together = np.random.default_rng(0).integers(0, num - 1, 100_000)
        apart = np.abs(places[1][epochs[0][together]] - places[1][epochs[0][together + 1]])
        found["permutation" if not window else f"window {window}"] = {
            "shards_in_a_batch": round(float(np.mean([len(np.unique(row)) for row in shard])), 1),
            "pairs_of_one_shard_frac": round(float(np.mean(same)) / batch / (batch - 1), 5),
            # 1 for two independent permutations: |a - b| of uniform positions has the mean num / 3
            "moved_from_epoch_to_epoch": round(float(np.abs(places[0] - places[1]).mean() / (num / 3)), 3),
            "neighbors_apart_next_epoch": round(float(apart.mean() / (num / 3)), 3),
        }
    return found


def _shards_a_rank(world: int, shards: int = 500, each: int = 1000, batch: int = 1024) -> dict[str, float]:
    """How many ranks read from a shard, where a step's images are sorted before they are distributed, and where not."""
    order = Windowed(np.full(shards, each), 0, 0)
    images = np.concatenate([order.part(n) for n in range(shards)])
    steps = images[: len(images) // batch * batch].reshape(-1, batch) // each
    ways = {"sorted": np.sort(steps, axis=1).reshape(len(steps), world, -1)}
    ways["unsorted"] = steps.reshape(len(steps), -1, world).transpose(0, 2, 1)
    return {
        name: round(sum(len(np.unique(way[:, rank])) for rank in range(world)) / shards, 2)
        for name, way in ways.items()
    }


if __name__ == "__main__":
    main()
