"""DINO by lightly-train (`pip install lightly-train timm`), one step for each line of stdin: another way for speed.py.

Run by `benchmarks/speed.py --lightly-train PYTHON` with the Python of an environment that has it; nothing of ours is
imported here. Its `pretrain(method="dino")` runs as for a user, from a folder of JPEG files, with the sizes and number
of views, batch, prototypes (trained from the first step), optimizer and precision of ours; all else is its default.
Files are read in the process itself, so that no work is hidden. Each line of stdout has the seconds of one step with
its images.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

NETWORKS = {"vit_small/16": "timm/vit_small_patch16_224", "resnet18": "torchvision/resnet18"}
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
COPIES = 64  # of each image, so that no epoch ends, and nothing is saved, while steps are timed


class Steps:
    """A process of lightly-train that makes a step when asked.

    Args:
        python: The interpreter of an environment with lightly-train and timm.
        network: Name of ours.
        images: Folder of JPEG files.
        batch: Images per step.
        threads: Of torch and OpenCV.
        dtype: float32 or bfloat16.
    """

    def __init__(self, python: Path, network: str, images: Path, batch: int, threads: int, dtype: str) -> None:
        clock = "process_time" if threads == 1 else "perf_counter"
        task = [NETWORKS[network], str(images.absolute()), str(batch), str(threads), PRECISIONS[dtype], clock]
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", __file__, *task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(threads),
        )  # fmt: skip

    def seconds(self) -> float:
        """Seconds of the next step."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"lightly-train ended with {self._process.wait()}"
        return float(answer)

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a process of lightly-train."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return ours | {"OMP_NUM_THREADS": str(threads), "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}


def answers_alone() -> TextIO:
    """Standard output for answers; whatever else is printed there from now on goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def work(network: str, images: str, batch: str, threads: str, precision: str, clock: str) -> None:
    """Train until stdin ends."""
    answers = answers_alone()
    with tempfile.TemporaryDirectory() as home:
        os.environ["LIGHTLY_TRAIN_CACHE_DIR"] = f"{home}/cache"
        import cv2
        import lightly_train
        import torch
        from pytorch_lightning import Callback, Trainer

        torch.set_num_threads(int(threads))
        cv2.setNumThreads(int(threads))
        now = getattr(time, clock)

        class Gate(Callback):
            """Waits for a line before a step's images are read; answers when the weights have changed."""

            began = 0.0

            def on_train_start(self, *_: Any) -> None:
                self.wait()

            def on_train_batch_end(self, *_: Any) -> None:
                print(now() - self.began, file=answers, flush=True)
                self.wait()

            def wait(self) -> None:
                if not sys.stdin.readline():
                    sys.exit()
                self.began = now()

        for number in range(COPIES):
            folder = Path(home, f"images/{number}")
            folder.mkdir(parents=True)
            for file in sorted(Path(images).glob("*.jpg")):
                (folder / file.name).symlink_to(file)
        make = Trainer.__init__

        def make_with_gate(trainer: Trainer, *args: Any, callbacks: Any = (), **kwargs: Any) -> None:
            make(trainer, *args, callbacks=[*callbacks, Gate()], **kwargs)

        with mock.patch.object(Trainer, "__init__", make_with_gate):  # `trainer_args` may hold text and numbers only
            lightly_train.pretrain(
                out=f"{home}/out", data=f"{home}/images", model=network, method="dino", epochs=100,
                batch_size=int(batch), num_workers=0, accelerator="cpu", devices=1, precision=precision,
                optim="adamw", method_args={"output_dim": 65536, "student_freeze_last_layer_steps": 0},
                transform_args={"local_view": {"num_views": 10}},
            )  # fmt: skip


if __name__ == "__main__":
    work(*sys.argv[1:])
