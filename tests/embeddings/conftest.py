"""A small model, and a folder of images that tests can change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from opendino.core.contracts import Source
from opendino.data.open_source import open_source
from opendino.embeddings import embed_images, lance_table, table_schema
from opendino.embeddings.embed_images import Embedder
from opendino.models.build import backbone
from opendino.models.load import Model, preprocessing


def small_model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(backbone("vit/8", image_px=16, embed_dim=24, depth=1, num_heads=2), preprocessing(16), {})


def small_embedder(model: Model, source: Source, folder: Path, **options: Any) -> Embedder:
    origin = embed_images.table_origin(model, source, name="small", which=None, data=str(folder))
    return Embedder(model, source, origin, **options)


def photo(path: Path, number: int) -> None:
    pixels = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    Image.fromarray(pixels.numpy()).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        photo(folder / f"{number}.png", number)
    return folder


@pytest.fixture
def brought_up_to_date(tmp_path: Path) -> Callable[..., lance_table.Updated]:
    """Embed a folder into `tmp_path/photos.lance`."""

    def update(folder: Path, model: Model | None = None, **options: Any) -> lance_table.Updated:
        model = model or small_model()
        source = options.pop("source", None) or open_source(folder)
        embedder = small_embedder(model, source, folder, patches=options.pop("patches", False), batch=2, workers=2)
        return lance_table.update(str(tmp_path / "photos.lance"), embedder, **options)

    return update


def write_table(path: Path, vectors: Tensor) -> None:
    """Vectors with the keys 0.png, 1.png …, as `.parquet` or `.lance`."""
    import lancedb
    import pyarrow.parquet

    about = {"model": "small", "which": None, "fingerprint": "0", "preprocessing": {}, "data": "nowhere", "images": 0}
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
