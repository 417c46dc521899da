"""How time and memory grow with the number of files, table rows, logged steps, prototypes, images and views.

Run: python benchmarks/growth.py [--only files tables ...] [--figure FILE.svg] [--out FILE.json], or --help
Needs `opendino[search]` for tables; five minutes of one core (with `--limit 120` thirty), and 4 GB of disk for a while.
Each size runs in a process of its own, with one thread; seconds are of the processor, memory is the peak above what the
process had before. The exponent is the slope between the two largest sizes on logarithmic axes: 1 is linear, 2
quadratic. What would take longer than `--limit` at the next size is not run there. A table in Markdown goes
to stderr; the last line of stdout is one JSON document, from which `--redraw FILE.json` draws table and figure again.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ours import PAPER, Ours
from PIL import Image
from record import keep, machine

from opendino import config as configs
from opendino import existing_runs, run_images
from opendino.config import Config
from opendino.core import metrics_log
from opendino.data import fingerprint, loader
from opendino.data.cache import DecodedImages
from opendino.data.decode import working_area_px
from opendino.data.image_survey import survey
from opendino.data.labels import all_labels
from opendino.data.sampler import epoch_order
from opendino.embeddings.diverse_selection import first_batch, k_center
from opendino.engine import optim
from opendino.features.duplicate_threshold import cosine_distribution
from opendino.features.near_duplicates import near_duplicates
from opendino.features.outlier_scores import outlier_scores
from opendino.features.projection import project
from opendino.views.settings import changed
from opendino.visualize.drawing import line_charts, panels, style

DIM, NUM_CHOSEN, NUM_QUERIES, PER_FOLDER = 384, 100, 10, 1000
TOLERANCE = 0.15  # of an exponent: times vary
LEAST_SECONDS, LEAST_MIB = 0.05, 4  # an exponent of less is noise


class Meter:
    """Processor seconds and memory of operations, by name: `found`. Those in `skipped` are not run."""

    def __init__(self, skipped: set[str]) -> None:
        self.skipped, self.found = skipped, dict[str, tuple[float, float]]()

    def __call__(self, name: str, function: Callable[[], Any], times: int = 3, needed: bool = False) -> Any:
        """Run a function, up to `times` times while it is fast, and return its last result; the best time counts.

        With `needed` it is never skipped: what follows uses the result.
        """
        if name in self.skipped and not needed:
            return None
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
        before, seconds, result = memory_mib("VmRSS"), [], None
        for _ in range(times):
            result, began = None, time.process_time()
            result = function()
            seconds.append(time.process_time() - began)
            if sum(seconds) > 1:
                break
        self.found[name] = min(seconds), max(0.0, memory_mib("VmHWM") - before)
        print(f"{name}: {self.found[name][0]:.3f} s, {self.found[name][1]:.1f} MiB", file=sys.stderr, flush=True)
        return result


def memory_mib(field: str) -> float:
    """A line of /proc/self/status."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def of_files(num: int, home: Path, meter: Meter) -> None:
    """A folder of small photographs, 1,000 in each sub-folder, which are links to one file."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(content, "jpeg")
    for number in range(num // PER_FOLDER):
        folder = home / f"photos/{number:04d}"
        folder.mkdir(parents=True)
        (folder / "0.jpg").write_bytes(content.getvalue())
        for name in range(1, PER_FOLDER):
            os.link(folder / "0.jpg", folder / f"{name}.jpg")
    time.sleep(2.1)  # lists of folders that have just changed are not saved
    config = Config(data=str(home / "photos"))

    def opened() -> Any:
        return run_images.open_images(config, config.data)

    meter("open, first time", opened, 1)
    source = meter("open again", opened, needed=True)
    assert len(source) == num
    meter("survey", lambda: survey(source), 1)
    spec = configs.views(PAPER)
    images = DecodedImages(source, working_area_px(spec))
    meter("first batch of 64", lambda: loader.Batches(images, spec, 0, 64)[0])
    meter("order of an epoch", lambda: epoch_order(num, source.shard_sizes, 0, 1))
    meter("digests of all names (start of a run)", lambda: fingerprint.key_digests(source))
    meter("check of the images (resume)", lambda: fingerprint.sample(source))
    meter("all labels (methods that use them)", lambda: all_labels(source))


def of_tables(num: int, home: Path, meter: Meter) -> None:
    """An embedding table of random vectors with 384 features."""
    from search import gaussian, written  # LanceDB's threads do not survive a fork: only the child imports it

    from opendino.embeddings.lance_table import INDEX_FROM, optimize

    table = meter("write random vectors (.lance)", lambda: written(home, gaussian(num, 0)), 1, True)
    queries = gaussian(NUM_QUERIES, 1)
    meter(f"search, exact, {NUM_QUERIES} queries", lambda: table.nearest(queries, 10, exact=True))
    if num >= INDEX_FROM:
        meter("index: build", lambda: optimize(table._table, 0, changed=False), 1)
        if table._table.list_indices():  # else the search would be exact
            meter(f"search, index, {NUM_QUERIES} queries", lambda: table.nearest(queries, 10))
    _, vectors = meter("read all, normalize", table.normalized, needed=True)
    meter(f"select {NUM_CHOSEN}, nothing labeled", lambda: list(first_batch(vectors, NUM_CHOSEN)), 1)
    labeled = range(NUM_CHOSEN)
    meter(f"select {NUM_CHOSEN} more", lambda: list(itertools.islice(k_center(vectors, labeled), NUM_CHOSEN)))
    meter("map by PCA", lambda: project(vectors))
    meter("duplicates: choose the threshold", lambda: cosine_distribution(vectors), 1)
    meter("duplicates: compare", lambda: near_duplicates(vectors, 0.95), 1)
    meter("outliers", lambda: outlier_scores(vectors, 10), 1)


def of_logs(num: int, home: Path, meter: Meter) -> None:
    """The metrics of a run of as many steps, with 50 evaluations."""
    path = home / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in log_rows(1, num)), encoding="ascii")
    columns = meter("curves: read (report, page)", lambda: panels.of_file(path))
    meter("curves: draw", lambda: style.svg(line_charts.figure(panels.charts({"run": columns}))))
    settings = {"steps": num, "method": {"name": "dino"}}
    meter("doctor: verdict", lambda: existing_runs.verdict_on(home, settings))
    course = metrics_log.Course(path, ["loss"], others=True)
    course.read()
    with path.open("a", encoding="ascii") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in log_rows(num + 1, num + 100))
    meter("page: 100 new steps", course.read, 1)


def log_rows(first: int, last: int) -> Iterator[dict[str, Any]]:
    """Rows as a run of DINO writes them."""
    every = max(1, last // 50)
    for step in range(first, last + 1):
        yield {
            "step": step, "loss": 8 + 3 / step + step % 7 / 10, "entropy_frac": 0.4 + step % 5 / 20, "kl": 0.7,
            "marginal_frac": 0.98, "teacher_temp": 0.04, "momentum": 0.996, "lr": 0.0005, "weight_decay": 0.04,
            "grad_norm": 1.2 + step % 3, "ok": True, "images_per_second": 251.3, "data_wait": 0.012, "mfu": 0.31,
        }  # fmt: skip
        if step % every == 0:
            knn = {"teacher": 60.0, "student": 58.0, "untrained": 40.0, "pixels": 30.0}
            yield {"step": step, "knn": knn, "effective_rank": 30.5, "crop_match": {"teacher": 80.0, "untrained": 60.0}}


def of_prototypes(num: int, home: Path, meter: Meter) -> None:
    """Training steps of ViT-Ti/16 with 16 images in 2 x 64 + 4 x 32 px and `num` prototypes."""
    a_step(meter, "prototypes", 16, num, 4)


def of_batch(num: int, home: Path, meter: Meter) -> None:
    """The same with `num` images and 4,096 prototypes."""
    a_step(meter, "images in a batch", num, 4096, 4)


def of_views(num: int, home: Path, meter: Meter) -> None:
    """The same with 16 images in `num` local views."""
    a_step(meter, "local views", 16, 4096, num)


def a_step(meter: Meter, what: str, batch: int, num_prototypes: int, num_local: int) -> None:
    """One training step on prepared views, after one to warm up."""
    views = changed(PAPER.views, {"global.size": 64, "local.size": 32, "local.number": num_local})
    config = replace(PAPER, method=replace(PAPER.method, out_dim=num_prototypes), views=views)
    ours = Ours("vit_tiny/16", config, optim.ResolvedConfig(), batch, torch.float32, torch.device("cpu"))
    noise = ours.noise()
    ours.step(noise)
    meter(what, lambda: ours.step(noise))


PARTS: dict[str, tuple[Callable[[int, Path, Meter], None], tuple[int, ...]]] = {
    "files": (of_files, (10**4, 10**5, 10**6)),
    "tables": (of_tables, (10**4, 3 * 10**4, 10**5, 10**6)),
    "logs": (of_logs, (10**4, 10**5, 10**6)),
    "prototypes": (of_prototypes, (2**12, 2**14, 2**16)),
    "batch": (of_batch, (16, 64, 256)),
    "views": (of_views, (4, 16, 64)),
}
TITLES = {"files": "Files in a folder", "tables": "Rows of a table", "logs": "Steps of a run", "step": "One step"}


def main() -> None:
    """Measure, fit, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--most", type=int, default=10**6, help="largest size")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds that one operation may take at a size")
    parser.add_argument("--figure", type=Path, help="draw it: .svg, .png, .pdf or .html")
    parser.add_argument("--redraw", type=Path, help="an earlier result to draw; nothing is measured")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.redraw:
        document = json.loads(args.redraw.read_text(encoding="utf-8"))
    else:
        torch.set_num_threads(1)
        document = {
            "what": "processor seconds and peak memory in addition, by size, with the exponent of their growth",
            "machine": f"{machine()}, 1 thread",
            "date": time.strftime("%Y-%m-%d"),
            "load": os.getloadavg()[0],
            "parts": {part: measured(part, args.most, args.limit) for part in args.only},
        }
    print(*table(document["parts"]), sep="\n", file=sys.stderr)
    if args.figure:
        style.save(figure(document["parts"]), args.figure)
    keep(document, args.out)


