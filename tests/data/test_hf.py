"""Hugging Face datasets: Parquet, Arrow and streaming, written by the library; without network."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.types import ViewGroup, ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.loader import Batches, batches
from opendino.data.open_source import open_source
from opendino.views.settings import view

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def table(make: Any, num: int = 10, first: int = 0) -> Any:
    features = datasets.Features(
        {
            "caption": datasets.Value("string"),
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "source": datasets.Value("string"),
        }
    )
    rows = range(first, first + num)
    return datasets.Dataset.from_dict(
        {
            "caption": ["x"] * num,
            "picture": [{"bytes": make.png(i), "path": f"{i}.png"} for i in rows],
            "kind": [i % 2 for i in rows],
            "source": ["web" if i % 3 else "camera" for i in rows],
        },
        features=features,
    )


def whole(source: Source) -> list[tuple[bytes | np.ndarray, str]]:
    return [(source.read(i), source.classes[source.label(i)]) for i in range(len(source))]


def expected(make: Any, num: int = 10) -> list[tuple[bytes, str]]:
    return [(make.png(i), ("cat", "dog")[i % 2]) for i in range(num)]


def test_parquet_file_and_folder(tmp_path: Path, make: Any) -> None:
    (tmp_path / "p").mkdir()
    for number in range(2):
        table(make, 5, 5 * number).to_parquet(str(tmp_path / f"p/train-{number:05d}-of-00002.parquet"))
    source = open_source(tmp_path / "p")
    assert whole(source) == expected(make)
    assert source.key(3) == "train/000000003"
    assert whole(open_source(f"hf:{tmp_path}/p?split=train")) == expected(make)
    assert whole(open_source(tmp_path / "p/train-00000-of-00002.parquet")) == expected(make, 5)
    assert whole(pickle.loads(pickle.dumps(source))) == expected(make)
    named = open_source(f"hf:{tmp_path}/p?label=source")
    assert named.classes == ("camera", "web")
    assert [named.classes[named.label(i)] for i in range(4)] == ["camera", "web", "web", "camera"]


def test_saved_to_disk(tmp_path: Path, make: Any) -> None:
    data = table(make)
    data.select([3, 1, 2]).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(str(tmp_path / "two"))
    assert [pixels for pixels, _ in whole(open_source(tmp_path / "one"))] == [make.png(i) for i in (3, 1, 2)]
    assert whole(open_source(tmp_path / "two")) == expected(make)
    assert whole(open_source(f"hf:{tmp_path}/two?split=test")) == expected(make, 2)
    with pytest.raises(UsageError, match=r"Unknown split 'tset'.*test"):
        open_source(f"hf:{tmp_path}/two?split=tset")


def test_a_table_that_datasets_did_not_write(tmp_path: Path, make: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"jpg": [make.png(0), None, make.png(2)], "n": [1, 2, 3]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert (source.read(0), source.read(2), source.classes, source.label(0)) == (make.png(0), make.png(2), (), -1)
    with pytest.raises(BadImage, match="no image"):
        source.read(1)
    parquet.write_table(pyarrow.table({"n": [1]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="No column holds images, of n"):
        open_source(tmp_path / "b.parquet")


def test_streaming_goes_shard_by_shard_through_the_bounded_folder(
    tmp_path: Path, make: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").mkdir()
    for number in range(4):
        table(make, 5, 5 * number).to_parquet(str(tmp_path / f"p/train-{number:05d}-of-00004.parquet"))
    monkeypatch.setenv("OPENDINO_CACHE_GB", "2e-5")  # no room for two
    source = open_source(f"hf:{tmp_path}/p?streaming=true")
    assert source.shard_sizes.tolist() == [5, 5, 5, 5]
    assert source.classes == ("cat", "dog")
    assert whole(source) == expected(make, 20)
    kept = [path for path in (cache / "shards").iterdir() if not path.suffix and path.name[0] != "."]
    assert len(kept) == 1
    spec = ViewSpec((ViewGroup("global", 8, (view({"crop.scale": (0.4, 1.0)}),)),))
    taken = list(batches(Batches(DecodedImages(source, 400), spec, 0, 10), 0, 2, 0, pin=False))
    assert sorted(torch.cat([batch.indices for batch in taken]).tolist()) == list(range(20))
    again = open_source(f"hf:{tmp_path}/p?streaming=true")
    assert [again.key(i) for i in range(20)] == [source.key(i) for i in range(20)]


def test_wrong_words(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table(make).to_parquet(str(tmp_path / "a.parquet"))
    for data, reason in (
        (f"hf:{tmp_path}/a.parquet?splt=train", "Unknown option of hf: 'splt'"),
        (f"hf:{tmp_path}/a.parquet?image=pictures", "Unknown column 'pictures'.*picture"),
        (f"hf:{tmp_path}/a.parquet?streaming=yes", "streaming is 'yes'"),
        ("hf:", "names no dataset"),
        ("hf:nobody/nothing", "Cannot open hf:nobody/nothing"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            open_source(data)
        assert caught.value.hint and "\n" not in str(caught.value)
    (tmp_path / "a.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match="Cannot open"):
        open_source(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"opendino\[streams\]"):
        open_source(tmp_path / "a.parquet")
