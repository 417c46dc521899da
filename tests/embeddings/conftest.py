"""A small model, and a folder of images that tests can change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.factories import model_of, noise_folder, small_vit
from torch import Tensor

from opendino.core.contracts import Source
from opendino.data.open_source import open_source
from opendino.embeddings import embed_images, lance_table, table_schema
from opendino.embeddings.embed_images import Embedder
from opendino.models.load import Model, preprocessing


def small_embedder(model: Model, source: Source, folder: Path, **options: Any) -> Embedder:
    origin = embed_images.table_origin(model, source, name="small", which=None, data=str(folder))
    return Embedder(model, source, origin, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return noise_folder(tmp_path / "photos", 8)


@pytest.fixture
def brought_up_to_date(tmp_path: Path) -> Callable[..., lance_table.Updated]:
    """Embed a folder into `tmp_path/photos.lance`."""

    def update(folder: Path, model: Model | None = None, **options: Any) -> lance_table.Updated:
        model = model or model_of(small_vit())
        source = options.pop("source", None) or open_source(folder)
        embedder = small_embedder(model, source, folder, patches=options.pop("patches", False), batch=2, workers=2)
        return lance_table.update(str(tmp_path / "photos.lance"), embedder, **options)

    return update


def write_table(path: Path, vectors: Tensor, data: str = "nowhere") -> None:
    """Vectors with the keys 0.png, 1.png … of the images in `data`, as `.parquet` or `.lance`."""
    import lancedb
    import pyarrow.parquet

    about = {
        "model": "small",
        "which": None,
        "fingerprint": "0",
        "preprocessing": preprocessing(16),
        "data": data,
        "images": 0,
    }
    columns = table_schema.arrow(vectors.shape[1], None, about)

    def batches() -> Any:
        for start in range(0, len(vectors), 5000):
            part = vectors[start : start + 5000]
            keys = [f"{start + row}.png" for row in range(len(part))]
            rows = embed_images.Rows([*range(len(keys))], keys, part, [(1, 1)] * len(keys), None, [])
            yield table_schema.batch(rows, columns)

    if path.suffix == ".lance":
        lancedb.connect(path.parent).create_table(path.stem, batches(), schema=columns)
    else:
        with pyarrow.parquet.ParquetWriter(path, columns) as writer:
            for batch in batches():
                writer.write_batch(batch)
