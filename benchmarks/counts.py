"""Cost of a training step on any device, counted and not timed: arithmetic, bytes, and the least time they take.

Run: python benchmarks/counts.py [--peak-tflops 790] [--bandwidth-tb 4.8] [--batch 128]. ViT-S/16, 2 x 224 + 10 x 96
px, bfloat16 autocast, counted on a CPU for 2 and for 4 images and extrapolated linearly. Products and attention are
assumed to run at the peak, everything else at the bandwidth, one after the other. "Written" counts each operation of
PyTorch; "compiled" counts the kernels into which inductor fuses them in blocks, crops and loss. A table goes to stderr,
the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
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

SPEC = configs.views(PAPER)
SIZES = (2, 4)
WORK = ("flop", "bytes")
ROWS_AT_ONCE = losses._ROWS_AT_ONCE
COMPILE = torch.compile


class Counting(TorchDispatchMode):
    """Arithmetic of matrix products and attention, bytes that all other operations read and write, and their number."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.found["flop"] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.found["operations"] += 1
            return out
        read, written = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
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
    known: dict[Any, int] = {}

    def compile_part(part: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counting = _get_current_dispatch_mode()  # the active one: a part is compiled once for all counts
            assert isinstance(counting, Counting)
            key = part, tuple(x.shape if isinstance(x, Tensor) else x for x in args)
            with _disable_current_modes():
                if key not in known:
                    known[key] = compiled(lambda: COMPILE(part, dynamic=False)(*args))["bytes"]
                out = part(*args)
            counting.found["bytes"] += known[key]
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


def views(num: int) -> Callable[[], Any]:
    """The crops of images of 448 x 448 px."""
    canvas = torch.randint(0, 256, (num, 3, 448, 448), dtype=torch.uint8)
    draws = sample_views(SPEC, 0, 0, range(num), [[448, 448]] * num)
    return lambda: multi_crop(canvas, draws, SPEC)


def main() -> None:
    """Count, add up, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--peak-tflops", type=float, default=790.0, help="of bfloat16 products; 790 for an H200")
    parser.add_argument("--bandwidth-tb", type=float, default=4.8, help="TB/s of its memory; 4.8 for an H200")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    inductor.force_disable_caches = True
    torch._logging.set_logs(inductor_metrics=True)  # without it inductor does not count; its messages are not shown
    logging.getLogger("torch").handlers.clear()
    kernels.product_dtype, kernels.by_index = lambda device: torch.float16, lambda x: False  # as on a GPU

    def counted(make: Callable[[int], Callable[[], Any]], how: Callable[..., Counter[str]]) -> dict[str, float]:
        return line(lambda num: how(make(num)), args.batch)

    crops_written, step_written = counted(views, written), counted(a_step, written)
    crops_joined = counted(views, joined)["bytes"]
    saved = 0.0
    for make, times in ((student_block, 12), (teacher_block, 12), (loss, 1)):
        saved += times * (counted(make, written)["bytes"] - counted(make, compiled)["bytes"])
    step_joined = step_written["bytes"] - saved

    def least(flop: float, moved: float) -> float:
        return 1e6 * (flop / (args.peak_tflops * 1e12) + moved / (args.bandwidth_tb * 1e12))

    rows = {}
    for name, crop_bytes, step_bytes in (
        ("written", crops_written["bytes"], step_written["bytes"]), ("compiled", crops_joined, step_joined)
    ):  # fmt: skip
        crop_us, step_us = least(crops_written["flop"], crop_bytes), least(step_written["flop"], step_bytes)
        rows[name] = {
            "crops_gflop": crops_written["flop"] / 1e9, "crops_mb": crop_bytes / 1e6, "crops_us": crop_us,
            "step_gflop": step_written["flop"] / 1e9, "step_mb": step_bytes / 1e6, "step_us": step_us,
            "crops_share": crop_us / (crop_us + step_us), "images_per_second": 1e6 / (crop_us + step_us),
            "mfu": 1e6 * step_written["flop"] / (args.peak_tflops * 1e12) / (crop_us + step_us),
        }  # fmt: skip
        print(name, ", ".join(f"{key} {value:.4g}" for key, value in rows[name].items()), file=sys.stderr)
    device = f"{args.peak_tflops:g} TFLOP/s, {args.bandwidth_tb:g} TB/s"
    document = {"what": "cost per image of a step, counted", "device": device, "batch": args.batch, "ways": rows}
    document["operations_a_step"] = crops_written["operations"] + step_written["operations"]
    keep(document | {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}, args.out)


if __name__ == "__main__":
    main()
