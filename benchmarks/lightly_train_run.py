"""A whole run of lightly-train's DINO with the network and views of a run of ours: an opponent for real.py.

Run by `benchmarks/real.py --lightly-train PYTHON` with the Python of an environment that has lightly-train, not ours.
Network, batch, views, colors, head, precision and peak learning rate are those of our run; optimizer, schedules,
temperatures and momentum are its own. Its time is measured in processor seconds of its process: some steps are timed
first, from which the number of steps follows. The exported network is its teacher, as ours is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightly_train_dino import PRECISIONS, answers_alone, environment
from torch import Tensor, nn

TIMED_STEPS = 20


def train(python: Path, run: Path, folder: Path, seed: int, seconds: float) -> tuple[nn.Module, dict[str, Any]]:
    """Train for about as many processor seconds.

    Args:
        python: The interpreter of an environment with lightly-train.
        run: A run of ours with conv4, for all settings.
        folder: Training images, by class.
        seed: For weights, order and views.
        seconds: Of the processor; the start of lightly-train and the timed steps are not counted.

    Returns:
        The teacher, and "steps" and "processor seconds".
    """
    from opendino.existing_runs import read_run_config
    from opendino.models.build import backbone

    config = read_run_config(run)
    large, small, second = config.views["global"], config.views["local"], config.views["second"]
    colors = {name: getattr(large.color_jitter, name) for name in ("brightness", "contrast", "saturation", "hue")}
    task = {
        "data": str(folder.absolute()), "seed": seed, "seconds": seconds, "width": config.backbone_options["width"],
        "batch": config.batch, "precision": PRECISIONS[config.precision], "lr": config.optim.lr,
        "method": {
            "output_dim": config.method.out_dim, "hidden_dim": config.method.hidden_dim,
            "bottleneck_dim": config.method.bottleneck_dim, "batch_norm": config.method.head_batch_norm,
        },
        "transform": {
            "image_size": (large.size, large.size),
            "random_resize": {"min_scale": large.crop.scale[0], "max_scale": large.crop.scale[1]},
            "color_jitter": {"prob": large.color_jitter.p, "strength": 1.0, **colors},
            "random_gray_scale": large.gray.p,
            "normalize": {"mean": tuple(config.mean), "std": tuple(config.std)},
            "gaussian_blur": {"prob": large.blur.p},
            "global_view_1": {
                "gaussian_blur": {"prob": second.blur.p}, "solarize": {"prob": second.solarize.p, "threshold": 0.5}
            },
            "local_view": {
                "num_views": small.number, "view_size": (small.size, small.size),
                "random_resize": {"min_scale": small.crop.scale[0], "max_scale": small.crop.scale[1]},
                "gaussian_blur": {"prob": small.blur.p},
            },
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        command = [str(python), "-W", "ignore", __file__, json.dumps(task), home]
        ended = subprocess.run(command, env=environment(1), stdout=subprocess.PIPE, text=True, check=True)
        network = backbone(config.backbone, image_px=large.size, **config.backbone_options)
        network.load_state_dict(torch.load(Path(home, "teacher.pt"), weights_only=True))
    return network.eval(), json.loads(ended.stdout.splitlines()[-1])


class Conv4(nn.Module):
    """Our conv4, with the names of its weights, as lightly-train wants a network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for block in range(4):
            after = width * 2**block
            layers += [nn.Conv2d(before, after, 3, 1 if block == 0 else 2, 1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.ReLU(inplace=True)]
            before = after
        self.net, self._width = nn.Sequential(*layers), 12 * width

    def get_model(self) -> nn.Module:
        """The network that is exported."""
        return self

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """`[B 3 H W]` → the maps of the last two blocks."""
        third = self.net[:9](x)
        return {"features": self.net[9:](third), "third": third}

    def forward_pool(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Roots of the averages, `[B D 1 1]`."""
        averages = [x[name].float().mean((2, 3), keepdim=True) for name in ("third", "features")]
        return {"pooled_features": (torch.cat(averages, 1) + 1e-4).sqrt()}

    def feature_dim(self) -> int:
        """D."""
        return self._width


def work(task: dict[str, Any], home: Path) -> dict[str, Any]:
    """Time some steps, then train; the teacher's weights are written to `home`."""
    os.environ["LIGHTLY_TRAIN_CACHE_DIR"] = str(home / "cache")
    import cv2
    import lightly_train
    from pytorch_lightning import seed_everything

    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    def run(name: str, steps: int) -> float:
        seed_everything(task["seed"])
        network, began = Conv4(task["width"]), time.process_time()
        lightly_train.pretrain(
            out=str(home / name), data=task["data"], model=network, method="dino", epochs=10**6,
            batch_size=task["batch"], num_workers=0, accelerator="cpu", devices=1, precision=task["precision"],
            seed=task["seed"], optim="adamw", optim_args={"lr": task["lr"]}, method_args=task["method"],
            transform_args=task["transform"], trainer_args={"max_steps": steps},
        )  # fmt: skip
        taken = time.process_time() - began
        torch.save(network.state_dict(), home / "teacher.pt")
        return taken

    start = run("start", 1)
    per_step = (run("timed", 1 + TIMED_STEPS) - start) / TIMED_STEPS
    steps = max(TIMED_STEPS, int(task["seconds"] / per_step))
    return {"steps": steps, "processor seconds": run("run", steps)}


if __name__ == "__main__":
    answers = answers_alone()
    print(json.dumps(work(json.loads(sys.argv[1]), Path(sys.argv[2]))), file=answers, flush=True)