def measured(part: str, most: int, limit: float) -> dict[str, Any]:
    """Every operation of a part at every size that it can be run at."""
    function, sizes = PARTS[part]
    found: dict[str, list[tuple[int, float, float]]] = {}
    too_long: dict[str, float] = {}
    for size in (size for size in sizes if size <= most):
        print(f"\n{part} {size:,}", file=sys.stderr, flush=True)
        too_long = {name: at for name, rows in found.items() if (at := expected(rows, size)) > limit}
        for name, (seconds, mib) in in_a_process(function, size, set(too_long)).items():
            found.setdefault(name, []).append((size, round(seconds, 4), round(mib, 1)))
    return {
        name: {
            "sizes": [size for size, _, _ in rows], "seconds": [each for _, each, _ in rows],
            "mib": [each for _, _, each in rows], "not_run_at": max(sizes) if name in too_long else None,
            "expected_seconds": round(too_long[name]) if name in too_long else None,
        }
        | growth(rows)
        for name, rows in found.items()
    }  # fmt: skip


def in_a_process(
    function: Callable[[int, Path, Meter], None], size: int, skipped: set[str]
) -> dict[str, tuple[float, float]]:
    """What a part measures at one size."""
    with tempfile.TemporaryDirectory() as home, multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(child, (function, size, home, skipped))


