"""Groups of a table's images, for colors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from opendino.core.errors import UserError
from opendino.embeddings.table_groups import columns_to_color_by, group_names

KEYS = ["train/cat/1.png", "train/cat/2.png", "val/dog/3.png"]
VECTORS = normalize(torch.tensor([[1.0, 0], [1, 0.1], [0, 1]]), dim=1)


def test_folders_are_those_that_a_source_takes_for_classes() -> None:
    assert group_names(KEYS, VECTORS, "folder") == ["cat", "cat", "dog"]
    assert group_names(["a.png", "b.png", "c.png"], VECTORS, "folder") == ["", "", ""]


def test_clusters_are_named_by_size() -> None:
    assert set(group_names(KEYS, VECTORS, "cluster")) == {"cluster 1", "cluster 2", "cluster 3"}


def test_columns_of_a_csv(tmp_path: Path) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text("path,device,note\n1.png,x,a\n3.png,y,b\n")
    assert group_names(KEYS, VECTORS, "device", str(csv)) == ["x", "", "y"]
    assert columns_to_color_by(KEYS, str(csv)) == ["device", "note"]
    assert columns_to_color_by(["other.png"], str(csv)) == []
    with pytest.raises(UserError, match=r"no column 'plate'.*folder, cluster, device, note"):
        group_names(KEYS, VECTORS, "plate", str(csv))
    with pytest.raises(UserError, match="--labels"):
        group_names(KEYS, VECTORS, "plate")
