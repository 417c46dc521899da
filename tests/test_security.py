"""What SECURITY.md promises."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

import opendino
from opendino import config as configs
from opendino.core.errors import UserError
from opendino.data.open_source import open_source
from opendino.engine import checkpoint

ROOT = Path(__file__).parents[1]


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "pwned"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), "red").save(buffer, "PNG")
    return buffer.getvalue()


# --- no code from outside


def test_nothing_in_the_package_unpickles_evaluates_or_starts_a_shell() -> None:
    forbidden = {
        "eval",
        "exec",
        "pickle.load",
        "pickle.loads",
        "yaml.load",
        "yaml.unsafe_load",
        "os.system",
        "os.popen",
    }
    forbidden |= {"torch.hub.load", "marshal.loads", "shelve.open", "joblib.load", "subprocess.getoutput"}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in forbidden, f"{path}:{node.lineno} {name}"
            assert name != "torch.load" or given.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert name not in ("np.load", "numpy.load") or given.get("allow_pickle", "False") == "False", path
            assert given.get("shell", "False") == "False", f"{path}:{node.lineno}"


def test_a_pickle_in_place_of_weights_is_refused_unread(tmp_path: Path, mark: Path) -> None:
    description = {
        "name": "conv4", "kwargs": {"width": 4}, "networks": ["teacher"],
        "preprocessing": {
            "image_px": 32, "resize_px": 36, "interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1],
        },
    }  # fmt: skip
    (tmp_path / "backbone.json").write_text(json.dumps(description))
    (tmp_path / "backbone.safetensors").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match="cannot be read"):
        opendino.load(tmp_path)
    assert not mark.exists()


def test_a_pickle_in_place_of_a_checkpoint_is_passed_over(tmp_path: Path, mark: Path) -> None:
    for step, tensors in ((1, None), (2, pickle.dumps(Evil(mark)))):
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        if tensors is None:
            save_file({}, folder / "tensors.safetensors")
        else:
            (folder / "tensors.safetensors").write_bytes(tensors)
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoints" / "step_00000001"
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "data: p\nout: !!python/object/apply:os.mkdir [{mark}]\n",
        "data: p\nbackbone_options: !!python/object/new:os.mkdir [{mark}]\n",
        "!!python/object/apply:os.mkdir [{mark}]\n",
        "data: p\nout: !!python/name:os.mkdir\n",
    ],
)
def test_yaml_makes_no_objects(tmp_path: Path, mark: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("{mark}", str(mark)))
    with pytest.raises(UserError, match="is not YAML"):
        configs.read_tree(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["os", "../dino", "opendino.cli", "..cli.train", "__init__", "", "dino\nimport os"])
def test_a_name_chooses_among_our_own_files(name: str) -> None:
    with pytest.raises(UserError):
        configs.from_tree({"data": "p", "method": {"name": name}})


def test_timm_is_handed_no_file_to_unpickle(tmp_path: Path, mark: Path) -> None:
    from opendino.models.build import backbone

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match="takes no option 'checkpoint_path'"):
        backbone("resnet18", checkpoint_path=str(tmp_path / "weights.pth"))
    assert not mark.exists()


# --- archives


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_neither_write_nor_read_outside(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"not yours")
    box = tmp_path / "box"
    box.mkdir()
    path = box / f"a.{kind}"
    names = ["../escaped.png", "/tmp/escaped-opendino.png", "a/../../escaped2.png", "fine.png"]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, png())
            link = zipfile.ZipInfo("link.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, str(secret))
    else:
        with tarfile.open(path, "w") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(png())
                archive.addfile(info, io.BytesIO(png()))
            for form, name in (
                (tarfile.SYMTYPE, "link.png"),
                (tarfile.LNKTYPE, "hard.png"),
                (tarfile.CHRTYPE, "dev.png"),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = form, str(secret)
                archive.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    source = open_source(path)
    for index in range(len(source)):
        assert source.read(index) != b"not yours"
    assert len([i for i in range(len(source)) if source.read(i) == png()]) == len(names)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped-opendino.png").exists()


# --- network and secrets, in a run under way


def sockets(pid: int) -> set[str]:
    """The inodes of a process's TCP and UDP sockets."""
    own = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            own.add(target[8:-1])
    inet = set()
    for table in ("tcp", "tcp6", "udp", "udp6", "raw"):
        file = Path(f"/proc/{pid}/net/{table}")
        if file.exists():
            inet |= {line.split()[9] for line in file.read_text().splitlines()[1:]}
    return own & inet


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_opens_no_port_and_writes_no_secret(tmp_path: Path) -> None:
    run, secret = tmp_path / "run", "hf_S3cretS3cretS3cret"
    words = f"demo toy:textures?n=64&size=32 --epochs 4 --workers 1 --eval-images 20 --out {run}"
    environment = os.environ | dict.fromkeys(("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"), secret)
    command = [sys.executable, "-m", "opendino", *words.split()]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        looked = 0
        while process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for pid in (process.pid, *map(int, children)):
                try:
                    assert sockets(pid) == set()
                    looked += 1
                except (FileNotFoundError, ProcessLookupError):
                    continue
            time.sleep(0.1)
        said = process.stdout.read() if process.stdout else b""
    assert process.returncode == 0, said[-2000:]
    assert looked > 10
    assert secret.encode() not in said
    for path in run.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
