"""Vectors match the model, in source order, with a list of unreadable images."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_of, small_vit

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.decode import decode
from opendino.data.open_source import open_source
from opendino.data.sources.toy import ToySource
from opendino.embeddings import embed_images, table_schema
from opendino.embeddings.embed_images import Embedder, Rows, concatenate
from opendino.models.build import backbone
from opendino.models.load import Model, preprocessing

pa = pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(small_vit(depth=2))


@pytest.fixture
def photos(tmp_path: Path) -> Source:
    """Six images of several kinds and sizes, one of them turned, and five files that are none, in between."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (name, size) in enumerate([("a.png", (40, 30)), ("c.jpg", (30, 50)), ("e.webp", (20, 20)),
                                           ("g\nnew line.png", (60, 20)), ("i été 图.bmp", (16, 17))]):  # fmt: skip
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(folder / name, quality=90 + number)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.fromarray(rng.integers(0, 256, (24, 36, 3), np.uint8)).save(folder / "k.jpg", exif=turned)
    whole = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "PNG")
    (folder / "b cut short.png").write_bytes(whole.getvalue()[:2000])
    (folder / "d empty.jpg").touch()
    (folder / "f page.jpg").write_text("<!doctype html><p>404")
    os.mkfifo(folder / "h pipe.png")
    (folder / "j gone.jpg").symlink_to("nowhere")
    return open_source(tmp_path / "photos")


def vectors(
    model: Model, source: Source, indices: Sequence[int], within: int | None = None, **options: Any
) -> Generator[Rows, None, None]:
    return Embedder(model, source, {}, **options).rows(indices, within)


def joined(stretches: list[Rows]) -> tuple[list[int], torch.Tensor]:
    return [i for rows in stretches for i in rows.indices], torch.cat([rows.vectors for rows in stretches])


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_rows_are_what_the_model_says_of_each_image(model: Model, photos: Source, batch: int) -> None:
    stretches = list(vectors(model, photos, range(len(photos)), batch=batch, workers=2))
    indices, found = joined(stretches)
    keys = [key for rows in stretches for key in rows.keys]
    assert keys == ["a.png", "c.jpg", "e.webp", "g\nnew line.png", "i été 图.bmp", "k.jpg"]
    assert [photos.key(index) for index in indices] == keys
    sizes = [size for rows in stretches for size in rows.sizes]
    assert sizes == [(40, 30), (30, 50), (20, 20), (60, 20), (16, 17), (24, 36)]
    alone = torch.cat([model.embed(decode(photos.read(index))) for index in indices])
    # the same float32 sums in another order, over rows of unit variance (the last layer norm)
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
    assert found.dtype == torch.float32 and all(rows.patches is None for rows in stretches)


def test_every_unreadable_file_is_listed_with_its_reason(model: Model, photos: Source) -> None:
    bad = dict(pair for rows in vectors(model, photos, range(len(photos)), batch=4) for pair in rows.bad)
    assert list(bad) == ["b cut short.png", "d empty.jpg", "f page.jpg", "h pipe.png", "j gone.jpg"]
    told = ("", "empty file", "a web page", "not a regular file", "No such file")
    assert all(reason and part in reason for part, reason in zip(told, bad.values(), strict=True))


def test_a_stretch_without_a_readable_image_has_no_rows_but_a_shape(model: Model, photos: Source) -> None:
    where = [index for index in range(len(photos)) if photos.key(index).startswith(("d", "f"))]
    (rows,) = vectors(model, photos, where, patches=True)
    assert len(rows) == 0 and rows.vectors.shape == (0, 24) and len(rows.bad) == 2
    assert rows.patches is not None and rows.patches.shape == (0, 4, 24)


def test_patches_are_those_of_the_model_in_half_precision(model: Model) -> None:
    source = ToySource(n=5)
    (rows,) = vectors(model, source, range(5), patches=True)
    exact = model.features([Image.fromarray(source.read(index)) for index in range(5)])
    assert Embedder(model, source, {}, patches=True).grid == exact.grid == (2, 2)
    assert rows.patches is not None and rows.patches.dtype == torch.float16 and rows.patches.shape == (5, 4, 24)
    torch.testing.assert_close(rows.vectors, exact.cls, atol=1e-5, rtol=0)
    # values are below 4: half a unit in float16's last place is 2⁻¹⁰ there
    torch.testing.assert_close(rows.patches.float(), exact.patches, atol=2**-10 + 1e-5, rtol=0)


@pytest.mark.parametrize(("batch", "within"), [(4, 10), (3, 3), (7, 1), (50, 6)])
def test_no_batch_reaches_across_a_stretch(model: Model, batch: int, within: int) -> None:
    lengths = [len(rows) for rows in vectors(model, ToySource(n=23), range(23), batch=batch, within=within)]
    ends = set(itertools.accumulate(lengths))
    assert sum(lengths) == 23 and max(lengths) <= batch and ends >= set(range(within, 23, within))