def child(
    function: Callable[[int, Path, Meter], None], size: int, home: str, skipped: set[str]
) -> dict[str, tuple[float, float]]:
    """See `in_a_process`."""
    os.environ["XDG_CACHE_HOME"] = f"{home}/cache"
    torch.set_num_threads(1)
    meter = Meter(skipped)
    function(size, Path(home), meter)
    return meter.found


def expected(rows: list[tuple[int, float, float]], size: int) -> float:
    """Seconds at a larger size, from the growth so far; at least linear growth is assumed."""
    exponent = max(1.0, slope(rows[-2], rows[-1], 1)) if len(rows) > 1 else 1.0
    return rows[-1][1] * (size / rows[-1][0]) ** exponent


def growth(rows: list[tuple[int, float, float]]) -> dict[str, Any]:
    """Exponents of time and memory, None where there is too little of either, and whether one is too large."""
    last = rows[-2:]
    found: dict[str, Any] = {"exponent": None, "memory_exponent": None, "worse_than_n_log_n": False}
    if len(last) < 2:
        return found
    (small, _, _), (large, _, _) = last
    allowed = 1 + math.log(math.log(large) / math.log(small)) / math.log(large / small) + TOLERANCE
    for place, name, least in ((1, "exponent", LEAST_SECONDS), (2, "memory_exponent", LEAST_MIB)):
        if last[1][place] >= least and (place == 1 or last[0][place] >= least):
            found[name] = round(slope(*last, place), 2)
            found["worse_than_n_log_n"] |= found[name] > allowed
    logs = np.log([(size, max(seconds, 1e-4)) for size, seconds, _ in rows])
    return found | {"exponent_of_all": round(float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0]), 2)}


