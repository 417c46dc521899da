"""Vectors in files: every image once, in order, whatever happens on the way."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from opendino.cli import main
from opendino.core.errors import UserError
from opendino.data.decode import decode
from opendino.data.open import open_source
from opendino.models import load
from opendino.models.build import backbone
from opendino.search import embed, schema

NUM = 41


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    network = backbone("vit/4", image_px=16, embed_dim=24, depth=1, num_heads=3)
    load.save_backbone(folder, {"teacher": network}, preprocessing=load.preprocessing(16))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(NUM):
        name = {3: "ü.png", 4: "new\nline.png"}.get(number, f"{number:03d}.png")
        pixels = rng.integers(0, 256, (16 + number, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "008.png").write_bytes((folder / "008.png").read_bytes()[:100])
    (folder / "009.png").write_text("<html>gone</html>")
    return folder


def words(model: Path, images: Path, out: Path, *more: str) -> list[str]:
    return ["embed", str(model), str(images), "--out", str(out), *more]


def test_every_readable_image_is_there_in_order_with_its_vector(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.parquet"
    assert main(words(model, images, out, "--patches", "--batch", "7", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["table"], told["written"], told["skipped"]) == (str(out), NUM - 2, 2)
    assert told["images_per_second"] > 0
    assert [key for key, _ in told["bad"]] == ["008.png", "009.png"]
    source, network = open_source(str(images)), load.load(model)
    table = pq.read_table(out)
    keys = [source.key(i) for i in range(NUM) if source.key(i) not in ("008.png", "009.png")]
    assert table["key"].to_pylist() == keys
    assert sorted(table["height"].to_pylist()) == [16 + n for n in range(NUM) if n not in (8, 9)]
    facts = schema.about(table.schema, str(out))
    assert (facts["fingerprint"], facts["dim"], facts["grid"]) == (network.fingerprint, 24, [4, 4])
    found = np.stack(table["vector"].to_numpy())
    patches = np.stack(table["patches"].to_numpy()).reshape(-1, 16, 24)
    for row, key in enumerate(keys):
        index = next(i for i in range(NUM) if source.key(i) == key)
        features = network.features(decode(source.read(index)))
        np.testing.assert_allclose(found[row], features.cls[0], rtol=0, atol=1e-5)  # float32, another batch
        np.testing.assert_allclose(patches[row], features.patches[0], rtol=2e-3, atol=2e-3)  # float16
    with open(f"{out}.bad.csv", encoding="utf-8", newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == ["008.png", "009.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.parquet", "x.parquet.bad.csv"]


def test_all_formats_hold_the_same(model: Path, images: Path, tmp_path: Path) -> None:
    for suffix in ("parquet", "csv", "npz"):
        assert main(words(model, images, tmp_path / f"x.{suffix}")) == 0
    table = pq.read_table(tmp_path / "x.parquet")
    wanted = np.stack(table["vector"].to_numpy())
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["key", "width", "height", *(f"v{i}" for i in range(24))]
    assert [row[0] for row in rows[1:]] == table["key"].to_pylist()
    assert np.array_equal(np.array([row[3:] for row in rows[1:]], dtype=np.float32), wanted)
    held = np.load(tmp_path / "x.npz")
    assert held["key"].tolist() == table["key"].to_pylist()
    assert np.array_equal(held["vector"], wanted) and held["height"].tolist() == table["height"].to_pylist()
    assert json.loads(str(held["about"])) == schema.about(table.schema, "x")


RUN = """
import sys
from pathlib import Path
from opendino.data.decode import decode
from opendino.data.open import open_source
from opendino.models.load import load
from opendino.search import embed
model, images, out = sys.argv[1:]
source, network = open_source(images), load(model)
embed.embed(network, source, Path(out), embed.about(network, model, None, source, images, False), batch=4, part=8)
"""


def test_killed_and_begun_again_it_ends_as_if_nothing_had_happened(model: Path, images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(model), str(images)]
    subprocess.run([*command, str(tmp_path / "whole.parquet")], check=True, timeout=300)
    out, home, kills = tmp_path / "cut.parquet", tmp_path / "cut.parquet.parts", 0
    for parts in (1, 3, 5):
        with subprocess.Popen([*command, str(out)]) as process:
            while process.poll() is None and len(list(home.glob("[0-9]*.parquet"))) < parts:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    assert kills and not out.exists()
    before = {path.name: path.stat().st_mtime_ns for path in home.glob("[0-9]*.parquet")}
    (home / ".000005.parquet.partial").write_text("torn")
    subprocess.run([*command, str(out)], check=True, timeout=300)
    assert before and pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"), check_metadata=True)
    assert not home.exists()


@pytest.mark.slow
def test_two_processes_share_the_work(model: Path, images: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        RUN.replace(
            "model, images, out",
            "import torch.distributed\ntorch.distributed.init_process_group('gloo')\nmodel, images, out",
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    subprocess.run(
        [*command, str(model), str(images), str(tmp_path / "two.parquet")], check=True, timeout=300, capture_output=True
    )
    subprocess.run(
        [sys.executable, "-c", RUN, str(model), str(images), str(tmp_path / "one.parquet")], check=True, timeout=300
    )
    assert pq.read_table(tmp_path / "two.parquet").equals(pq.read_table(tmp_path / "one.parquet"))


def test_parts_of_something_else_are_not_gone_on_with(model: Path, images: Path, tmp_path: Path) -> None:
    source, network, out = open_source(str(images)), load.load(model), tmp_path / "x.parquet"
    facts = embed.about(network, "m", None, source, "d", False)
    home = tmp_path / "x.parquet.parts"
    home.mkdir()
    (home / "job.json").write_text(json.dumps(facts | {"fingerprint": "another"}))
    with pytest.raises(UserError, match="parts of another model"):
        embed.embed(network, source, out, facts)
    assert not out.exists()


def test_mistakes_are_one_line_and_cost_nothing(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.parquet"
    out.write_text("mine")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("text")
    for arguments, told in (
        (words(model, images, out), "exists already. Add --overwrite"),
        (words(model, images, tmp_path / "x.txt"), "Let it end in .parquet, .csv, .npz or .lance"),
        (words(model, images, tmp_path / "none" / "x.csv"), "There is no folder to write"),
        (words(model, images, tmp_path / "x.csv", "--patches"), "--patches go into no .csv"),
        (words(model, images, tmp_path / "x.csv", "--batch", "0"), "--batch is 0"),
        (words(model, tmp_path / "bad", tmp_path / "y.csv"), "None of the 1 images can be read, e.g. a.jpg"),
        (words(tmp_path, images, tmp_path / "y.csv"), "holds no backbone.json"),
    ):
        assert main(arguments) in (1, 2)
        error = capsys.readouterr().err
        assert told in error.splitlines()[-1], error
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "x.parquet"]


def test_a_foreign_file_is_no_table(tmp_path: Path) -> None:
    import pyarrow as pa

    with pytest.raises(UserError, match="no table of opendino's"):
        schema.about(pa.schema([("key", pa.string())]), "theirs.parquet")