@pytest.mark.parametrize(("batch", "size"), [(2, 4), (4, 3), (64, 5), (3, 100)])
def test_parts_hold_as_many_images_each_and_lose_none(model: Model, photos: Source, batch: int, size: int) -> None:
    embedder = Embedder(model, photos, {}, patches=True, batch=batch)
    parts = list(embedder.parts(range(11), size))
    assert [sum(rows.num_images for rows in part) for part in parts] == [size] * (11 // size) + [11 % size]
    whole = concatenate([rows for part in parts for rows in part])
    same = concatenate(list(embedder.rows(range(11), within=size)))
    assert (whole.indices, whole.keys, whole.sizes, whole.bad) == (same.indices, same.keys, same.sizes, same.bad)
    assert torch.equal(whole.vectors, same.vectors)
    assert whole.patches is not None and same.patches is not None and torch.equal(whole.patches, same.patches)
    assert list(embedder.parts([], size)) == []


def test_rows_are_a_plain_loop_to_the_bit(model: Model) -> None:
    source = ToySource(n=10)
    images = torch.stack([model.preprocess(source.read(index)) for index in range(10)])
    plain = torch.cat([model.embed(part) for part in images.split(4)])
    assert torch.equal(joined(list(vectors(model, source, range(10), batch=4)))[1], plain)


def test_any_order_of_images_is_kept(model: Model) -> None:
    source = ToySource(n=9)
    indices, found = joined(list(vectors(model, source, [7, 2, 5], batch=2)))
    assert indices == [7, 2, 5]
    ordered = joined(list(vectors(model, source, range(9))))[1]
    torch.testing.assert_close(found, ordered[[7, 2, 5]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("patches", [False, True])
def test_broken_weights_are_told(patches: bool) -> None:
    broken = Model(backbone("conv4", width=2), preprocessing(16), {})
    torch.nn.init.constant_(next(broken.backbone.parameters()), float("nan"))
    with pytest.raises(UserError, match="NaN or infinite"):
        list(vectors(broken, ToySource(n=3), range(3), patches=patches))


def test_patches_of_a_network_without_a_grid_are_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("swin has no grid")

    monkeypatch.setattr(model.backbone, "features", refuse)
    with pytest.raises(UserError, match=r"swin has no grid\. Remove --patches"):
        next(vectors(model, ToySource(n=3), range(3), patches=True))


@pytest.mark.parametrize("patches", [False, True])
def test_rows_become_record_batches_of_the_schema(model: Model, patches: bool) -> None:
    source = ToySource(n=6)
    (rows,) = vectors(model, source, range(6), patches=patches)
    told = embed_images.table_origin(model, source, name="runs/x", which="teacher", data="toy:?n=6")
    columns = table_schema.arrow(24, Embedder(model, source, told, patches).grid, told)
    made = table_schema.batch(rows, columns)
    assert made.schema.equals(columns, check_metadata=True) and made.validate(full=True) is None
    assert [(field.name, str(field.type)) for field in columns] == [
        ("key", "string"),
        ("vector", "fixed_size_list<item: float>[24]"),
        ("width", "int32"),
        ("height", "int32"),
        *([("patches", "fixed_size_list<item: halffloat>[96]")] if patches else []),
    ]
    assert made["key"].to_pylist() == rows.keys and made["width"].to_pylist() == [32] * 6
    assert np.array_equal(made["vector"].values.to_numpy().reshape(6, 24), rows.vectors.numpy())
    assert table_schema.about(columns) == {
        "format": 1, "model": "runs/x", "which": "teacher", "fingerprint": model.fingerprint, "dim": 24,
        "grid": [2, 2] if patches else None, "preprocessing": model.preprocessing, "data": "toy:?n=6", "images": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (None, "does not name the model"),
        ({"pandas": "{}"}, "does not name the model"),
        ({"opendino": "{"}, "does not name the model"),
        ({"opendino": "[1]"}, "does not name the model"),
        ({"opendino": '{"format": 2}'}, "has format 2, not 1"),
    ],
)
def test_tables_of_others_are_told_apart(metadata: dict[str, str] | None, told: str) -> None:
    with pytest.raises(UserError, match=told):
        table_schema.about(pa.schema([("vector", pa.float32())], metadata))


def test_a_batch_of_a_table_needs_no_pandas() -> None:
    pytest.importorskip("pyarrow")
    program = """
import sys, torch
from opendino.embeddings import table_schema
from opendino.embeddings.embed_images import Rows
schema = table_schema.arrow(2, (1, 1), {})
patches = torch.tensor([[[0.5, 1]], [[2, 3]]]).half()
rows = Rows([0, 1], ["ä/1.png", ""], torch.tensor([[1.0, 2], [3, 4]]), [(5, 6), (7, 8)], patches, [])
found = table_schema.batch(rows, schema).to_pylist()
print([row | {"patches": [float(value) for value in row["patches"]]} for row in found])  # old pyarrow: np.float16(0.5)
print("pandas" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = {"key": "ä/1.png", "vector": [1.0, 2.0]}, {"key": "", "vector": [3.0, 4.0]}
    first |= {"width": 5, "height": 6, "patches": [0.5, 1.0]}
    second |= {"width": 7, "height": 8, "patches": [2.0, 3.0]}
    assert ended.stdout.splitlines() == [str([first, second]), "False"]