def slope(small: tuple[int, float, float], large: tuple[int, float, float], place: int) -> float:
    """Of a line through two measurements on logarithmic axes."""
    least = (LEAST_SECONDS / 50, LEAST_MIB / 50)[place - 1]
    return math.log(max(large[place], least) / max(small[place], least)) / math.log(large[0] / small[0])


def table(parts: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| what | at | processor seconds | memory, MiB | exponent: time, memory |"
    yield "|---|---|---|---|---|"
    for part, operations in parts.items():
        for name, row in operations.items():
            note = f"; {row['not_run_at']:,} would take {row['expected_seconds']:,} s" if row["not_run_at"] else ""
            pair = ", ".join(
                "–" if row[each] is None else f"{round(row[each], 1) + 0.0:.1f}"
                for each in ("exponent", "memory_exponent")
            )
            cells = [
                f"{part if part in TITLES else 'step'}: {name}", told(row["sizes"]) + note, told(row["seconds"]),
                told(row["mib"]), f"**{pair}**" if row["worse_than_n_log_n"] else pair,
            ]  # fmt: skip
            yield f"| {' | '.join(cells)} |"


def told(values: list[float]) -> str:
    """Numbers with two digits."""
    return " / ".join(
        f"{value:,}" if isinstance(value, int) else f"{value:,.{2 if value < 10 else 0}f}" for value in values
    )


def figure(parts: dict[str, Any]) -> Any:
    """Seconds over size on logarithmic axes, with a line of exponent 1."""
    charts = {part: parts[part] for part in TITLES if part in parts}
    if steps := {name: row for part in ("prototypes", "batch", "views") for name, row in parts.get(part, {}).items()}:
        charts["step"] = steps
    with style.applied():
        drawn, grid = style.figure(math.ceil(len(charts) / 2), min(2, len(charts)), 3.9 * math.ceil(len(charts) / 2))
        for axis in grid.flatten()[len(charts) :]:
            axis.set_visible(False)
        for (part, operations), axis in zip(charts.items(), grid.flatten(), strict=False):
            for number, (name, row) in enumerate(operations.items()):
                tint, seconds = style.color(number), np.maximum(row["seconds"], 1e-3)
                axis.loglog(row["sizes"], seconds, color=tint, marker="o", markersize=3, label=name)
            low, high = axis.get_xlim()
            bottom, top = axis.get_ylim()
            edge = math.sqrt(bottom * top) / math.sqrt(low * high)
            axis.plot(
                [low, high], [edge * low, edge * high], color="#999999", linestyle="--", linewidth=0.8, label="linear"
            )
            axis.set(title=TITLES[part], ylabel="processor seconds", xlim=(low, high), ylim=(bottom, top))
            axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.1), ncols=2, fontsize=6, columnspacing=0.8)
    return drawn


if __name__ == "__main__":
    main()
