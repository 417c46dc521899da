"""Cost of a training step on a GPU, counted and not timed: arithmetic, bytes, and the time they take at given peaks.

Run: python benchmarks/counts.py [--batch 128] [--products-tflops 700 ...], or --help. ViT-S/16, 2 x 224 + 10 x 96 px,
bfloat16 autocast, counted on a CPU for 2 and for 4 images and extrapolated linearly. Each GPU has two rows, `EASY` and
`HARD`: how near kernels come to the peaks, whether they read while they compute, how much larger the padded canvases
are than their images, and how fast they are copied to the GPU. Attention computes whole tiles, so that 37 tokens cost
as much as 64, and has a peak of its own. Everything runs one after the other, the copy too, as in `opendino train`.
"Written" counts each operation of PyTorch; "compiled" counts the kernels into which inductor fuses them in blocks,
crops and loss. Not counted: the time between kernels, and waiting for images. A table goes to stderr, the last line of
stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ours import PAPER, Ours
from record import keep
from torch import Tensor
from torch._inductor import config as inductor
from torch._inductor import graph as lowering
from torch._inductor.codegen.cpp import CppScheduling
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from opendino import config as configs
from opendino import losses
from opendino.core.compilation import compiling
from opendino.engine import optim
from opendino.models.vit_layers import Block
from opendino.views import kernels
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import sample_views

TILE = 64  # queries and keys that an attention kernel computes at once
IMAGE_PX = 448


@dataclass(frozen=True)
class Peaks:
    """What a GPU reaches: TFLOP/s of large bfloat16 products and of attention, TB/s of its memory."""

    products_tflops: float
    attention_tflops: float
    memory_tb: float


@dataclass(frozen=True)
class Case:
    """How well a step does.

    Attributes:
        of_products, of_attention: Share of the peak that the products of a ViT-S (D = 384) reach, and short attention.
        overlap: Whether a kernel reads and writes while it computes, so that only the longer of the two counts.
        canvas_px: Side of the canvases of images of 448 x 448 px: batches have images of several shapes.
        copy_gb: GB/s of the copy of the canvases to the GPU, over PCIe.
    """

    of_products: float
    of_attention: float
    overlap: bool
    canvas_px: int
    copy_gb: float


# One chip in two versions; less than the data sheet's 989 TFLOP/s and 3.35 or 4.8 TB/s, which no kernel reaches.
GPUS = {"H100": Peaks(700, 300, 3.0), "H200": Peaks(750, 300, 4.3)}
EASY, HARD = Case(1.0, 1.0, True, 512, 50), Case(0.7, 0.6, False, 672, 25)
SPEC = configs.views(PAPER)
SIZES = (2, 4)
WORK = ("flop", "attention_flop", "tile_flop", "bytes", "product_bytes", "attention_bytes")
ROWS_AT_ONCE = losses._ROWS_AT_ONCE
COMPILE = torch.compile
KNOWN: dict[Any, int] = {}  # compiled part with the shapes of its arguments → bytes


class Counting(TorchDispatchMode):
    """Arithmetic of products and of attention, bytes that they and all other operations move, and their number."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, written = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
        if func._overloadpacket in flop_registry:
            flop = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            moved = sum(x.nbytes for x in (*read, *written))
            self.found["operations"] += 1
            if "attention" in func._overloadpacket.__name__:
                queries, keys = read[1:3] if "backward" in func._overloadpacket.__name__ else read[:2]  # [B H N D]
                tiles = [-(-x.shape[-2] // TILE) * TILE / x.shape[-2] for x in (queries, keys)]
                self.found["attention_flop"] += flop
                self.found["tile_flop"] += flop * tiles[0] * tiles[1]
                self.found["attention_bytes"] += moved
            else:
                self.found["flop"] += flop
                self.found["product_bytes"] += moved
            return out
        known = {x.untyped_storage()._cdata for x in read}
        if not func._schema.is_mutable and all(x.untyped_storage()._cdata in known for x in written):
            return out  # a view
        self.found["bytes"] += sum(x.nbytes for x in (*read, *written))
        self.found["operations"] += 1
        return out


def written(function: Callable[[], Any]) -> Counter[str]:
    """Count the operations of a function, uncompiled."""
    with Counting() as counting, compiling(False):
        function()
    return counting.found


def compiled(function: Callable[[], Any]) -> Counter[str]:
    """Bytes of inductor's kernels for a function; products and attention are in the other count."""
    found: Counter[str] = Counter()

    def noting(self: Any) -> Any:
        for node in self.scheduler.nodes:
            found["bytes"] += 0 if node.is_extern() else node.get_read_write_buffers_sizes()
        return 0, [], []

    usual, lowering.GraphLowering.count_bytes = lowering.GraphLowering.count_bytes, noting
    torch._dynamo.reset()
    try:
        with compiling(True):
            function()
    finally:
        lowering.GraphLowering.count_bytes = usual
    return found


def joined(function: Callable[[], Any]) -> Counter[str]:
    """Bytes of a function with compiled parts: inductor's kernels for these, uncompiled operations for the rest.

    Assumes that an image is too large to fuse a reduction with the next operation, though a CPU's scheduler does so.
    """

    def compile_part(part: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counting = _get_current_dispatch_mode()  # the active one: a part is compiled once for all counts
            assert isinstance(counting, Counting)
            key = part, tuple(x.shape if isinstance(x, Tensor) else x for x in tree_leaves(args))
            with _disable_current_modes():
                if key not in KNOWN:
                    KNOWN[key] = compiled(lambda: COMPILE(part, dynamic=False)(*args))["bytes"]
                out = part(*args)
            counting.found["bytes"] += KNOWN[key]
            return out

        return call

    usual = CppScheduling._get_outer_loop_fusion_depth
    CppScheduling._get_outer_loop_fusion_depth = lambda self, node1, node2: 0
    torch.compile = compile_part  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with Counting() as counting, compiling(True):
            function()
    finally:
        torch.compile, CppScheduling._get_outer_loop_fusion_depth = COMPILE, usual
    return counting.found


def line(count: Callable[[int], Counter[str]], batch: int) -> dict[str, float]:
    """Cost per image of a batch, from two small batches: what grows with the images, and what a step costs once."""
    found = []
    for size in SIZES:
        losses._ROWS_AT_ONCE = ROWS_AT_ONCE * size // batch  # as many chunks of the loss as with all images
        found.append(count(size))
    small, large = found
    slope = {each: (large[each] - small[each]) / (SIZES[1] - SIZES[0]) for each in WORK}
    shares = {each: slope[each] + max(0.0, small[each] - SIZES[0] * slope[each]) / batch for each in WORK}
    return shares | {"operations": small["operations"]}


def a_step(num: int) -> Callable[[], Any]:
    """Forward, backward, optimizer and moving average on prepared views."""
    ours = Ours("vit_small/16", PAPER, optim.ResolvedConfig(), num, torch.bfloat16, torch.device("cpu"))
    views = ours.noise()
    return lambda: ours.step(views)


def student_block(num: int) -> Callable[[], Any]:
    """A block on all views, forward and backward."""
    return block([(2 * num, 197), (10 * num, 37)], grad=True)


def teacher_block(num: int) -> Callable[[], Any]:
    """A block on the global views."""
    return block([(2 * num, 197)], grad=False)


def block(shapes: list[tuple[int, int]], grad: bool) -> Callable[[], Any]:
    """One block of ViT-S under autocast."""
    network = Block(384, 6, 4.0, 0.0).train()
    tokens = torch.randn(sum(a * b for a, b in shapes), 384, requires_grad=grad)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
            out = network(tokens, shapes)
        if grad:
            out.backward(torch.ones_like(out))

    return run


def loss(num: int) -> Callable[[], Any]:
    """Bottleneck to loss and gradient, against 65,536 prototypes."""
    rows = torch.nn.functional.normalize(torch.randn(12, num, 256), dim=-1).requires_grad_()
    prototypes, targets = torch.randn(65536, 256), torch.randn(2, num, 65536).softmax(-1)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses.cross_entropy(rows, prototypes, targets, 0.1, same_views=True)

    return run


def views(num: int, canvas_px: int) -> Callable[[], Any]:
    """The crops of images of 448 x 448 px on canvases of `canvas_px`."""
    canvas = torch.randint(0, 256, (num, 3, canvas_px, canvas_px), dtype=torch.uint8)
    draws = sample_views(SPEC, 0, 0, range(num), [[IMAGE_PX, IMAGE_PX]] * num)
    return lambda: multi_crop(canvas, draws, SPEC)


def times(peaks: Peaks, case: Case, step: dict[str, float], crops: dict[str, float]) -> dict[str, float]:
    """Microseconds per image of each part, images per second, and the share of the peak of products (MFU)."""

    def of(flop: float, tflops: float, moved: float) -> float:
        each = flop / tflops, moved / peaks.memory_tb
        return (max(each) if case.overlap else sum(each)) / 1e6

    products, attention = peaks.products_tflops * case.of_products, peaks.attention_tflops * case.of_attention
    found = {
        "copy_us": 3 * case.canvas_px**2 / case.copy_gb / 1e3,
        "crops_us": of(crops["flop"], products, crops["product_bytes"]) + crops["bytes"] / peaks.memory_tb / 1e6,
        "products_us": of(step["flop"], products, step["product_bytes"]),
        "attention_us": of(step["tile_flop"], attention, step["attention_bytes"]),
        "others_us": step["bytes"] / peaks.memory_tb / 1e6,
    }
    total = sum(found.values())
    mfu = (step["flop"] + step["attention_flop"]) / (peaks.products_tflops * total * 1e6)
    return found | {"images_per_second": 1e6 / total, "mfu": mfu}


def main() -> None:
    """Count, add up, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    for name in ("products-tflops", "attention-tflops", "memory-tb"):
        parser.add_argument(f"--{name}", type=float, help=f"of another GPU; all three. Known: {GPUS}")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    given = args.products_tflops, args.attention_tflops, args.memory_tb
    if any(given) and not all(given):
        parser.error("give all three peaks: --products-tflops, --attention-tflops and --memory-tb")
    gpus = {"as given": Peaks(*given)} if all(given) else GPUS
    began, inductor.force_disable_caches = time.monotonic(), True
    torch._logging.set_logs(inductor_metrics=True)  # without it inductor does not count; its messages are not shown
    logging.getLogger("torch").handlers.clear()
    kernels.product_dtype, kernels.by_index = lambda device: torch.float16, lambda x: False  # as on a GPU

    def counted(make: Callable[[int], Callable[[], Any]], how: Callable[..., Counter[str]]) -> dict[str, float]:
        print(f"{time.monotonic() - began:.0f} s: {how.__name__}", file=sys.stderr, flush=True)
        return line(lambda num: how(make(num)), args.batch)

    step = {"written": counted(a_step, written)}
    saved = 0.0
    for make, number in ((student_block, 12), (teacher_block, 12), (loss, 1)):
        saved += number * (counted(make, written)["bytes"] - counted(make, compiled)["bytes"])
    step["compiled"] = step["written"] | {"bytes": step["written"]["bytes"] - saved}
    crops: dict[str, dict[int, dict[str, float]]] = {"written": {}, "compiled": {}}
    for case in (EASY, HARD):
        make = partial(views, canvas_px=case.canvas_px)
        crops["written"][case.canvas_px] = one = counted(make, written)
        crops["compiled"][case.canvas_px] = one | {"bytes": counted(make, joined)["bytes"]}

    found: dict[str, Any] = {}
    for gpu, peaks in gpus.items():
        for way, of_step in step.items():
            for name, case in (("easy", EASY), ("hard", HARD)):
                row = times(peaks, case, of_step, crops[way][case.canvas_px])
                found[f"{gpu}, {way}, {name}"] = row
                told = ", ".join(f"{key} {value:.3g}" for key, value in row.items() if key != "images_per_second")
                print(f"{gpu}, {way}, {name}: {row['images_per_second']:,.0f} images/s, {told}", file=sys.stderr)
    document = {
        "what": "cost per image of a step, counted", "batch": args.batch, "tile": TILE,
        "gpus": {name: asdict(each) for name, each in gpus.items()}, "easy": asdict(EASY), "hard": asdict(HARD),
        "step": step, "crops": crops, "times": found, "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__,
    }  # fmt: skip
    keep(document, args.out)


if __name__ == "__main__":
    main()
